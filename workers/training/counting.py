"""Counting the tokens of a dataset with one base, before any run: the same rendering, nothing trained."""

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from workers.contract.weights import digest_base, template_sha256
from workers.contract.workload import CountSpec, TokenCounts, count_tokens
from workers.data import BadRow, Row, read_rows
from workers.data.spread import spread, usual_helpers
from workers.training.errors import TrainingError
from workers.training.render import Renderer
from workers.training.tokenizer import load_tokenizer

ROWS_AT_ONCE = 200
LARGE_FILE = 1024**2
"""From this size on the work is spread over processes."""


def count(
    spec: CountSpec, *, base: Path, data: Path, on_progress: Callable[[int], None] = lambda _: None
) -> TokenCounts:
    """The token histogram of `data`. `on_progress` is told the rows counted, every so often.

    Raises TrainingError for another base or template than `spec` names, and for a row that cannot be used.
    """
    begun = time.monotonic()
    for what, wanted, digest in (
        ("weights", spec.base_digest, digest_base),
        ("template", spec.template_sha256, template_sha256),
    ):
        if wanted is not None and digest(base) != wanted:
            raise TrainingError(
                "base_mismatch",
                f"The base in {base} has another {what} than the catalog. Register it anew.",
                fault="platform",
            )
    renderer = Renderer(load_tokenizer(base), spec.think, spec.think_policy)
    rows = 0

    def batches() -> Iterator[tuple[int, list[Row]]]:
        nonlocal rows
        found = read_rows(data)
        while batch := list(islice(found, ROWS_AT_ONCE)):
            on_progress(rows)
            yield rows, batch
            rows += len(batch)

    def lengths_of(batch: tuple[int, list[Row]]) -> list[tuple[int, int]]:
        first, found = batch
        return [(len(sample), sample.trained_tokens) for sample in renderer.samples(found, first)]

    large = data.stat().st_size >= LARGE_FILE
    processes = usual_helpers() if large else 1
    try:
        lengths = list(chain.from_iterable(spread(lengths_of, batches(), processes)))
    except BadRow as error:
        raise TrainingError("bad_row", f"{data.name}: {error}") from None
    return count_tokens(lengths, rows=rows, seconds=time.monotonic() - begun)
