"""A base's tokenizer, without anything that could load its weights."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from workers.training.errors import TrainingError


def load_tokenizer(path: Path) -> Any:
    """The base's tokenizer, from its own files alone."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise TrainingError(
            "slow_tokenizer",
            f"The base in {path} has no tokenizer.json. Add the fast tokenizer that belongs to it.",
        )
    return tokenizer
