"""Rows under the normalised layout, read like any upload: nothing in them is believed."""

from collections.abc import Iterator
from pathlib import Path

from workers.data.beside import extra_of
from workers.data.normalised import batches_of, message_of
from workers.data.readers.parquets import METADATA_BYTES, reading_errors
from workers.data.readers.source import RawRow


def read_normals(path: Path) -> Iterator[RawRow]:
    """The rows with the numbers and files they had in the original."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - it takes a while to load

    with reading_errors() as at:
        file = pq.ParquetFile(
            path,
            memory_map=False,
            thrift_string_size_limit=METADATA_BYTES,
            thrift_container_size_limit=1_000_000,
        )
        for batch in batches_of(file, ["row", "source", "messages", "extra"]):
            found = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            extras = found.get("extra") or [None] * batch.num_rows
            for number, source, messages, extra in zip(
                found["row"], found["source"], found["messages"], extras, strict=True
            ):
                for message in messages or ():
                    if message is not None:
                        message_of(message)
                at.row += 1
                yield RawRow(number, {"messages": messages}, source, extra=extra_of(extra) or {})
