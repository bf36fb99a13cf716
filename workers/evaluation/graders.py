"""How an answer is compared with the expected one. Both come without reasoning; scores are 0..1."""

import json
from collections.abc import Sequence

from workers.contract import Grader


class _NoJson:
    """What `parse` gives for text that is not JSON; None is a JSON value."""


NO_JSON = _NoJson()


def grade(output: str, expected: str, graders: Sequence[Grader]) -> dict[str, float]:
    """Grader kind -> score. `json_fields` is left out for rows whose expected answer is not a JSON object."""
    scores: dict[str, float] = {}
    for grader in graders:
        score = (
            exact_match(output, expected) if grader.kind == "exact_match" else json_fields(output, expected)
        )
        if score is not None:
            scores[grader.kind] = score
    return scores


def exact_match(output: str, expected: str) -> float:
    """1 for the same text after trimming, or for the same JSON value when both are JSON."""
    if output.strip() == expected.strip():
        return 1.0
    wanted = parse(expected)
    return float(wanted is not NO_JSON and same_json(parse(output), wanted))


def json_fields(output: str, expected: str) -> float | None:
    """Share of the expected object's fields that the answer has with the same value; None without an object.

    Fields that the answer has beyond the expected ones cost nothing here; `exact_match` sees them.
    """
    wanted = parse(expected)
    if not isinstance(wanted, dict):
        return None
    given = parse(output)
    if not isinstance(given, dict):
        return 0.0
    if not wanted:
        return float(not given)
    return sum(name in given and same_json(given[name], value) for name, value in wanted.items()) / len(
        wanted
    )


def parse(text: str) -> object:
    """The JSON value of a whole text, or NO_JSON. Strict: no NaN, no key twice, nothing around it."""
    try:
        value: object = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return NO_JSON
    return value


def same_json(left: object, right: object) -> bool:
    """Equality of JSON values: 1 is 1.0 but not true, and the order of an object's fields says nothing."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return left == right


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
