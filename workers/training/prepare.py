"""From files to samples: read, hold out, render, and leave out what is too long, saying so."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from workers.contract import SplitSpec, TrainSpec
from workers.data import BadRow, Row, read_rows, split_rows
from workers.training.base import sha256_of
from workers.training.errors import TrainingError
from workers.training.render import Renderer, Sample


@dataclass(frozen=True)
class Samples:
    """What a run trains on and is measured on."""

    train: list[Sample]
    heldout: list[Sample]
    excluded: list[Sample]
    """Training samples that are longer than the limit."""
    heldout_excluded: list[Sample]


def check_data(data: Path, eval_data: Path | None, spec: TrainSpec) -> str:
    """sha256 of the data. Raises TrainingError when a file is missing or is not the one the spec names."""
    digests = [
        (name, wanted, _digest(path))
        for name, path, wanted in (("data", data, spec.data_sha256), ("eval", eval_data, spec.eval_sha256))
        if path is not None
    ]
    for name, wanted, found in digests:
        if wanted is not None and wanted != found:
            raise TrainingError(
                f"{name}_mismatch",
                f"The {name} file is {found[:12]}… by digest, but {wanted[:12]}… is wanted. Fetch it again.",
                fault="platform",
            )
    return digests[0][2]


def read_samples(data: Path, eval_data: Path | None, spec: TrainSpec, renderer: Renderer) -> Samples:
    """Render both sides. Raises TrainingError for bad rows, none to train on, or too many left out."""
    rows = _rows(data, extra=bool(spec.heldout_group))
    heldout: list[Row] = []
    if eval_data is not None:
        heldout = _rows(eval_data)
    elif spec.heldout_share:
        split = SplitSpec(share=spec.heldout_share, seed=spec.seed, group=spec.heldout_group)
        rows, heldout = split_rows(rows, split)
    if not rows:
        raise TrainingError(
            "nothing_trainable", "After the held-out split no row is left to train on. Lower heldout_share."
        )
    fitting, excluded = _by_length(renderer.samples(rows), spec)
    heldout_fitting, heldout_excluded = _by_length(renderer.samples(heldout), spec, side="held-out ")
    return Samples(fitting, heldout_fitting, excluded, heldout_excluded)


def write_excluded(file: Path, samples: Samples) -> None:
    """One JSON line for every sample left out: its side, row and turn (from 0) and length in tokens."""
    sides = (("train", samples.excluded), ("heldout", samples.heldout_excluded))
    lines = [
        json.dumps({"side": side, "row": sample.row, "turn": sample.turn, "tokens": len(sample)})
        for side, found in sides
        for sample in found
    ]
    file.unlink(missing_ok=True)
    if lines:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise TrainingError(
            "no_data", f"The file {path} cannot be read: {error.strerror}. Check the path."
        ) from None


def _rows(path: Path, *, extra: bool = False) -> list[Row]:
    try:
        rows = list(read_rows(path, extra=extra))
    except BadRow as error:
        raise TrainingError(
            "bad_row", f"{path.name}: {error} `python -m workers validate` lists all such rows."
        ) from None
    if not rows:
        raise TrainingError("nothing_trainable", f"{path.name} is empty. Write one JSON object per line.")
    return rows


def _by_length(
    samples: Iterable[Sample], spec: TrainSpec, side: Literal["", "held-out "] = ""
) -> tuple[list[Sample], list[Sample]]:
    """(fitting, too long). Raises TrainingError when too large a share is too long.

    Few samples are held out, so there one may always be too long.
    """
    rendered = list(samples)
    fitting = [each for each in rendered if len(each) <= spec.max_length]
    excluded = [each for each in rendered if len(each) > spec.max_length]
    allowed = max(spec.max_excluded_share * len(rendered), 1 if side else 0)
    if excluded and (not fitting or len(excluded) > allowed):
        longest = max(len(sample) for sample in excluded)
        raise TrainingError(
            "too_many_excluded",
            f"{len(excluded)} of {len(rendered)} {side}samples exceed max_length ({spec.max_length} tokens); "
            f"at most {spec.max_excluded_share:.0%} may be left out. Lengths: {histogram(rendered)}. "
            f"Set max_length up to {longest}, shorten the rows, or raise max_excluded_share.",
        )
    return fitting, excluded


def histogram(samples: Sequence[Sample]) -> str:
    """Samples per range of tokens, in powers of two: `64-127: 12, 128-255: 3`."""
    edges = [0, *(2**power for power in range(5, 32))]
    counts = [(low, high, sum(low <= len(each) < high for each in samples)) for low, high in pairwise(edges)]
    return ", ".join(f"{low}-{high - 1}: {count}" for low, high, count in counts if count)
