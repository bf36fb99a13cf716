"""Checkpoints: everything a run needs to go on as if it had never stopped. Safetensors and JSON, never
pickles.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workers.contract import Message, TrainSpec
from workers.training.base import sha256_of
from workers.training.errors import TrainingError
from workers.training.files import (
    fresh_folder,
    read_json,
    read_tensors,
    replace_folder,
    write_json,
    write_tensors,
)
from workers.training.forward import Decoder
from workers.training.model import trainable

KEEP = 2
"""Checkpoints kept: one to go on from and one in case."""
STATE_FILE = "state.json"


class Identity(Message):
    """What a checkpoint belongs to; going on with anything else would give neither of the two runs."""

    spec: TrainSpec
    data_sha256: str
    base_digest: str
    plan_digest: str


@dataclass
class Progress:
    """How far a run has come. The step is the index into the plan."""

    step: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    base_heldout_loss: float | None = None


def save_checkpoint(
    folder: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, progress: Progress, identity: Identity
) -> None:
    """Write `folder`/step-N whole, then drop the oldest beyond `KEEP`."""
    partial = fresh_folder(folder / ".partial")
    try:
        _write_parts(partial, decoder, optimizer, progress, identity)
    except OSError:  # a full disk stays as empty as it was
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, folder / f"step-{progress.step:08d}")
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def _write_parts(
    partial: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, progress: Progress, identity: Identity
) -> None:
    tensors, scalars = _optimizer_parts(optimizer)
    write_tensors(partial / "lora.safetensors", dict(trainable(decoder.model)))
    write_tensors(partial / "optimizer.safetensors", tensors)
    write_tensors(partial / "rng.safetensors", _rng())
    write_json(
        partial / STATE_FILE,
        {
            "progress": vars(progress),
            "identity": identity.model_dump(mode="json"),
            "optimizer": scalars,
            "files": {file.name: sha256_of(file) for file in sorted(partial.glob("*.safetensors"))},
        },
    )


def load_newest(
    folder: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, identity: Identity
) -> Progress | None:
    """Put the newest checkpoint into decoder, optimizer and random generators; None when there is none.

    Raises TrainingError when it is damaged or belongs to another run; nothing has been changed then.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    state = _verified_state(newest)
    _check_identity(newest, Identity.model_validate(state["identity"]), identity)
    saved = read_tensors(newest / "lora.safetensors")
    for name, parameter in trainable(decoder.model).items():
        parameter.data.copy_(saved[name])
    decoder.refresh()
    _restore_optimizer(optimizer, read_tensors(newest / "optimizer.safetensors"), state["optimizer"])
    _restore_rng(read_tensors(newest / "rng.safetensors"))
    return Progress(**state["progress"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _verified_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = read_json(checkpoint / STATE_FILE)
        damaged = [name for name, digest in state["files"].items() if sha256_of(checkpoint / name) != digest]
    except (OSError, ValueError, KeyError):
        damaged = [STATE_FILE]
        state = {}
    if damaged:
        raise TrainingError(
            "checkpoint_damaged",
            f"{damaged[0]} of the checkpoint {checkpoint} is not as it was written. "
            "Delete that folder to go on from the checkpoint before it, or start without --resume.",
            fault="platform",
        )
    return state


def _check_identity(checkpoint: Path, saved: Identity, current: Identity) -> None:
    if saved == current:
        return
    then, now = saved.spec.model_dump(), current.spec.model_dump()
    changed = [f"{name} {then[name]} -> {now[name]}" for name in now if then[name] != now[name]]
    changed += [
        name for name in ("data_sha256", "base_digest") if getattr(saved, name) != getattr(current, name)
    ]
    raise TrainingError(
        "checkpoint_mismatch",
        f"The checkpoint {checkpoint} belongs to another run; "
        f"changed since: {', '.join(changed) or 'the samples'}. "
        "Resume with the settings, data and base of that run, or start without --resume.",
    )


def _optimizer_parts(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's tensors and its other values, each by `<parameter index>.<name>`."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in _flat(values):
            if torch.is_tensor(value):
                # Tables that bitsandbytes shares between parameters have to be apart in a safetensors file.
                tensors[f"{index}.{name}"] = value.clone()
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """bitsandbytes writes its tensors in a dictionary of their own, and reads them either way."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng() -> dict[str, torch.Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _restore_rng(saved: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
