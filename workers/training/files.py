"""Writing files that are whole or not there at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save


def write_bytes(file: Path, content: bytes) -> None:
    """Write and force to disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(file: Path, value: object) -> None:
    write_bytes(file, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As safetensors. Raises OSError when the disk is full."""
    write_bytes(file, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(file.read_bytes())
    return found


def read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def fresh_folder(folder: Path) -> Path:
    """An empty folder in the place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def replace_folder(finished: Path, folder: Path) -> None:
    """Move a finished folder into its place, taking an older one out of the way first."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
