"""Changes to a dataset version: the fixes that its report suggests, and the forms for others."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from pydantic import ValidationError

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.datasets.deriving import derive_version
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import get_version, version_by_id, versions
from stillhouse.training.queries import newest_held_out
from stillhouse.web.access import in_workspace
from workers.contract import (
    Append,
    DropDuplicates,
    DropOverlap,
    DropProblems,
    DropRows,
    Filter,
    Mask,
    Operation,
    RowAt,
    SplitSpec,
    TakeSide,
    Trim,
)

MOST_ROWS = 10_000
"""Row numbers that a form takes."""
STEP_WORDS = {
    "drop_rows": "Rows left out by number",
    "drop_duplicates": "Repeated rows left out",
    "drop_problems": "Rows with warnings left out",
    "trim": "Texts trimmed",
    "mask": "Personal data and secrets masked",
    "filter": "Rows chosen by what they say",
    "append": "Rows of another version added",
    "map_role": "A role read as another one",
    "drop_containing": "Rows erased",
    "drop_overlap": "Rows that stand elsewhere too left out",
    "take_side": "One side of a split taken",
}


@dataclass(frozen=True)
class Fix:
    """Something that one click mends. `fields` are the form's hidden ones."""

    title: str
    text: str
    button: str
    fields: tuple[tuple[str, str], ...]

    @property
    def needs_another(self) -> bool:
        """It compares with another version, and so is made, not tried."""
        return any(name == "other" for name, _ in self.fields)


KIND_WORDS = {
    "email": "E-mail addresses",
    "phone": "Telephone numbers",
    "iban": "Bank accounts (IBAN)",
    "card_number": "Card numbers",
    "national_id": "National ids",
    "private_key": "Private keys",
    "api_key": "API keys",
    "access_token": "Access tokens",
    "password": "Passwords",
}
"""What people call the kinds of personal data and secrets."""
TOLD_OTHERWISE = frozenset({"duplicate_row", "ignored_field"})
"""Warnings that have a better fix above, or are no reason to leave a row out."""


def fixes(by: Membership, body: dict[str, Any]) -> list[Fix]:
    """What a report suggests, the weightiest first."""
    doctor: dict[str, Any] = body.get("doctor") or {}
    found = [
        *_overlap_fixes(by, doctor),
        *_secret_fixes(doctor),
        *_duplicate_fixes(doctor),
        *_text_fixes(doctor),
    ]
    for code, rows in sorted((body.get("warning_counts") or {}).items()):
        if code in TOLD_OTHERWISE:
            continue
        found.append(
            Fix(
                f"Warning {code.replace('_', ' ')}: {rows:,} row{'s' * (rows != 1)}",
                "Rows with this warning are left out.",
                "Leave them out",
                (("change", "drop_problems"), ("code", code)),
            )
        )
    return found


def _overlap_fixes(by: Membership, doctor: dict[str, Any]) -> list[Fix]:
    found = []
    for overlap in doctor.get("overlap") or []:
        rows = overlap["exact"] + overlap["same_question"] + overlap["near"]
        if not rows or not overlap.get("sha256"):
            continue
        other = versions(by).filter(rows_sha256=overlap["sha256"]).first()
        if other is not None:
            found.append(
                Fix(
                    _count(rows, f"is also in {overlap['name']}", f"are also in {overlap['name']}"),
                    "Adapters are evaluated on those rows. Learned by heart, they prove nothing.",
                    "Leave them out",
                    (("change", "drop_overlap"), ("other", other.pk)),
                )
            )
    return found


def _secret_fixes(doctor: dict[str, Any]) -> list[Fix]:
    personal: dict[str, Any] = doctor.get("personal") or {}
    if not personal:
        return []
    words = ", ".join(f"{KIND_WORDS.get(kind, kind)}: {found['rows']:,}" for kind, found in personal.items())
    return [
        Fix(
            "Personal data or secrets",
            f"Rows by kind: {words}. Each becomes a mark such as [EMAIL].",
            "Mask them",
            (("change", "mask"), *(("kind", kind) for kind in personal)),
        )
    ]


def _duplicate_fixes(doctor: dict[str, Any]) -> list[Fix]:
    exact, near = doctor.get("exact_duplicates", 0), doctor.get("near_duplicates", 0)
    found = []
    if exact:
        text = "The first of each stays. What is there twice is learned twice."
        fields = (("change", "drop_duplicates"),)
        title = f"{_count(exact, 'repeats an earlier one', 'repeat earlier ones')}"
        found.append(Fix(title, text, "Leave the repeats out", fields))
    if near:
        text = "The first of each group stays; exact repeats go as well."
        fields = (("change", "drop_near"),)
        title = _count(near, "says almost what an earlier one says", "say almost what earlier ones say")
        found.append(Fix(title, text, "Leave them out", fields))
    return found


def _count(rows: int, one: str, many: str) -> str:
    return f"1 row {one}" if rows == 1 else f"{rows:,} rows {many}"


def _text_fixes(doctor: dict[str, Any]) -> list[Fix]:
    residue = (doctor.get("template_residue") or {}).get("rows", 0)
    kinds = (
        ("space", doctor.get("leading_space", 0), "Answers begin with white space", "It goes."),
        ("residue", residue, "Control tokens of a chat template stand in the text", "The tokens go."),
        (
            "control",
            doctor.get("control_characters", 0),
            "Invisible characters",
            "They are taken away.",
        ),
    )
    return [
        Fix(
            f"{what}: {rows:,} row{'s' * (rows != 1)}",
            text,
            "Trim them",
            (("change", "trim"), ("what", kind)),
        )
        for kind, rows, what, text in kinds
        if rows
    ]


def steps_in_words(version: DatasetVersion, body: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What each operation that made the version did: words, rows before and after, examples. `body`: of its
    report."""
    done = ((body or {}).get("derivation") or {}).get("operations", [])
    asked = version.operations or []
    return [
        {
            "words": STEP_WORDS.get(operation["op"], operation["op"]),
            "done": done[index] if index < len(done) else None,
            "went": done[index]["rows_in"] - done[index]["rows_out"] if index < len(done) else 0,
        }
        for index, operation in enumerate(asked)
    ]


@in_workspace("POST")
def dataset_change(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Make a new version by the change that the form names; a split makes two."""
    version = get_version(by, id, number)
    form = request.POST
    others = [version_by_id(by, form["other"])] if form.get("other") else []
    asked = asked_operations(form)
    held_out, why = newest_held_out(by), form.get("why", "")
    made = [
        derive_version(
            by=by, version=version, operations=[operation], others=others, why=why, held_out=held_out
        )
        for operation in asked
    ]
    words = " and ".join(str(each) for each in made)
    messages.success(
        request, f"{words} {'are' if len(made) > 1 else 'is'} being made. {version} stays as it is."
    )
    return redirect("dataset_version", by.workspace.slug, made[0].dataset_id, made[0].number)


def asked_operations(form: QueryDict) -> list[Operation]:
    """The operations of a form, each for a version of its own; UserError `unknown_change`, `bad_change`."""
    change = form.get("change", "")
    if change not in CHANGES:
        raise UserError("unknown_change", "No such change is known.", "change", "Reload the page.")
    try:
        return CHANGES[change](form)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            "bad_change",
            f"That change cannot be made: {problem['msg']}.",
            str(problem["loc"][0]) if problem["loc"] else "change",
            "Check what you filled in and try again.",
        ) from error


def _filter(form: QueryDict) -> list[Operation]:
    text = form.get("contains", "").strip()
    if not text:
        raise UserError("nothing_said", "Say what the rows contain.", "contains", "Fill in a word or more.")
    field = form.get("field", "") or "any"
    return [Filter(field=field, contains=text, keep=form.get("keep") != "drop")]


def _append(form: QueryDict) -> list[Operation]:
    if not form.get("other"):
        raise UserError("nothing_said", "Choose the version to add.", "other", "Choose one and try again.")
    return [Append(source=1)]


def _drop_rows(form: QueryDict) -> list[Operation]:
    numbers = re.findall(r"\d{1,12}", form.get("rows", ""))[: MOST_ROWS + 1]
    if not numbers or len(numbers) > MOST_ROWS:
        raise UserError(
            "bad_rows", f"Give one to {MOST_ROWS:,} row numbers.", "rows", "Write them like this: 3, 17, 42."
        )
    return [DropRows(rows=[RowAt(row=int(each)) for each in numbers])]


def _split(form: QueryDict) -> list[Operation]:
    try:
        share = float(form.get("share", "") or 0.1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 0.5:
        raise UserError(
            "bad_share",
            "The share held out is no number between 0 and 0.5.",
            "share",
            "0.1 holds out a tenth.",
        )
    split = SplitSpec(share=share, group=form.get("group", "").strip())
    return [TakeSide(split=split, side="train"), TakeSide(split=split, side="heldout")]


CHANGES: dict[str, Callable[[QueryDict], list[Operation]]] = {
    "drop_duplicates": lambda form: [DropDuplicates()],
    "drop_near": lambda form: [DropDuplicates(near=True)],
    "drop_problems": lambda form: [DropProblems(codes=form.getlist("code"))],
    "drop_overlap": lambda form: [DropOverlap(source=1)],
    "drop_rows": _drop_rows,
    "trim": lambda form: [Trim.model_validate({"what": form.getlist("what")})],
    "mask": lambda form: [Mask(kinds=form.getlist("kind"))],
    "filter": _filter,
    "append": _append,
    "split": _split,
}
