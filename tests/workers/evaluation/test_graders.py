"""Graders: what counts as the same answer."""

import pytest

from workers.contract import Grader
from workers.evaluation.graders import exact_match, grade, json_fields


@pytest.mark.parametrize(
    ("output", "expected", "score"),
    [
        ("Texas", "Texas", 1),
        ("  Texas\n", "Texas", 1),
        ("texas", "Texas", 0),
        ('{"a": 1, "b": [2, 3]}', '{"b":[2,3],"a":1}', 1),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": 1, "c": 2}', '{"a": 1}', 0),
        ('{"a": 1, "a": 1}', '{"a": 1}', 0),
        ('{"a": NaN}', '{"a": NaN}', 1),
        ('{"a": NaN }', '{"a": NaN}', 0),
        ('{"a": 1} and more', '{"a": 1}', 0),
        ("[" * 100_000, '{"a": 1}', 0),
        ("1" * 10_000, '{"a": 1}', 0),
        ("null", "None", 0),
        ("", "null", 0),
        ("", "", 1),
    ],
)
def test_exact_match_is_the_same_text_or_the_same_json_value(
    output: str, expected: str, score: float
) -> None:
    assert exact_match(output, expected) == score


@pytest.mark.parametrize(
    ("output", "expected", "score"),
    [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}', 1),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": null}', '{"a": null, "b": null}', 0.5),
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1, "b": 2}', 1),
        ("not json", '{"a": 1}', 0),
        ("[1]", '{"a": 1}', 0),
        ("{}", "{}", 1),
        ('{"a": 1}', "{}", 0),
        ('{"a": 1}', "[1]", None),
        ("x", "x", None),
    ],
)
def test_json_fields_is_the_share_of_the_expected_fields(
    output: str, expected: str, score: float | None
) -> None:
    assert json_fields(output, expected) == score


def test_grade_leaves_json_fields_out_where_there_is_no_object() -> None:
    graders = [Grader(kind="exact_match"), Grader(kind="json_fields")]
    assert grade("yes", "yes", graders) == {"exact_match": 1.0}
    assert grade('{"a": 1}', '{"a": 1, "b": 2}', graders) == {"exact_match": 0.0, "json_fields": 0.5}
