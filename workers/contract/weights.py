"""What identifies a base's files: the digest over its weights and the digest of its chat template; and what
of its configuration nobody reads.

Platform (`manage.py base add`), trainer and agent ask the same, each of its own copy of the files.
Standard library only: nothing here loads a weight or a tokenizer.
"""

import hashlib
import json
from math import log
from pathlib import Path

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"


class BaseFolderError(ValueError):
    """The folder of a base lacks something. `code` is stable; the text is for the person who chose the
    folder."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def digest_base(path: Path) -> str:
    """sha256 (hex) over the sorted lines `<sha256>  <name>\\n` of the folder's `*.safetensors` files.

    Reads every weight file once; about a second per gigabyte. Raises BaseFolderError `no_weights`.
    """
    lines = [f"{_digest_file(file)}  {file.name}\n" for file in path.glob("*.safetensors")]
    if not lines:
        raise BaseFolderError("no_weights", f"There is no .safetensors file in {path}.")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def template_text(path: Path) -> str:
    """The chat template that transformers and vLLM would use: `chat_template.jinja`, else the tokenizer's
    own.

    Raises BaseFolderError `no_template` or `bad_tokenizer_config`.
    """
    file = path / TEMPLATE_FILE
    template = (
        file.read_text(encoding="utf-8") if file.is_file() else _tokenizer_template(path / TOKENIZER_CONFIG)
    )
    if not template.strip():
        raise BaseFolderError(
            "no_template", f"There is no chat template in {path} ({TEMPLATE_FILE} or {TOKENIZER_CONFIG})."
        )
    return template


def template_sha256(path: Path) -> str:
    """sha256 (hex) of the chat template's text in UTF-8."""
    return hashlib.sha256(template_text(path).encode()).hexdigest()


def check_scaling(path: Path) -> None:
    """Raises BaseFolderError `unread_attention_factor` for a factor of YaRN under a name that neither
    transformers 5 nor vLLM reads, as in the config.json of DeepSeek-R1-0528-Qwen3-8B."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        scaling = config.get("rope_parameters") or config.get("rope_scaling")
        if not isinstance(scaling, dict) or "attn_factor" not in scaling or "attention_factor" in scaling:
            return
        meant = float(scaling["attn_factor"]) * (0.1 * log(float(scaling["factor"])) + 1)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BaseFolderError(
            "bad_config",
            f"config.json in {path} does not say how it scales positions ({error}). Copy the file again.",
        ) from error
    raise BaseFolderError(
        "unread_attention_factor",
        f"config.json in {path} has an attn_factor, which transformers 5 and vLLM do not read: attention "
        f'would be too sharp. Write "attention_factor": {round(meant, 6)} beside it.',
    )


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokenizer_template(config: Path) -> str:
    """`chat_template` of tokenizer_config.json: a text, or named texts of which `default` counts."""
    if not config.is_file():
        return ""
    try:
        body = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseFolderError("bad_tokenizer_config", f"{config} is not JSON: {error}.") from error
    template = body.get("chat_template") if isinstance(body, dict) else None
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""
