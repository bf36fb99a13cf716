"""Looks at a folder of weights before anything loads it: what may be inside, and whether it is whole."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from stillhouse.core.errors import UserError
from workers.contract.estimate import BaseShape
from workers.contract.shape import shape_of_config
from workers.contract.weights import BaseFolderError, check_scaling, digest_base, template_sha256

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack"})
OWN_SPLITTING = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes with which transformers 5 splits at spaces as SentencePiece does, whatever tokenizer.json says. The
R1 distills of Llama and Qwen3 name one, and have a tokenizer of bytes: their spaces would be lost."""
CLASS_NOT_ASKED = ("qwen2",)
"""Kinds of model for which transformers takes its own class in any case."""
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 * 1024**2  # the limit of the safetensors format itself
MAX_CONFIG = 64 * 1024**2


@dataclass(frozen=True)
class BaseFolder:
    """A folder that passed every check."""

    path: Path
    digest: str
    template_sha256: str
    shape: BaseShape


def read_folder(path: Path) -> BaseFolder:
    """Check the folder of a base and digest its weights; raises UserError naming the file and what to do.

    Nothing in it is executed or unpickled. Reads every weight file once.
    """
    if not path.is_dir():
        raise UserError(
            "no_such_folder", f"There is no folder {path}.", "path", "Give the folder that holds the weights."
        )
    _refuse_code(path)
    _check_whole(path)
    _check_tokenizer(path)
    shape = read_shape(path)
    try:
        check_scaling(path)
    except BaseFolderError as error:
        raise UserError(
            error.code, str(error), "config.json", "Do so wherever the base lies, and add it again."
        ) from error
    try:
        return BaseFolder(path, digest_base(path), template_sha256(path), shape)
    except BaseFolderError as error:
        raise UserError(
            error.code, str(error), "path", "Copy the base's files again, all of them."
        ) from error


def read_shape(path: Path) -> BaseShape:
    """The shape of the base in a folder, from config.json and the headers of its weights."""
    sizes: dict[str, int] = {}
    for file in path.glob("*.safetensors"):
        sizes.update(_check_safetensors(file))
    try:
        return shape_of_config(
            read_config(path / "config.json"),
            parameters=sum(sizes.values()),
            tied=not any(name.endswith("lm_head.weight") for name in sizes),
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            "bad_config",
            "config.json does not give the base's sizes.",
            "config.json",
            "Copy the file again, or use a base of the Llama, Qwen2 or Qwen3 family.",
        ) from error


def read_config(path: Path) -> dict[str, object]:
    """A JSON object from a file of the folder; empty when the file is not there."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CONFIG:
        raise UserError("bad_config", f"{path.name} is larger than any configuration.", str(path))
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            "bad_config", f"{path.name} is not JSON: {error}.", str(path), "Copy the file again."
        ) from error
    if not isinstance(body, dict):
        raise UserError(
            "bad_config", f"{path.name} does not hold a JSON object.", str(path), "Copy the file again."
        )
    return body


def _refuse_code(path: Path) -> None:
    """Remote code and pickles run whatever they like when they are loaded, so they may not even lie there."""
    for file in sorted(path.rglob("*")):
        where = str(file.relative_to(path))
        if file.suffix == ".py":
            raise UserError(
                "remote_code",
                f"The folder holds Python code ({where}).",
                where,
                "Stillhouse runs no code from a base: remove it.",
            )
        if file.suffix in PICKLES:
            raise UserError(
                "unsafe_weights",
                f"{where} may hold a pickle, which can run code when it is loaded.",
                where,
                "Keep only .safetensors weights in the folder.",
            )
    for config in sorted(path.glob("*config*.json")):
        if "auto_map" in read_config(config):
            raise UserError(
                "remote_code",
                f"{config.name} asks for the base's own Python code (auto_map).",
                config.name,
                "Use a base that transformers supports by itself.",
            )


def _check_whole(path: Path) -> None:
    if not read_config(path / "config.json"):
        raise UserError(
            "no_config", f"There is no config.json in {path}.", "config.json", "Copy the whole base."
        )
    if not (path / "tokenizer.json").is_file():
        raise UserError(
            "no_tokenizer", f"There is no tokenizer.json in {path}.", "tokenizer.json", "Copy the whole base."
        )
    weights = {file.name: file for file in path.glob("*.safetensors")}
    if not weights:
        raise UserError(
            "no_weights", f"There is no .safetensors file in {path}.", "path", "Copy the weights, too."
        )
    shards = read_config(path / INDEX).get("weight_map", {})
    missing = sorted(set(map(str, shards.values())) - weights.keys()) if isinstance(shards, dict) else []
    if missing:
        raise UserError(
            "weights_incomplete",
            f"{INDEX} names {missing[0]}, which is missing.",
            missing[0],
            "Copy it, too.",
        )
    for file in weights.values():
        _check_safetensors(file)


def _check_tokenizer(path: Path) -> None:
    """Refuse a folder that engines would read text with otherwise than the base was trained on."""
    named = read_config(path / "tokenizer_config.json").get("tokenizer_class")
    kind = read_config(path / "config.json").get("model_type")
    decoder = json.dumps(read_config(path / "tokenizer.json").get("decoder"))
    if named in OWN_SPLITTING and kind not in CLASS_NOT_ASKED and '"ByteLevel"' in decoder:
        raise UserError(
            "wrong_tokenizer_class",
            f"tokenizer_config.json names {named}, which does not fit the base's tokenizer.json: engines "
            "with transformers 5 would drop every space of a prompt.",
            "tokenizer_config.json",
            'Write "tokenizer_class": "PreTrainedTokenizerFast" into it, also where engines read it, and add '
            "the base again.",
        )


def _check_safetensors(file: Path) -> dict[str, int]:
    """Compare the file's length with what its header promises: catches cut copies and Git LFS pointers.

    Returns the elements of every tensor by its name.
    Layout: 8 bytes little-endian length of the header, the header as JSON, then the tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
        raw = stream.read(length) if length <= MAX_HEADER else b""
    try:
        tensors = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        sizes = {name: prod(entry["shape"]) for name, entry in tensors.items()}
        whole = len(prefix) + length + int(end) == size
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            "bad_weights",
            f"{file.name} is not a whole safetensors file ({size} bytes).",
            file.name,
            "Copy the file again.",
        )
    return sizes
