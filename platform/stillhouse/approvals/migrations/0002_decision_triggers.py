"""What keeps decisions honest whoever writes them: two triggers that no setting turns off."""

from typing import ClassVar

from django.db import migrations

# The columns that the constraint compares with `decided_by` come from the rows they speak of, never from the
# statement that inserts the decision.
FILL_FROM_TRUTH = """
CREATE FUNCTION approvals_decision_fill() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT run.started_by_id, request.id, request.asked_by_id
      INTO STRICT NEW.run_started_by_id, NEW.request_id, NEW.asked_by_id
      FROM adapters_adapterversion version
      JOIN training_trainingrun run ON run.id = version.run_id
      LEFT JOIN approvals_approvalrequest request ON request.version_id = version.id
     WHERE version.id = NEW.version_id;
    RETURN NEW;
END
$$;
CREATE TRIGGER approvals_decision_fill BEFORE INSERT ON approvals_decision
    FOR EACH ROW EXECUTE FUNCTION approvals_decision_fill();
"""
DROP_FILL = """
DROP TRIGGER approvals_decision_fill ON approvals_decision;
DROP FUNCTION approvals_decision_fill();
"""

APPEND_ONLY = """
CREATE FUNCTION approvals_decision_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'decisions are append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER approvals_decision_frozen BEFORE UPDATE OR DELETE ON approvals_decision
    FOR EACH ROW EXECUTE FUNCTION approvals_decision_frozen();
"""
DROP_APPEND_ONLY = """
DROP TRIGGER approvals_decision_frozen ON approvals_decision;
DROP FUNCTION approvals_decision_frozen();
"""


class Migration(migrations.Migration):
    dependencies: ClassVar = [("approvals", "0001_initial")]

    operations: ClassVar = [
        migrations.RunSQL(FILL_FROM_TRUTH, DROP_FILL),
        migrations.RunSQL(APPEND_ONLY, DROP_APPEND_ONLY),
    ]
