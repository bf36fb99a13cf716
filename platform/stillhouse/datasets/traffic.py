"""Rows from app traffic: exchanges that a workspace keeps, corrected by somebody who knows better.

They become a file like any other: uploaded, checked, with a version that says which alias answered them, and
in each row the id of its request.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.text import storable
from stillhouse.datasets.actions import create_dataset
from stillhouse.datasets.deriving import derive_version
from stillhouse.datasets.models import Dataset, DatasetVersion, TrafficSource
from stillhouse.datasets.quota import check_room
from stillhouse.datasets.uploading import finish_upload, send_file
from stillhouse.usage.kept import corrected_answer, feedback_on, kept_of
from stillhouse.usage.models import Feedback, KeptExchange
from workers.contract import Append

MOST_PICKS = 1000
"""Exchanges of one version."""


@dataclass(frozen=True)
class Exchange:
    """A kept exchange, read."""

    id: str
    at: datetime
    served: str
    messages: list[dict[str, Any]]
    """Before the answer; empty where the prompt was no text."""
    answer: str
    """Of the first choice; empty where it only called tools."""
    reasoning: str
    choices: int
    rating: str = ""
    """`up` or `down`, from the app; empty where it said nothing."""
    correction: str | None = None
    """The answer as the app would have had it."""

    @property
    def suggested(self) -> str:
        """The answer to learn, unless a person says something else."""
        return self.answer if self.correction is None else self.correction

    @property
    def usable(self) -> bool:
        """It makes a row as it is suggested."""
        return bool(self.messages and self.suggested.strip())

    @property
    def suggested_reasoning(self) -> str:
        """None beside a correction: the model's own leads to another answer."""
        return self.reasoning if self.correction is None else ""


@dataclass(frozen=True)
class Pick:
    """An exchange that somebody chose. None: as it is suggested."""

    request: str
    answer: str | None = None
    reasoning: str | None = None


@dataclass
class _Rows:
    """The file as it comes about."""

    lines: list[bytes] = field(default_factory=list)
    corrected: int = 0


def read_exchange(kept: KeptExchange, said: Feedback | None = None) -> Exchange:
    """What a kept exchange says. Text that Postgres or a page could not hold is replaced."""
    answers = json.loads(kept.answers)
    first = answers[0] if answers else {}
    correction = corrected_answer(said)
    return Exchange(
        id=kept.pk,
        at=kept.at,
        served=kept.served,
        messages=_messages(json.loads(kept.prompt)),
        answer=storable(first.get("content") or ""),
        reasoning=storable(first.get("reasoning") or ""),
        choices=len(answers),
        rating=said.rating if said else "",
        correction=None if correction is None else storable(correction),
    )


def exchanges(by: Membership, kept: Iterable[KeptExchange]) -> list[Exchange]:
    """Those read, with what their apps said."""
    listed = list(kept)
    said = feedback_on(by, listed)
    return [read_exchange(each, said.get(each.pk)) for each in listed]


def taken_into(by: Membership, ids: Sequence[str]) -> dict[str, DatasetVersion]:
    """Which of these exchanges are rows of a version already."""
    sources = TrafficSource.objects.filter(
        upload__dataset__workspace=by.workspace, upload__version__isnull=False, requests__overlap=list(ids)
    ).select_related("upload__version__dataset")
    return {request: source.upload.version for source in sources for request in source.requests}


def make_from_traffic(
    *,
    by: Membership,
    alias: str,
    picks: Sequence[Pick],
    dataset: Dataset | None = None,
    name: str = "",
    held_out: Sequence[DatasetVersion] = (),
    usable_only: bool = False,
) -> DatasetVersion:
    """The chosen exchanges as the next version of `dataset`, or the first one of a new dataset called `name`.

    With `usable_only` exchanges without a text or an answer are left out, not refused. The file goes the
    way of every upload. Raises UserError `nothing_chosen`, `too_many_chosen`, `exchange_gone`, `not_text`,
    `empty_answer`, and what `create_dataset` and uploads raise.
    """
    require(by, "dataset.upload")
    if dataset is not None and dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset")
    chosen = _chosen(by, alias, picks)
    if usable_only:
        chosen = [each for each in chosen if each.usable] or chosen[:1]  # none: the first one says why
    rows = _rows(alias, chosen, {pick.request: pick for pick in picks})
    body = b"".join(rows.lines)
    check_room(by.workspace, len(body))  # before there is an empty dataset
    if dataset is None:
        dataset = create_dataset(by=by, name=name)
    first, last = chosen[0].at, chosen[-1].at
    filename = f"{alias}-{first:%Y-%m-%d}.jsonl"
    upload = send_file(by=by, dataset=dataset, filename=filename, size=len(body), content=BytesIO(body))
    source = TrafficSource.objects.create(
        upload=upload,
        alias=alias,
        requests=[each.id for each in chosen],
        corrected=rows.corrected,
        first_at=first,
        last_at=last,
    )
    version = finish_upload(by=by, upload=upload, held_out=held_out)
    _record(by, version, source)
    return version


def append_to(
    *,
    by: Membership,
    version: DatasetVersion,
    target: DatasetVersion,
    held_out: Sequence[DatasetVersion] = (),
) -> DatasetVersion:
    """The next version of the target's dataset: its rows, and those of `version` after them."""
    source = TrafficSource.objects.filter(upload=version.upload_id).first()
    if source is None:
        raise Conflict("not_from_traffic", f"{version} was not made from app traffic.")
    why = f"Added {source.count} exchanges of {source.alias}"
    return derive_version(
        by=by, version=target, operations=[Append(source=1)], others=[version], why=why, held_out=held_out
    )


def _chosen(by: Membership, alias: str, picks: Sequence[Pick]) -> list[Exchange]:
    """The exchanges, the oldest first."""
    ids = {pick.request for pick in picks}
    if not ids:
        raise UserError("nothing_chosen", "No exchange is chosen.", "take", "Tick at least one.")
    if len(ids) > MOST_PICKS:
        raise UserError(
            "too_many_chosen",
            f"{len(ids):,} are chosen; {MOST_PICKS:,} is the most.",
            "take",
            "Choose fewer.",
        )
    kept = list(kept_of(by, alias).filter(pk__in=ids).order_by("at", "pk"))
    if len(kept) < len(ids):
        raise UserError(
            "exchange_gone",
            f"{len(ids) - len(kept)} of the {len(ids)} chosen exchanges are not kept any more.",
            "take",
            "Reload the page and choose again.",
            status=409,
        )
    return exchanges(by, kept)


def _rows(alias: str, chosen: Sequence[Exchange], picks: dict[str, Pick]) -> _Rows:
    rows = _Rows()
    for each in chosen:
        pick = picks[each.id]
        answer = _typed(pick.answer, each.suggested)
        reasoning = _typed(pick.reasoning, each.suggested_reasoning)
        if not each.messages:
            raise UserError(
                "not_text", f"The prompt of {each.id} is no text.", each.id, "Leave this exchange out."
            )
        if not answer.strip():
            raise UserError(
                "empty_answer",
                f"The answer of {each.id} is empty.",
                each.id,
                "Write what it should have been, or leave the exchange out.",
            )
        corrected = (answer, reasoning) != (each.answer, each.reasoning)
        rows.corrected += corrected
        rows.lines.append(_line(alias, each, answer, reasoning, corrected))
    return rows


def _typed(typed: str | None, suggested: str) -> str:
    """What a form says. Browsers send line ends of their own: what only differs in them is unchanged."""
    if typed is None or _plain(typed) == _plain(suggested):
        return suggested
    return _plain(storable(typed))


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(alias: str, each: Exchange, answer: str, reasoning: str, corrected: bool) -> bytes:
    said = {"role": "assistant", "content": answer}
    if reasoning.strip():
        said["reasoning_content"] = reasoning
    row = {
        "messages": [*each.messages, said],
        "request": each.id,
        "alias": alias,
        "answered_by": each.served,
        "asked_at": each.at.isoformat(timespec="seconds"),
        "corrected": corrected,
    }
    if each.rating:
        row["rating"] = each.rating
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _messages(prompt: object) -> list[dict[str, Any]]:
    """The conversation before the answer. A text completion's prompt is a question, as in uploaded files."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": storable(prompt)}]
    if not isinstance(prompt, list) or not all(isinstance(each, dict) for each in prompt):
        return []
    return [_message(each) for each in prompt]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its text in one piece, and without what an app left empty."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    kept = {name: value for name, value in message.items() if value is not None}
    return {**kept, "content": storable(content or "")}


@transaction.atomic
def _record(by: Membership, version: DatasetVersion, source: TrafficSource) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action="dataset.made_from_traffic",
        object_id=version.pk,
        object_name=str(version),
        details={"alias": source.alias, "exchanges": source.count, "corrected": source.corrected},
    )
