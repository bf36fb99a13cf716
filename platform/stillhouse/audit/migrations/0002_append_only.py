"""What makes the trail append-only whoever writes to it: no row is changed, removed or truncated away."""

from django.db import migrations

# Django's test runner empties the databases it makes (test_…) by TRUNCATE; the trail of a real one stays.
APPEND_ONLY = """
CREATE FUNCTION audit_event_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' AND starts_with(current_database(), 'test_') THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER audit_event_frozen BEFORE UPDATE OR DELETE ON audit_auditevent
    FOR EACH ROW EXECUTE FUNCTION audit_event_frozen();
CREATE TRIGGER audit_event_kept BEFORE TRUNCATE ON audit_auditevent
    FOR EACH STATEMENT EXECUTE FUNCTION audit_event_frozen();
"""
THAWED = """
DROP TRIGGER audit_event_kept ON audit_auditevent;
DROP TRIGGER audit_event_frozen ON audit_auditevent;
DROP FUNCTION audit_event_frozen();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [migrations.RunSQL(APPEND_ONLY, THAWED)]
