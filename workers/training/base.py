"""A base model as a folder: what it is, whether it may be trained, and its digests. Loads no torch."""

import hashlib
import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from workers.contract import Sha256, TrainSpec
from workers.contract.estimate import BaseShape
from workers.contract.limits import why_not_learning_rate
from workers.contract.shape import shape_of_config
from workers.contract.weights import (
    BaseFolderError,
    check_scaling,
    digest_base,
    template_sha256,
    template_text,
)
from workers.training.errors import TrainingError

ARCHITECTURES = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
MAX_SERVED_RANK = 64
"""The serving engines start with `--max-lora-rank 64`; a larger adapter could be trained and never served."""
MAX_HEADER_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True)
class Base:
    """A folder that has passed `open_base`."""

    path: Path
    architecture: str
    model_type: str
    """As transformers names it: llama, qwen2 or qwen3."""
    parameters: int
    """Elements of all stored tensors; tied weights count once."""
    weight_bytes: int
    context_length: int
    """Tokens."""
    hidden_size: int
    layers: int
    vocabulary: int
    tensors: frozenset[str]
    """Names of all stored tensors."""
    template: str
    """The Jinja chat template."""

    def has_target(self, name: str) -> bool:
        return any(tensor.endswith(f".{name}.weight") for tensor in self.tensors)

    def linear_targets(self) -> list[str]:
        """Names that LoRA may be put on, for messages."""
        inside = (tensor.split(".") for tensor in self.tensors if ".layers." in tensor)
        return sorted(
            {parts[-2] for parts in inside if parts[-1] == "weight" and parts[-2].endswith("_proj")}
        )


def open_base(path: Path) -> Base:
    """Read and check a base folder. Raises TrainingError for what is incomplete, unknown or runs own code."""
    config = _config(path)
    _refuse_own_code(path, config)
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in ARCHITECTURES:
        raise TrainingError(
            "unsupported_architecture",
            f"The base in {path} has the architecture {architecture}. "
            f"Use one of {', '.join(sorted(ARCHITECTURES))}.",
        )
    if "quantization_config" in config:
        raise TrainingError(
            "quantized_base",
            f"The base in {path} is already quantised. Use the unquantised one; loading quantises it.",
        )
    files = _weight_files(path)
    tensors = {name: shape for file in files for name, shape in _tensor_shapes(file).items()}
    return Base(
        path=path,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        parameters=sum(prod(shape) for shape in tensors.values()),
        weight_bytes=sum(file.stat().st_size for file in files),
        context_length=int(config.get("max_position_embeddings", 0)),
        hidden_size=int(config.get("hidden_size", 0)),
        layers=int(config.get("num_hidden_layers", 0)),
        vocabulary=int(config.get("vocab_size", 0)),
        tensors=frozenset(tensors),
        template=_template(path),
    )


def shape_of(base: Base) -> BaseShape:
    """The numbers of the base that decide memory and time."""
    try:
        return shape_of_config(
            _config(base.path),
            parameters=base.parameters,
            tied=not any(name.endswith("lm_head.weight") for name in base.tensors),
        )
    except ValueError:
        raise TrainingError(
            "damaged_base", f"config.json in {base.path} does not give the base's sizes. Copy it again."
        ) from None


def check_spec(base: Base, spec: TrainSpec) -> None:
    """Refuse what this base cannot train or the serving engine cannot load. Raises TrainingError."""
    if spec.rank > MAX_SERVED_RANK:
        raise TrainingError(
            "rank_too_large",
            f"rank is {spec.rank}; the serving engine loads at most {MAX_SERVED_RANK}. "
            f"Set rank to {MAX_SERVED_RANK} or less.",
        )
    missing = [name for name in spec.target_modules if not base.has_target(name)]
    if missing:
        raise TrainingError(
            "unknown_target",
            f"target_modules names {', '.join(missing)}, which this base does not have. "
            f"It has {', '.join(base.linear_targets())}.",
        )
    unservable = [name for name in spec.target_modules if name not in base.linear_targets()]
    if unservable:
        raise TrainingError(
            "unservable_target",
            f"target_modules names {', '.join(unservable)}, on which the serving engine loads no adapter. "
            f"Use some of {', '.join(base.linear_targets())}.",
        )
    if base.context_length and spec.max_length > base.context_length:
        raise TrainingError(
            "context_too_long",
            f"max_length is {spec.max_length} tokens; this base was made for {base.context_length}. "
            f"Set max_length to {base.context_length} or less.",
        )
    if (why := why_not_learning_rate(spec.learning_rate, base.parameters)) is not None:
        raise TrainingError("learning_rate_out_of_range", why)
    if spec.base_digest is not None:
        _check_digest("base_digest", spec.base_digest, digest_base(base.path), base.path)
    if spec.template_sha256 is not None:
        _check_digest("template_sha256", spec.template_sha256, template_sha256(base.path), base.path)


def sha256_of(file: Path) -> Sha256:
    """sha256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def base_facts(base: Base) -> dict[str, object]:
    """What `python -m workers base` prints and keeps in base.json. Reads every weight file once."""
    return {
        "digest": digest_base(base.path),
        "template_sha256": template_sha256(base.path),
        "architecture": base.architecture,
        "parameters": base.parameters,
        "weight_bytes": base.weight_bytes,
        "context_length": base.context_length,
        "hidden_size": base.hidden_size,
        "layers": base.layers,
        "vocabulary": base.vocabulary,
        "targets": base.linear_targets(),
        "shape": shape_of(base).model_dump(mode="json"),
    }


def _check_digest(name: str, wanted: str, found: str, path: Path) -> None:
    if wanted != found:
        raise TrainingError(
            f"{name}_mismatch",
            f"{name} is {wanted[:12]}… in the settings but {found[:12]}… for {path}. "
            "Put the right base there, or register this one anew.",
            fault="platform",
        )


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise TrainingError(
            "no_safetensors",
            f"The base in {path} has no *.safetensors file. No other format is loaded: convert it.",
        )
    return files


def _template(path: Path) -> str:
    try:
        return template_text(path)
    except BaseFolderError as error:
        raise TrainingError(error.code, str(error)) from None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise TrainingError(
            "no_base", f"There is no folder {path}. Give the folder that holds the base's weights."
        )
    if not (path / "config.json").is_file():
        raise TrainingError("no_base", f"The folder {path} has no config.json, so it is no base model.")
    config = _json(path / "config.json")
    try:
        check_scaling(path)
    except BaseFolderError as error:
        raise TrainingError(error.code, str(error)) from None
    return config


def _refuse_own_code(path: Path, config: dict[str, Any]) -> None:
    configs = {"config.json": config}
    if (path / "tokenizer_config.json").is_file():
        configs["tokenizer_config.json"] = _json(path / "tokenizer_config.json")
    for name, content in configs.items():
        if "auto_map" in content:
            raise TrainingError(
                "remote_code",
                f"{name} in {path} asks for its own Python code (auto_map), which is never run. "
                "Use a base whose architecture transformers knows.",
            )
    if scripts := sorted(file.name for file in path.rglob("*.py")):
        raise TrainingError(
            "remote_code",
            f"The folder {path} holds Python files ({scripts[0]}), which are never run. Remove them first.",
        )


def _tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes from the header of a safetensors file, weights unread."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < size <= MAX_HEADER_BYTES or size + 8 > file.stat().st_size:
            raise TrainingError("damaged_base", f"{file} is not a whole safetensors file. Copy it again.")
        try:
            header = json.loads(stream.read(size))
            return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise TrainingError(
                "damaged_base", f"{file} has a header that cannot be read. Copy it again."
            ) from None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError("incomplete_base", f"{file} is missing. Copy the whole base folder.") from None
    except ValueError:
        raise TrainingError("damaged_base", f"{file} is not JSON. Copy it again.") from None
    if not isinstance(found, dict):
        raise TrainingError("damaged_base", f"{file} is not a JSON object. Copy it again.")
    return found
