"""Publications are history: a rollback is a new row, and no row is changed or removed."""

from typing import ClassVar

from django.db import migrations

APPEND_ONLY = """
CREATE FUNCTION publishing_publication_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'publications are append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER publishing_publication_frozen BEFORE UPDATE OR DELETE ON publishing_publication
    FOR EACH ROW EXECUTE FUNCTION publishing_publication_frozen();
"""
DROP_APPEND_ONLY = """
DROP TRIGGER publishing_publication_frozen ON publishing_publication;
DROP FUNCTION publishing_publication_frozen();
"""


class Migration(migrations.Migration):
    dependencies: ClassVar = [("publishing", "0001_initial")]

    operations: ClassVar = [migrations.RunSQL(APPEND_ONLY, DROP_APPEND_ONLY)]
