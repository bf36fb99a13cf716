"""In a trainer's place, for `benchmarks/jobs.py`: holds its slot, tells its steps, trains nothing.

It ends as a run whose data needs a change, so that there is nothing to store: what is measured is who gets a
slot, when, and at what cost. Imports no library: a thousand of these start on two cores.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

STEPS = 4
SECONDS = float(os.environ["BENCH_JOB_SECONDS"])
FAILURE = {
    "fault": "user",
    "code": "measured",
    "message": "A job of a benchmark: there was nothing to train.",
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    json.loads((arguments.folder / "job.json").read_bytes())
    with os.fdopen(arguments.events_fd, "w", encoding="utf-8") as events:
        for step in range(1, STEPS + 1):
            time.sleep(SECONDS / STEPS)
            event = {"phase": "training", "step": step, "total_steps": STEPS, "values": {"loss": 1.0 / step}}
            print(json.dumps(event), file=events, flush=True)
    (arguments.folder / "failure.json").write_text(json.dumps(FAILURE), encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main())
