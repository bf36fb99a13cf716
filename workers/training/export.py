"""The adapter as others read it: PEFT's safetensors and configuration, and a manifest written last."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from workers.contract import (
    AdapterManifest,
    BaseReference,
    GoldenSample,
    ManifestFile,
    TrainResult,
    TrainSpec,
)
from workers.training.base import Base, sha256_of
from workers.training.files import fresh_folder, replace_folder, write_bytes, write_json, write_tensors

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


def write_adapter(
    folder: Path,
    model: Any,
    *,
    base: Base,
    base_digest: str,
    template_sha256: str,
    spec: TrainSpec,
    data_sha256: str,
    result: TrainResult,
    golden: list[GoldenSample],
    run_id: str,
) -> None:
    """Write adapter_model.safetensors (fp32), adapter_config.json and manifest.json, or nothing."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415 - slow to import

    name = spec.base or base.path.name
    partial = fresh_folder(folder.with_name(f".{folder.name}.partial"))
    write_tensors(partial / "adapter_model.safetensors", get_peft_model_state_dict(model))
    write_json(partial / "adapter_config.json", _peft_config(model, name, spec.base_revision))
    manifest = AdapterManifest(
        run=run_id,
        files=[_manifest_file(file) for file in sorted(partial.iterdir())],
        base=BaseReference(name=name, revision=spec.base_revision, digest=base_digest),
        template_sha256=template_sha256,
        think=spec.think,
        spec=spec,
        data_sha256=data_sha256,
        # Where it lay on this machine is nobody's business later.
        result=result.model_copy(update={"adapter": folder.name}),
        golden=golden,
        versions=versions(),
    )
    write_bytes(partial / "manifest.json", manifest.model_dump_json(indent=1).encode())
    replace_folder(partial, folder)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _manifest_file(file: Path) -> ManifestFile:
    return ManifestFile(name=file.name, size=file.stat().st_size, sha256=sha256_of(file))


def _peft_config(model: Any, base_name: str, revision: str) -> dict[str, object]:
    """adapter_config.json as PEFT and vLLM read it, in an order that does not change from run to run."""
    config = model.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=base_name, revision=revision or None, inference_mode=True)
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return {key: getattr(value, "value", value) for key, value in sorted(plain.items())}
