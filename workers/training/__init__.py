"""The training engine: a specification, a base and data in; losses and an adapter out. Knows no platform.

| file | what it does |
| --- | --- |
| engine.py | `train`, from top to bottom |
| base.py | a base folder: what it is, what is refused (no torch) |
| prepare.py | rows to samples; what is too long is left out and reported |
| render.py | chats to token ids by the base's own template and think contract |
| plan.py | every step's packs, decided before the first; learning rates |
| packs.py | a pack: documents end to end, and where they begin and are learnt from |
| planner.py | how a run trades time for memory, and one step down |
| model.py | the base by transformers, LoRA modules by PEFT |
| frozen.py | the base's linear weights: NF4 by bitsandbytes, unpacked once or before each use |
| lora.py | masters in one vector; linear layers and MLP with their LoRA in one product |
| attention.py | causal attention inside each document |
| forward.py | the decoder, put together from these |
| step.py | one optimizer step, read when its figures are there; once more with less memory |
| loss.py | head and loss on trained positions only, in chunks |
| measure.py | held-out loss and log-probabilities, nothing learnt |
| checkpoint.py | safetensors and JSON; resume by plan index |
| ranks.py | the same run on several devices: packs shared out, gradients added up |
| golden.py | log-probabilities for the serving proof |
| export.py | the adapter for PEFT and vLLM, manifest last |
| settings.py | a TrainSpec from the command line |
"""

import logging
import os
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
    # Read when torch is loaded. Where other processes share the cores, threads that spin at the end of every
    # product cost most of the time; on idle cores it makes no difference.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from workers.training.engine import train as run  # noqa: PLC0415 - importing this package must stay cheap
    from workers.training.ranks import RankJob, started  # noqa: PLC0415

    job = RankJob(
        spec=spec,
        base=str(base),
        data=str(data),
        eval_data=None if eval_data is None else str(eval_data),
        out=str(out),
        resume=resume,
        parent=os.getpid(),
    )
    with started(job) as ranks:
        result = run(
            spec,
            base=base,
            data=data,
            eval_data=eval_data,
            out=out,
            on_event=on_event,
            resume=resume,
            run_id=run_id,
            should_stop=should_stop,
            ranks=ranks,
        )
    assert result is not None  # the first rank's
    return result
