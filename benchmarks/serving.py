"""What publishing costs, with a real engine: one JSON line.

    python benchmarks/serving.py --base var/bases/smollm2-135m-instruct [--adapter FOLDER] [--only PART ...]

- `placed`, `cold`, `flips`, `peers`: publishing and rolling back (serving_publish.py), beside the load call
  of the bare engine and one token, and unload + load of one name, as people do without us.
- `kill`, `memory`: an engine killed, and 200 versions published and retired (serving_faults.py).
- `hostile`: bad requests of every kind beside good ones (serving_hostile.py).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.report import Line  # noqa: E402
from benchmarks.serving_bench import Bench  # noqa: E402
from benchmarks.serving_faults import measure_engine_kill, measure_memory  # noqa: E402
from benchmarks.serving_hostile import measure_hostile  # noqa: E402
from benchmarks.serving_publish import (  # noqa: E402
    measure_cold,
    measure_flips,
    measure_peers,
    measure_placed,
)
from benchmarks.serving_stage import set_up, train  # noqa: E402


def run(stack: ExitStack, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.adapter
    if folder is None:
        folder = train(
            options.base, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        )
    bench = Bench(set_up(stack, options.base, folder, options.engine_threads))
    began = time.perf_counter()
    versions = [bench.stage.version(factor) for factor in (1.0, 1.2, 1.4)]
    bench.until_proven(versions)
    bench.take_fingerprints([version.serving_name for version in versions])
    parts: dict[str, Callable[[], None]] = {
        "placed": lambda: measure_placed(bench, versions, options.times),
        "kill": lambda: measure_engine_kill(bench, versions),
        "cold": lambda: measure_cold(bench, max(1, options.times // 4)),
        "flips": lambda: measure_flips(bench, versions, options.flips),
        "peers": lambda: measure_peers(bench, versions[0], options.times),
        "hostile": lambda: measure_hostile(bench, versions[0]),
        "memory": lambda: measure_memory(bench, options.cycles, options.memory_seconds),
    }
    for name in options.only or parts:
        print(f"{time.perf_counter() - began:6.0f} s  {name}", file=sys.stderr, flush=True)
        parts[name]()
        print(json.dumps(bench.figures), file=sys.stderr, flush=True)
    return bench.figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the demonstration base")
    parser.add_argument("--adapter", type=Path, help="a trained adapter of it; trained anew without")
    parser.add_argument("--engine-threads", type=int, help="of the engine; by default as many as cores")
    parser.add_argument("--times", type=int, default=20, help="publications and rollbacks")
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--cycles", type=int, default=200, help="publications and retirements")
    parser.add_argument("--memory-seconds", type=float, default=3600, help="of the cycles at most")
    parser.add_argument("--only", nargs="*", help="placed kill cold flips peers hostile memory")
    options = parser.parse_args()
    line = Line("serving")
    with ExitStack() as stack:
        figures = run(stack, options)
    line.end({"engine_threads": options.engine_threads or os.cpu_count(), **figures})


if __name__ == "__main__":
    main()
