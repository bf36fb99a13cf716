"""What the peer is given to see what the engine sees: token ids, steps, and the LoRA's first weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.engine.workload import Workload
from workers.contract import TrainSpec
from workers.training.model import attach_lora, load_base, trainable
from workers.training.plan import make_plan
from workers.training.prepare import read_samples
from workers.training.render import Renderer, Sample
from workers.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Exported:
    """A workload as tokens."""

    folder: Path
    train: list[Sample]
    heldout: list[Sample]
    steps: list[list[int]]
    """Indexes of the samples of every optimizer step, in the order of the engine's own plan."""

    @property
    def step_tokens(self) -> list[int]:
        """Real (unpadded) tokens of every step."""
        return [sum(len(self.train[index]) for index in step) for step in self.steps]

    @property
    def trained_share(self) -> float:
        """Share of the real tokens that are in the loss."""
        seen = [self.train[index] for step in self.steps for index in step]
        return sum(sample.trained_tokens for sample in seen) / sum(len(sample) for sample in seen)


def export(workload: Workload, base: Path, folder: Path, heldout: Path | None = None) -> Exported:
    """Write samples.json, which `peer.py` reads, into `folder`."""
    spec = workload.spec
    renderer = Renderer(load_tokenizer(base), spec.think, spec.think_policy)
    samples = read_samples(workload.data, heldout, spec, renderer)
    plan = make_plan([len(sample) for sample in samples.train], spec)
    steps = [[index for pack in step for index in pack] for step in plan.steps]
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "train": [_as_json(sample) for sample in samples.train],
        "heldout": [_as_json(sample) for sample in samples.heldout],
        "steps": steps,
        "spec": spec.model_dump(mode="json"),
    }
    (folder / "samples.json").write_text(json.dumps(content), encoding="utf-8")
    return Exported(folder, samples.train, samples.heldout, steps)


def export_lora(base: Path, spec: TrainSpec, file: Path) -> None:
    """The weights that the engine's LoRA begins with, by PEFT's parameter names."""
    model = attach_lora(load_base(base), spec)
    save_file({name: weight.detach().contiguous() for name, weight in trainable(model).items()}, file)


def _as_json(sample: Sample) -> dict[str, Any]:
    return {
        "ids": [*sample.prompt_ids, *sample.target_ids],
        "trained_from": len(sample.prompt_ids) + sample.trained_from,
    }
