"""`manage.py versions --as EMAIL`: the adapter versions of a workspace."""

from typing import Any

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.adapters.queries import versions
from stillhouse.evaluations.queries import latest_result
from stillhouse.publishing.queries import aliases_of
from stillhouse.serving.queries import is_ready


class Command(MemberCommand):
    help = "List the workspace's adapter versions, the newest first. Prints JSON."

    def run_as(self, by: Membership, **options: Any) -> object:
        return [as_json(version) for version in versions(by)]


def as_json(version: AdapterVersion) -> dict[str, object]:
    result = latest_result(version)
    return {
        "id": version.id,
        "name": version.serving_name,
        "adapter": version.adapter.name,
        "number": version.number,
        "state": version.state,
        "digest": version.digest,
        "base": version.run.base_id,
        "run": version.run_id,
        "data_sha256": version.run.data.sha256,
        "ready": is_ready(version),
        "aliases": [alias.name for alias in aliases_of(version)],
        "evaluation": result.summary.model_dump(mode="json") if result else None,
        "created_at": version.created_at,
    }
