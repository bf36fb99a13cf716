"""From a file of any kind to batches of raw rows: JSON Lines, JSON, CSV, Excel, Parquet, packed or not.

What a file is, its bytes say, never its name. Everything streams, nothing is extracted by name, and what a
file unpacks to is counted against a limit.
"""

from workers.data.readers.opening import open_source
from workers.data.readers.source import Batch, Limits, RawRow, Source, Unreadable

__all__ = ["Batch", "Limits", "RawRow", "Source", "Unreadable", "open_source"]
