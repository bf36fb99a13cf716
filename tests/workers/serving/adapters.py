"""Adapter versions for the tests of the agent: right ones, and ones with something wrong in them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.contract import (
    AdapterManifest,
    BaseReference,
    GoldenSample,
    ManifestFile,
    ThinkContract,
    TrainResult,
    TrainSpec,
)

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
}
RESULT = TrainResult(
    steps=1,
    trained_tokens=1,
    tokens_per_second=1.0,
    train_loss=1.0,
    heldout_loss=None,
    peak_memory_bytes=1,
    adapter="adapter",
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Built:
    """The files of one version, its digest and its serving name."""

    files: dict[str, bytes]
    digest: str
    name: str


def build(
    base_digest: str,
    *,
    adapter: str = "clauses",
    config: Mapping[str, Any] = CONFIG,
    golden: int = 2,
    seed: int = 0,
) -> Built:
    """A version whose every checksum is right."""
    files = {
        "adapter_model.safetensors": f"weights {seed}".encode() * 100,
        "adapter_config.json": json.dumps(dict(config)).encode(),
    }
    samples = [
        GoldenSample(
            prompt_ids=[seed, number, 3],
            target_ids=[7, 8, 9],
            logprobs=[-0.1, -0.2, -0.1],
            base_logprobs=[-3.0, -2.0, -4.0],
        )
        for number in range(golden)
    ]
    manifest = AdapterManifest(
        run="run-1",
        files=[ManifestFile(name=name, size=len(body), sha256=sha256(body)) for name, body in files.items()],
        base=BaseReference(name="tiny", revision="1", digest=base_digest),
        template_sha256="0" * 64,
        think=ThinkContract(family="plain"),
        spec=TrainSpec(),
        data_sha256="0" * 64,
        result=RESULT,
        golden=samples,
        versions={},
    )
    files["manifest.json"] = manifest.model_dump_json().encode()
    digest = sha256(files["manifest.json"])
    return Built(files, digest, f"{adapter}@{digest[:12]}")
