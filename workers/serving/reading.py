"""Whether the engine splits text as the base's tokenizer.json says, which is what adapters are trained with.

An engine takes the tokenizer class that tokenizer_config.json names, and some classes split otherwise than
the file. An engine that drops every space answers on, only worse: nothing else would show it.
"""

from pathlib import Path

from tokenizers import Tokenizer

from workers.serving.engine import Engine, EngineError

TEXT = "On 1 May 2026 she paid 1,234.50 €;\n\n  it wasn't “naïve”: f(x) = x**2 → 你好\n"
"""Words, runs of spaces and lines, numbers, signs, and letters of several bytes, in their composed form."""


def check_reading(engine: Engine, base: str, folder: Path) -> None:
    """Raises EngineError where the engine splits text otherwise than tokenizer.json in `folder`, its base."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise EngineError(
            f"The tokenizer.json of base {base} cannot be read. Copy the whole base."
        ) from error
    wanted = tokenizer.encode(TEXT, add_special_tokens=False).ids
    found = engine.tokens(base, TEXT)
    if found != wanted:
        raise EngineError(
            f"The engine reads text otherwise than the tokenizer.json of base {base} says "
            f"({len(found)} tokens in the place of {len(wanted)}). In the folder that the engine reads write "
            '"tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, and restart the engine.'
        )
