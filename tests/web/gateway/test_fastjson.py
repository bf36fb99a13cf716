"""The gateway reads and writes what the standard library does."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.gateway.fastjson import decode, encode, encode_any, encode_ascii

HALF = "\ud800"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read_again_by_both(value: object) -> None:
    for raw in (encode(value), encode_any(value), encode_ascii(value)):
        assert json.loads(raw) == decode(raw) == value
    assert encode_ascii(value).isascii()
    assert decode(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "text",
    ['"\\ud800"', "1e400", "NaN", "-Infinity", '{"a": 1, "a": 2}', "9" * 30, "[1, 2.50, -0.0]", '"\\u00e9"'],
)
def test_what_msgspec_refuses_is_read_like_the_rest(text: str) -> None:
    assert repr(decode(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1,]", b"01", b"{'a': 1}", b"1 2", b'"\x01"', b'"\xff"', b"\xc3\xa9"]
)
def test_what_is_no_json_raises_the_error_of_the_standard_library(raw: bytes) -> None:
    with pytest.raises(ValueError) as theirs:
        json.loads(raw)
    with pytest.raises(ValueError) as ours:
        decode(raw)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode({"text": HALF})
    assert encode_any({"text": HALF}) == b'{"text":"?"}'
    assert encode_ascii({"text": HALF, "more": "\u00e9"}) == b'{"text":"\\ud800","more":"\\u00e9"}'


def test_what_json_has_no_word_for_is_null() -> None:
    assert encode([math.nan, math.inf]) == b"[null,null]"
