"""The one typed layout of checked rows, as Parquet: what training reads, whatever the original was.

Columns: `row` (int64, place in the original), `source` (file or sheet, dictionary-encoded), `messages` (list
of role, content, reasoning_content). The metadata of the file carries LAYOUT, by which it is recognised.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workers.data.chat import ChatMessage, Row

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = b"stillhouse.rows/1"
KEY = b"stillhouse.layout"
ROWS_A_BATCH = 1024
MAGIC = b"PAR1"


def schema() -> "pa.Schema":
    import pyarrow as pa  # noqa: PLC0415 - it takes a while to load; readers of JSON Lines do without

    message = pa.struct(
        [
            pa.field("role", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("content", pa.large_string(), nullable=False),
            pa.field("reasoning_content", pa.large_string()),
        ]
    )
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("messages", pa.list_(message), nullable=False),
        ],
        metadata={KEY: LAYOUT},
    )


def record_batch(
    numbers: Sequence[int], sources: Sequence[str], rows: Sequence[list[ChatMessage]]
) -> "pa.RecordBatch":
    """Checked rows under the layout."""
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    flat = [message for messages in rows for message in messages]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(messages) for messages in rows], out=offsets[1:])
    codes = pa.array([_CODES[message["role"]] for message in flat], pa.int8())
    roles = pa.DictionaryArray.from_arrays(codes, pa.array(list(_CODES), pa.string()))
    contents = pa.array([message["content"] for message in flat], pa.large_string())
    reasonings = pa.array([message.get("reasoning_content") for message in flat], pa.large_string())
    layout = schema()
    messages = pa.StructArray.from_arrays(
        [roles, contents, reasonings], fields=list(layout.field("messages").type.value_type)
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.array(numbers, pa.int64()),
            pa.array(sources, pa.string()).dictionary_encode(),
            pa.ListArray.from_arrays(pa.array(offsets), messages, type=layout.field("messages").type),
        ],
        schema=layout,
    )


_CODES = {"system": 0, "user": 1, "assistant": 2}


class RowsWriter:
    """Writes batches to `path`; the file is whole once the context is left without an error."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._writer = pq.ParquetWriter(
            path,
            schema(),
            compression="zstd",
            compression_level=1,
            use_dictionary=["source", "messages.list.element.role"],
        )

    def write(self, batch: "pa.RecordBatch") -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


def is_normalised(path: Path) -> bool:
    """Whether `path` has the layout. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return False
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        found = pq.read_schema(path)
    except pa.ArrowException:
        return False
    return (found.metadata or {}).get(KEY) == LAYOUT


def read_normalised(path: Path) -> Iterator[Row]:
    """The rows of a file that has the layout, in order."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    file = pq.ParquetFile(path, memory_map=True)
    for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=["messages"], use_threads=False):
        for messages in batch.column(0).to_pylist():
            yield Row(messages=[_message(message) for message in messages])


def _message(found: dict[str, Any]) -> ChatMessage:
    if found["reasoning_content"] is None:
        del found["reasoning_content"]
    return cast(ChatMessage, found)
