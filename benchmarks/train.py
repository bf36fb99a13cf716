"""Training speed on the contracts data: real tokens per second, peak memory, losses. Ends with one JSON line.

    python benchmarks/train.py --base DIR [--runs 3] [--steps 10]

Each run is a process of its own through the public command line, so loading and peak memory are a run's own.
Settings are those of the demonstration: NF4, r=16 on all linear layers, 6 samples a step, at most 2 threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Line  # noqa: E402

SETTINGS = [
    "rank=16",
    "alpha=32",
    "learning_rate=1e-3",
    "batch_size=6",
    "epochs=1",
    "seed=0",
    "golden_samples=0",
]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def one_run(base: Path, steps: int, threads: int, out: Path) -> dict[str, Any]:
    """The result line of one run of `python -m workers train`."""
    settings = [*SETTINGS, f"max_steps={steps}"]
    command = [sys.executable, "-m", "workers", "train", "--base", str(base), "--out", str(out)]
    command += ["--data", str(ROOT / "examples" / "contracts" / "train.jsonl")]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{found['tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=10, help="optimizer steps of 6 samples; 30 are the whole epoch"
    )
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parsed = parser.parse_args()
    line = Line("train")
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            one_run(parsed.base, parsed.steps, parsed.threads, Path(folder) / str(number))
            for number in range(parsed.runs)
        ]
    figures = {
        "real_tokens_per_second": statistics.median(run["tokens_per_second"] for run in runs),
        "all_runs": [run["tokens_per_second"] for run in runs],
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "train_loss": [run["train_loss"] for run in runs],
        "steps": parsed.steps,
        "threads": parsed.threads,
        "base": parsed.base.name,
    }
    line.end(figures, PACKAGES)


if __name__ == "__main__":
    main()
