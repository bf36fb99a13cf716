"""A base's tokenizer, without anything that could load its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from workers.training.errors import TrainingError


def load_tokenizer(path: Path) -> Any:
    """The base's tokenizer as its tokenizer.json says.

    Not AutoTokenizer, which takes the class that tokenizer_config.json names: with that of the R1 distills of
    Llama and Qwen3, transformers 5 puts another splitting in the place of the file's, and loses every space.
    The agent holds engines to the same file (`workers.serving.reading`).
    """
    if not (path / "tokenizer.json").is_file():
        raise TrainingError(
            "slow_tokenizer",
            f"The base in {path} has no tokenizer.json. Add the fast tokenizer that belongs to it.",
        )
    return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)


def encode(
    tokenizer: Any, texts: Sequence[str], *, literal: bool = False, offsets: bool = False
) -> list[Any]:
    """An encoding for every text, with `ids`, and with `offsets` (characters) where these are asked for.

    Nothing is added, cut or padded. `literal`: what looks like a special token in the texts stays text.
    The tokenizer itself is asked: what transformers keeps beside the ids costs a third as much again.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = literal
    batch = backend.encode_batch if offsets else backend.encode_batch_fast
    return list(batch(list(texts), add_special_tokens=False))
