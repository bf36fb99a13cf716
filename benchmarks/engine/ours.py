"""One side: the engine, through its public `train()`, a few steps at a time."""

import argparse
import shutil
from pathlib import Path

from benchmarks.engine.turns import Turns, peak_resident_bytes
from workers.contract import TrainProgress, TrainSpec
from workers.training import train
from workers.training.plan import STEPS_AHEAD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True, help="a TrainSpec as JSON")
    parser.add_argument("--heldout", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device-bytes", type=int, default=0, help="take the GPU for one of this size")
    parsed = parser.parse_args()
    if parsed.device_bytes:
        limit_device(parsed.device_bytes)
    spec = TrainSpec.model_validate_json(parsed.spec.read_text(encoding="utf-8"))
    turns = Turns(spec.max_steps)
    # A step launched ahead would run in another side's turn.
    STEPS_AHEAD.update(cuda=0)
    losses: list[float] = []
    ready = False

    def on_event(progress: TrainProgress) -> None:
        nonlocal ready
        if progress.loss is None:
            return
        if not ready:
            # The engine does not say when it is loaded; its first step is the warm-up, which nobody times.
            turns.wait()
            ready = True
        losses.append(progress.loss)
        turns.step(progress.step)

    result = train(
        spec, base=parsed.base, data=parsed.data, eval_data=parsed.heldout, out=parsed.out, on_event=on_event
    )
    facts = result.model_dump(mode="json")
    turns.done(**facts, losses=losses, peak_resident_bytes=peak_resident_bytes())
    shutil.rmtree(parsed.out)


def limit_device(size: int) -> None:
    """Let torch allocate no more than `size` bytes, and say that no more is free."""
    import torch  # noqa: PLC0415 - only a GPU run needs it here

    free, total = torch.cuda.mem_get_info(0)
    if size > total:
        raise SystemExit(f"This GPU has {total} bytes; {size} were asked for.")
    torch.cuda.set_per_process_memory_fraction(size / total)
    torch.cuda.mem_get_info = lambda *_: (min(free, size), size)


if __name__ == "__main__":
    main()
