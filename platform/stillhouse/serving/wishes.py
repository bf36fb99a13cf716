"""What a gateway writes of serving. It has no ORM: this is plain SQL."""

from stillhouse.core.notify import POOLS

WANT_VERSION = f"""
    WITH wanted AS (
        UPDATE serving_placement SET wanted_at = now()
        WHERE version_id = %s AND (wanted_at IS NULL OR wanted_at < now() - interval '1 second')
        RETURNING pool_id)
    SELECT pg_notify('{POOLS}', pool_id) FROM wanted"""
"""`want_version`, at most once a second: one parameter, the version's id."""
