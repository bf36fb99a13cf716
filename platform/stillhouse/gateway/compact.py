"""JSON without spaces, by encoders that are made once: making one takes as long as a small text."""

import json
from collections.abc import Callable

Encode = Callable[[object], str]

compact: Encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Text as it is, half a surrogate pair included."""
compact_ascii: Encode = json.JSONEncoder(separators=(",", ":")).encode
"""Everything beyond ASCII escaped."""
