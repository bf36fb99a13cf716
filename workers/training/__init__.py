"""The training engine: a specification, a base and data in; losses and an adapter out. Knows no platform.

| file | what it does |
| --- | --- |
| engine.py | `train`, from top to bottom |
| base.py | a base folder: what it is, what is refused (no torch) |
| prepare.py | rows to samples; what is too long is left out and reported |
| render.py | chats to token ids by the base's own template and think contract |
| plan.py | every step's samples, decided before the first; learning rates |
| model.py | NF4 by bitsandbytes, LoRA by PEFT |
| loss.py | forward and loss, head on trained positions only |
| checkpoint.py | safetensors and JSON; resume by plan index |
| golden.py | log-probabilities for the serving proof |
| export.py | the adapter for PEFT and vLLM, manifest last |
| settings.py | a TrainSpec from the command line |
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from workers.contract import TrainProgress, TrainResult, TrainSpec


def train(
    spec: TrainSpec,
    *,
    base: Path,
    data: Path,
    eval_data: Path | None,
    out: Path,
    on_event: Callable[[TrainProgress], None],
    resume: bool = False,
    run_id: str = "",
    should_stop: Callable[[], Literal["continue", "checkpoint", "cancel"]] = lambda: "continue",
) -> TrainResult:
    """Train an adapter; see `workers.training.engine.train`. The call loads torch, the import does not."""
    # While it is imported it advises to install a package that would fetch kernels from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from workers.training.engine import train as run  # noqa: PLC0415 - importing this package must stay cheap

    return run(
        spec,
        base=base,
        data=data,
        eval_data=eval_data,
        out=out,
        on_event=on_event,
        resume=resume,
        run_id=run_id,
        should_stop=should_stop,
    )
