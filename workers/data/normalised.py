"""The one typed layout of checked rows, as Parquet: what training reads, whatever the original was.

Columns: `row` (int64, place in the original), `source` (file or sheet, dictionary-encoded), `messages` (list
of role, content, reasoning_content, tool_calls as JSON and tool_call_id; older files lack the last two),
`extra` (the fields beside the conversation as one JSON object, or null; older files lack the column). Derived
files also say where a row came from: `origin` (int32, index of the source) and `origin_row` (int64). The
metadata of the file carries LAYOUT, by which it is recognised.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from workers.data.beside import extra_json, extra_of
from workers.data.chat import TOOLS, ChatMessage, Extra, Row, ToolCall, tools_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LAYOUT = b"stillhouse.rows/1"
KEY = b"stillhouse.layout"
ROWS_A_BATCH = 1024
GROUP_BYTES = 32 * 1024**2
MAGIC = b"PAR1"


def schema() -> "pa.Schema":
    import pyarrow as pa  # noqa: PLC0415 - it takes a while to load; readers of JSON Lines do without

    message = pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.large_string(), nullable=False),
            pa.field("reasoning_content", pa.large_string()),
            pa.field("tool_calls", pa.large_string()),
            pa.field("tool_call_id", pa.string()),
        ]
    )
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("messages", pa.list_(message), nullable=False),
            pa.field("extra", pa.large_string()),
        ],
        metadata={KEY: LAYOUT},
    )


def record_batch(
    numbers: Sequence[int],
    sources: Sequence[str],
    rows: Sequence[list[ChatMessage]],
    extras: Sequence[Extra | None],
) -> "pa.RecordBatch":
    """Checked rows under the layout."""
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    flat = [message for messages in rows for message in messages]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(messages) for messages in rows], out=offsets[1:])
    codes = pa.array([_CODES[message["role"]] for message in flat], pa.int8())
    # Plain strings: pyarrow reads no nested dictionary across row groups.
    roles = pa.array(list(_CODES), pa.string()).take(codes)
    contents = pa.array([message["content"] for message in flat], pa.large_string())
    reasonings = pa.array([message.get("reasoning_content") for message in flat], pa.large_string())
    calls: Sequence[str | None] = [None] * len(flat)
    answered = calls
    if any("tool_calls" in message for message in flat):
        calls = [_encode(message["tool_calls"]) if "tool_calls" in message else None for message in flat]
        answered = [message.get("tool_call_id") for message in flat]
    layout = schema()
    messages = pa.StructArray.from_arrays(
        [roles, contents, reasonings, pa.array(calls, pa.large_string()), pa.array(answered, pa.string())],
        fields=list(layout.field("messages").type.value_type),
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.array(numbers, pa.int64()),
            pa.array(sources, pa.string()).dictionary_encode(),
            pa.ListArray.from_arrays(pa.array(offsets), messages, type=layout.field("messages").type),
            pa.array([extra_json(extra) for extra in extras], pa.large_string()),
        ],
        schema=layout,
    )


_CODES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_decode = msgspec.json.Decoder(list[ToolCall]).decode


def _encode(calls: list[ToolCall]) -> str:
    return msgspec.json.encode(calls).decode()


class RowsWriter:
    """Writes batches to `path`, in a thread of its own; the file is whole once it is closed without an error.

    What the disk refuses is raised by a later call.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._writer = pq.ParquetWriter(
            path,
            schema(),
            compression="zstd",
            compression_level=1,
            use_dictionary=["source", "messages.list.element.role"],
            write_statistics=["row"],  # nobody asks for the first and the last of all texts
        )
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, batch: "pa.RecordBatch") -> None:
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        with self._thread:
            self._flush()
            if self._writing is not None:
                self._writing.result()
        self._writer.close()

    def _flush(self) -> None:
        """A row group of what is held: many small ones would be slow to read. Rows of two are in memory."""
        import pyarrow as pa  # noqa: PLC0415

        if self._writing is not None:
            self._writing.result()
        if self._held:
            table = pa.Table.from_batches(self._held)
            self._writing = self._thread.submit(self._writer.write_table, table)
        self._held, self._bytes = [], 0


def is_normalised(path: Path) -> bool:
    """Whether `path` has the layout. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return False
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError):  # a damaged one, which its reader will say
        return False
    if (found.metadata or {}).get(KEY) != LAYOUT:
        return False
    # The mark alone proves nothing: anybody can write it into a file.
    return all(
        field.name == "extra" if field.name not in found.names else _is_like(found.field(field.name), field)
        for field in schema()
    )


def _is_like(found: "pa.Field", wanted: "pa.Field") -> bool:
    """Same type. Parquet has a name of its own for the items of a list, and older files dictionaries of
    roles."""
    import pyarrow as pa  # noqa: PLC0415

    if wanted.name != "messages":
        return bool(found.type == wanted.type)
    if not pa.types.is_list(found.type) or not pa.types.is_struct(found.type.value_type):
        return False
    inside, fields = list(found.type.value_type), list(wanted.type.value_type)
    names = [field.name for field in fields]
    roles = (fields[0].type, pa.dictionary(pa.int8(), pa.string()))
    return (
        [field.name for field in inside] in (names, names[:3])
        and inside[0].type in roles
        and inside[1:] == fields[1 : len(inside)]
    )


def batches_of(file: "pq.ParquetFile", columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
    """The file's rows, ROWS_A_BATCH at a time; columns that it lacks are left out.

    Row group by row group: across them pyarrow cannot read the nested dictionaries of older files.
    """
    there = [name for name in columns if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        yield from file.iter_batches(
            batch_size=ROWS_A_BATCH, row_groups=[group], columns=there, use_threads=False
        )


def read_normalised(path: Path, *, extra: bool = False) -> Iterator[Row]:
    """The rows of a file that has the layout, in order; on request with the fields beside the messages."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    file = pq.ParquetFile(path, memory_map=True)
    for batch in batches_of(file, ["messages", "extra"]):
        has_extra = "extra" in batch.schema.names
        texts = batch.column("extra").to_pylist() if has_extra else [None] * batch.num_rows
        for messages, text in zip(batch.column("messages").to_pylist(), texts, strict=True):
            row = Row(messages=[message_of(message) for message in messages])
            kept = extra_of(text) if text and (extra or _NAMES_TOOLS in text) else None
            if kept and extra:
                row["extra"] = kept
            if tools := tools_of(kept):
                row["tools"] = tools
            yield row


_NAMES_TOOLS = f'"{TOOLS}":'
"""As `extra_json` writes it, of whatever object."""


def message_of(found: dict[str, Any]) -> ChatMessage:
    """A message as it was kept: fields that it does not have are absent. Raises ValueError for calls that
    were not written here."""
    if found.get("tool_calls") is not None:
        try:
            found["tool_calls"] = _decode(found["tool_calls"])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(str(error)) from None
    for name in _OPTIONAL:
        if name in found and found[name] is None:
            del found[name]
    return cast(ChatMessage, found)


_OPTIONAL = ("reasoning_content", "tool_calls", "tool_call_id")
