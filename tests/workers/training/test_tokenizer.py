"""The tokenizer of a base is what its tokenizer.json describes, whatever class its configuration names."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.workers.training.tiny import FAMILIES, change, make_base
from workers.serving.reading import TEXT
from workers.training.errors import TrainingError
from workers.training.tokenizer import encode, load_tokenizer


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_split_as_the_file_says(tmp_path: Path, family: str, named: str) -> None:
    base = make_base(tmp_path / "base", family)
    change(base / "tokenizer_config.json", tokenizer_class=named)
    wanted = Tokenizer.from_file(str(base / "tokenizer.json")).encode(TEXT, add_special_tokens=False)
    tokenizer = load_tokenizer(base)
    assert encode(tokenizer, [TEXT])[0].ids == wanted.ids
    assert tokenizer.decode(wanted.ids) == TEXT
    assert tokenizer.eos_token == FAMILIES[family].end


def test_the_class_that_r1_distills_name_loses_spaces(tmp_path: Path) -> None:
    """Of transformers: once it does not, the refusals of `catalog.folder` have no reason any more."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - brings all models along

    base = make_base(tmp_path / "base", "r1_llama")
    change(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    assert tokenizer.decode(tokenizer.encode("of the Seller", add_special_tokens=False)) == "oftheSeller"


def test_a_base_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "plain")
    (base / "tokenizer.json").unlink()
    with pytest.raises(TrainingError) as refused:
        load_tokenizer(base)
    assert refused.value.code == "slow_tokenizer"
