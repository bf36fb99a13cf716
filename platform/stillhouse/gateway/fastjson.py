"""The JSON of requests and answers, by msgspec: the gateway reads and writes several texts for each of them.

What the standard library reads and msgspec does not (half a surrogate pair, a number beyond a float) is read
by the standard library, and so are its errors, which say where.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

_read = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder().encode
_write_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_write_ascii = json.JSONEncoder(separators=(",", ":")).encode


def decode(raw: bytes, otherwise: Callable[[bytes], Any] = json.loads) -> Any:
    """What `json.loads` makes of it; `otherwise` reads what msgspec refuses, and raises the error."""
    try:
        return _read(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return otherwise(raw)


def encode(value: object) -> bytes:
    """Without spaces, text as it is; raises UnicodeEncodeError for half a surrogate pair."""
    return _write(value)


def encode_any(value: object) -> bytes:
    """The same with a question mark for half a surrogate pair."""
    try:
        return _write(value)
    except UnicodeEncodeError:
        return _write_text(value).encode("utf-8", "replace")


def encode_ascii(value: object) -> bytes:
    """Without spaces, everything beyond ASCII escaped, half a surrogate pair included."""
    try:
        if (written := _write(value)).isascii():
            return written
    except UnicodeEncodeError:
        pass
    return _write_ascii(value).encode()
