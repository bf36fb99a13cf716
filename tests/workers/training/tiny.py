"""Tiny bases that behave like the real ones: random weights, a byte-level tokenizer, a family's chat
template.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
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
# The R1 distills: BOS by the template, history keeps only what follows the last </think>, the prompt opens
# the block.
R1 = (
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endif %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set c = m['content'] %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "<｜Assistant｜>{{ c }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>%s{% endif %}"
)
# Qwen3: an empty block in the prompt when thinking is off; earlier turns lose their reasoning.
QWEN3 = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# QwQ: ChatML whose prompt opens the block.
QWQ = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Nemotron on Llama 3: BOS by the template, reasoning switched by a sentence of the system message.
NEMOTRON = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "<|start_header_id|>system<|end_header_id|>\n\n{# detailed thinking on or off #}<|eot_id|>{% endif %}"
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ c | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What a tiny base of a think family is made of."""

    think: ThinkContract
    template: str
    model: str
    """llama, qwen2 or qwen3."""
    bos: str | None
    end: str


DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
FAMILIES = {
    "plain": Family(ThinkContract(family="plain", history_keeps=True), CHATML, "llama", None, "<|im_end|>"),
    "r1_qwen": Family(
        ThinkContract(family="r1_qwen", prompt_opens=True), R1.replace("%s", "<think>\n"), "qwen2", *DEEPSEEK
    ),
    "r1_llama": Family(
        ThinkContract(family="r1_llama", prompt_opens=True), R1.replace("%s", "<think>\n"), "llama", *DEEPSEEK
    ),
    "r1_0528_qwen3": Family(ThinkContract(family="r1_0528_qwen3"), R1.replace("%s", ""), "qwen3", *DEEPSEEK),
    "qwen3": Family(
        ThinkContract(family="qwen3", switch="template_flag"), QWEN3, "qwen3", None, "<|im_end|>"
    ),
    "qwq": Family(ThinkContract(family="qwq", prompt_opens=True), QWQ, "qwen2", None, "<|im_end|>"),
    "nemotron": Family(
        ThinkContract(family="nemotron", switch="system_prompt"),
        NEMOTRON,
        "llama",
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens and template of the family."""
    made = FAMILIES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *DEEPSEEK, "<｜User｜>", "<｜Assistant｜>"]
    special += ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens(special)
    if family != "plain":
        tokenizer.add_tokens(
            [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
        )
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
        # As in the real Qwen bases: padding and ending are the same token for some.
        pad_token=made.end,
        chat_template=made.template,
    )


def make_base(folder: Path, family: str = "plain", layers: int = 2, seed: int = 0) -> Path:
    """Write a tiny base of the family into `folder` and return it."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(family)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
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
    extra = {"head_dim": 16} if FAMILIES[family].model == "qwen3" else {}
    model(config(**shape, **extra)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
