"""Looking for rows in every version that may hold them."""

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.sealing import seal
from stillhouse.core.secrets import digest
from stillhouse.core.text import storable
from stillhouse.datasets.models import Dataset, DatasetVersion, VersionSource
from stillhouse.datasets.trials import start_trial
from stillhouse.erasure.models import Erasure, Finding
from workers.contract import DropContaining

PURPOSE = "erasure"
SHORTEST = 3
"""Characters of a text: with fewer, every row would be found."""
LONGEST_TEXT, LONGEST_FILE, LONGEST_WHY = 1000, 400, 300
MOST_VERSIONS = 500


@transaction.atomic
def start_search(
    *, by: Membership, dataset: Dataset | None, text: str = "", file: str = "", why: str = ""
) -> Erasure:
    """Have workers look for a text, or for the rows of a file, in the dataset and all that was made from it.

    Without a dataset, in all of the workspace's. Uploaded versions are read as they were uploaded. Nothing is
    changed. Raises NotFound, UserError `not_allowed`, `nothing_said`, `too_short`, `too_long`, `why_missing`,
    `nothing_there`, `too_many_versions`, or Conflict `still_checked`.
    """
    if dataset is not None and dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset")
    require(by, "dataset.upload")
    text, file, why = storable(text.strip()), storable(file.strip()), storable(why.strip())
    _check_words(text, file, why)
    versions = scope_of(by.workspace_id, dataset)
    _check_scope(versions)
    erasure = Erasure.objects.create(
        workspace=by.workspace,
        dataset=dataset,
        sealed=seal(PURPOSE, text) if text else "",
        digest=digest(PURPOSE, text) if text else "",
        file=file,
        why=why,
        asked_by=by.user,
    )
    operation = DropContaining(text=text, file=file)
    for version in versions:
        original = bool(version.sha256) and version.operations is None
        trial = start_trial(by=by, version=version, operations=[operation], original=original)
        Finding.objects.create(erasure=erasure, version=version, trial=trial)
    record(
        workspace=by.workspace,
        by=by.user,
        action="erasure.searched",
        object_id=erasure.pk,
        object_name=str(dataset) if dataset else "all datasets",
        details={"versions": len(versions)},
    )
    return erasure


def scope_of(workspace_id: str, dataset: Dataset | None) -> list[DatasetVersion]:
    """The versions of the dataset, or of all datasets, and what was made from them; without purged ones."""
    known = DatasetVersion.objects.filter(dataset__workspace=workspace_id)
    chosen = set((known.filter(dataset=dataset) if dataset else known).values_list("pk", flat=True))
    newest = chosen
    while newest:
        made = VersionSource.objects.filter(parent__in=newest).values_list("version_id", flat=True)
        newest = set(made) - chosen
        chosen |= newest
    return list(
        known.filter(pk__in=chosen, purged_at=None)
        .select_related("dataset__workspace", "job")
        .order_by("dataset__name", "number")
    )


def _check_words(text: str, file: str, why: str) -> None:
    if not text and not file:
        raise UserError("nothing_said", "Say what is to be erased.", "text", "Give a text or a file.")
    if text and len(text) < SHORTEST:
        raise UserError(
            "too_short",
            f"{len(text)} character{'s' * (len(text) != 1)} would be found in almost every row.",
            "text",
            f"Give at least {SHORTEST} characters.",
        )
    for place, given, longest in (("text", text, LONGEST_TEXT), ("file", file, LONGEST_FILE)):
        if len(given) > longest:
            raise UserError("too_long", f"That is longer than {longest} characters.", place, "Shorten it.")
    if not why:
        raise UserError(
            "why_missing", "Say why.", "why", "Whoever decides will want to know, and so may an auditor."
        )
    if len(why) > LONGEST_WHY:
        raise UserError("too_long", f"That is longer than {LONGEST_WHY} characters.", "why", "Shorten it.")


def _check_scope(versions: list[DatasetVersion]) -> None:
    if not versions:
        raise UserError(
            "nothing_there", "There is no version to look in.", "dataset", "Choose another dataset."
        )
    if len(versions) > MOST_VERSIONS:
        raise UserError(
            "too_many_versions",
            f"That would look in {len(versions)} versions; {MOST_VERSIONS} is the most at once.",
            "dataset",
            "Choose one dataset after the other.",
        )
    for version in versions:
        if not version.job.ended:
            raise Conflict(
                "still_checked", f"{version} is still being checked or made.", "Wait until it is done."
            )
