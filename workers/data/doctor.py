"""The verdict on a file, from its figures: ready, ready with warnings, or not, and what to do next."""

from collections import Counter, defaultdict
from typing import Literal

import numpy as np

from workers.contract import Counted, Doctor, Overlap, SplitCounts
from workers.data.figures import BINS, PLACES, Found

LABELS = 20
"""Answers shown with their counts."""
UNEVEN = 0.9
"""Share of rows with one and the same answer from which the balance is worth a word."""
USUAL_FORMAT = 0.8
"""Share of answers in one format from which the others are doubted."""
ENDS = ".,;:!?\"' "
SECRETS = ("private_key", "api_key", "access_token", "password")
KIND_NAMES = {
    "email": "e-mail addresses",
    "phone": "telephone numbers",
    "iban": "bank accounts",
    "card_number": "card numbers",
    "national_id": "national ids",
    "private_key": "private keys",
    "api_key": "API keys",
    "access_token": "access tokens",
    "password": "passwords",
}
Verdict = Literal["ready", "ready_with_warnings", "not_ready"]


def diagnose(
    found: Found,
    *,
    repeats: int,
    near: int,
    groups: list[list[int]],
    near_checked: bool,
    overlap: list[Overlap],
    split: SplitCounts | None,
) -> Doctor:
    """`found`: the figures of the whole file."""
    answers = found.answers.most_common(LABELS)
    constant = found.valid > 1 and not found.long_answers and len(found.answers) == 1
    blocking = _blocking(found)
    repeated = bool(answers) and answers[0][1] > 1 and len(found.answers) <= max(LABELS, found.valid // 4)
    doubts = [*_leaks(overlap, split), *_doubts(found, repeats, near, constant, labels=repeated)]
    verdict: Verdict = "not_ready" if blocking else "ready_with_warnings" if doubts else "ready"
    return Doctor(
        verdict=verdict,
        reasons=[*blocking, *doubts],
        next_step=_next_step(verdict, found, constant),
        exact_duplicates=repeats,
        near_duplicates=near,
        near_groups=groups,
        near_checked=near_checked,
        personal={
            kind: Counted(rows=rows, places=found.personal_places.get(kind, [])[:PLACES])
            for kind, rows in found.personal.most_common()
        },
        question_lengths=_histogram(found, 0),
        reasoning_lengths=_histogram(found, 1),
        answer_lengths=_histogram(found, 2),
        empty_reasoning=found.warning_counts["empty_think"],
        unclosed_reasoning=found.warning_counts["unclosed_think"],
        answers=answers if repeated else [],
        json_answers=found.json_answers,
        off_format=_off_format(found),
        alike_answers=_alike(found) if repeated else [],
        constant_answer=constant,
        leading_space=found.leading_space,
        template_residue=Counted(rows=found.residue, places=found.residue_places[:PLACES])
        if found.residue
        else None,
        scripts=dict(found.scripts.most_common(10)),
        control_characters=found.control,
        overlap=overlap,
        split=split,
        fields={name[:200]: rows for name, rows in found.fields.most_common()},
    )


def _histogram(found: Found, kind: int) -> list[tuple[int, int]]:
    counts = found.lengths[kind]
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    bins = range(max(1, int(used[0])), min(BINS, int(used[-1]) + 1))
    return [(2**index - 1, int(counts[index])) for index in bins]


def _off_format(found: Found) -> Counted | None:
    rest = found.valid - found.json_answers
    if not rest or found.json_answers < USUAL_FORMAT * found.valid:
        return None
    return Counted(rows=rest, places=found.other_answers[:PLACES])


def _alike(found: Found) -> list[list[str]]:
    """Labels that a reader would take for one."""
    spelt: dict[str, list[str]] = defaultdict(list)
    for answer, _ in found.answers.most_common():
        spelt[" ".join(answer.casefold().split()).strip(ENDS)].append(answer)
    return [answers for answers in spelt.values() if len(answers) > 1][:LABELS]


def _blocking(found: Found) -> list[str]:
    if not found.rows:
        return ["The file holds no rows."]
    if not found.valid:
        return [f"None of the {found.rows:,} rows can be used."]
    return []


def _leaks(overlap: list[Overlap], split: SplitCounts | None) -> list[str]:
    """What makes an evaluation say more than is true."""
    leaks = [
        f"{_rows(each.total, 'stands', 'stand')} in {each.name} as well: what is measured there would be "
        "known by heart."
        if each.name
        else f"{_rows(each.total)} of the held-out side also stand on the side that is trained on."
        for each in overlap
        if each.total
    ]
    if split is not None and split.spec.share and not split.heldout:
        leaks.append("The split holds out no row. Choose a larger share.")
    if split is not None and split.spec.group and not split.groups:
        leaks.append(f"No row has a value in `{split.spec.group}`, so the split is not by group.")
    return leaks


def _doubts(found: Found, repeats: int, near: int, constant: bool, *, labels: bool) -> list[str]:
    """Sentences, the weightiest first. `labels`: answers repeat so much that they look like labels."""
    bad = found.rows - found.valid
    secrets = [KIND_NAMES[kind] for kind in SECRETS if found.personal[kind]]
    persons = [KIND_NAMES[kind] for kind in KIND_NAMES if kind not in SECRETS and found.personal[kind]]
    top = found.answers.most_common(1)
    uneven = not constant and top and found.valid >= 20 and top[0][1] >= UNEVEN * found.valid
    off_format, alike = _off_format(found), _alike(found) if labels else []
    mixed = 0 < found.with_reasoning < found.valid
    doubts = [
        (secrets, f"Secrets were found: {', '.join(secrets)}. A model may repeat them to anybody."),
        (constant, "Every row has the same answer, so the model would learn to say it whatever is asked."),
        (bad, f"{_rows(bad)} of {found.rows:,} cannot be used and will be left out."),
        (persons, f"Personal data was found: {', '.join(persons)}."),
        (
            found.residue,
            f"Control tokens of a chat template stand as text in {_rows(found.residue)}.",
        ),
        (
            found.warning_counts["unclosed_think"],
            f"In {_rows(found.warning_counts['unclosed_think'])} a think block is opened and never closed.",
        ),
        (mixed, f"Reasoning is shown in {found.with_reasoning:,} of {found.valid:,} rows only."),
        (uneven, f"{top[0][1]:,} of {found.valid:,} rows have the same answer." if uneven else ""),
        (
            off_format,
            f"The answer is no JSON in {_rows(off_format.rows)}, and in all others it is."
            if off_format
            else "",
        ),
        (alike, f"Answers differ only in spelling: {', '.join(map(repr, alike[0][:3]))}." if alike else ""),
        (repeats, f"{_rows(repeats, 'repeats', 'repeat')} an earlier row exactly."),
        (near, f"{_rows(near, 'says', 'say')} almost the same as an earlier row."),
        (found.leading_space, f"In {_rows(found.leading_space)} the answer begins with white space."),
        (found.control, f"Invisible control characters stand in {_rows(found.control)}."),
    ]
    return [sentence for holds, sentence in doubts if holds]


def _rows(count: int, one: str = "", many: str = "") -> str:
    """`one` and `many`: what a row does, and what several do."""
    return f"1 row {one}".rstrip() if count == 1 else f"{count:,} rows {many}".rstrip()


def _next_step(verdict: Verdict, found: Found, constant: bool) -> str:
    if verdict == "not_ready" and found.error_counts.total() == found.error_counts["nothing_trainable"] == 1:
        return "Say which columns hold the question and the answer."
    if verdict == "not_ready":
        return "Look at the errors below, or say how the columns should be read, and check again."
    if any(found.personal[kind] for kind in SECRETS):
        return "Mask the secrets, or remove them from the file; withdraw keys that are in use."
    if constant:
        return "Check that the right column is read as the answer."
    if verdict == "ready_with_warnings":
        return "Read the warnings; if they are what you expect, start a run."
    return "Start a run with this data."


def merged_counts(into: Counter[str], more: Counter[str], most: int) -> None:
    """Add counts; keys beyond `most` are not kept."""
    for key, count in more.items():
        if key in into or len(into) < most:
            into[key] += count
