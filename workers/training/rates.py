"""Whether a trained model still reasons: a few held-out prompts, answered and judged by the think contract.

A run on answers alone can lower its loss while the reasoning falls apart; no loss shows that.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from workers.contract import ThinkContract, ThinkRates, TrainSpec
from workers.data.think import judge_text
from workers.training.render import Sample

SHORTEST_ROOM = 64
TAG_TOKENS = 16
"""No tag is longer, even when it is written byte by byte with white space around it."""
MAX_SECONDS = 60.0
"""A device that takes longer for the batch is too slow for this measurement."""


def think_rates(
    model: Any, tokenizer: Any, samples: Sequence[Sample], spec: TrainSpec, device: torch.device
) -> ThinkRates | None:
    """Answer the shortest of `samples` greedily, all in one batch, and judge the reasoning of the replies.

    Only prompts that ask for reasoning are taken, and only those whose own answer fits `think_rate_tokens`.
    A reply ends with its reasoning: the answer after it is not judged. None when no prompt is left, and when
    the device lacks the memory or takes longer than `MAX_SECONDS`. The model is left in training mode.
    """
    asking = [sample for sample in samples if _asks_for_reasoning(sample, spec.think, tokenizer)]
    fitting = [sample for sample in asking if len(sample.target_ids) <= spec.think_rate_tokens]
    chosen = sorted(fitting, key=len)[: spec.think_rate_samples]
    if not chosen:
        return None
    room = min(
        spec.think_rate_tokens, max(SHORTEST_ROOM, 2 * max(len(sample.target_ids) for sample in chosen))
    )
    model.eval()
    try:
        replies = _replies(model, tokenizer, chosen, spec.think, room, device)
    except torch.OutOfMemoryError:
        # The run itself is over and good: it must not fail for a measurement.
        return None
    finally:
        model.train()
    if replies is None:
        return None
    states = [judge_text(reply, spec.think).state for reply in replies]
    return ThinkRates(
        samples=len(states),
        valid=states.count("valid"),
        empty=states.count("empty"),
        missing=states.count("missing"),
        truncated=states.count("truncated"),
        tokens=room,
    )


def _asks_for_reasoning(sample: Sample, think: ThinkContract, tokenizer: Any) -> bool:
    """A plain base is asked by data that reasons; others are always asked, unless their switch is off."""
    if think.family == "plain":
        return think.close in tokenizer.decode(sample.target_ids)
    prompt: str = tokenizer.decode(sample.prompt_ids)
    switched_off = think.switch == "system_prompt" and think.switch_off in prompt
    return not switched_off and not prompt.rstrip().endswith(think.close)


def _replies(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    think: ThinkContract,
    room: int,
    device: torch.device,
) -> list[str] | None:
    """The replies as text, each up to its end token or its closing tag; None when they took too long."""
    end = samples[0].target_ids[-1]
    width = max(len(sample.prompt_ids) for sample in samples)
    ids = torch.full((len(samples), width), end)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, width - len(sample.prompt_ids) :] = torch.tensor(sample.prompt_ids)
        mask[row, width - len(sample.prompt_ids) :] = 1
    config = GenerationConfig(
        max_new_tokens=room, do_sample=False, use_cache=True, pad_token_id=end, eos_token_id=end
    )
    judged = _Judged(tokenizer, think, width)
    # The last position of every prompt is a view, for which a CPU would copy the head once a prompt.
    contiguous = model.get_output_embeddings().register_forward_pre_hook(lambda _, x: (x[0].contiguous(),))
    try:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                stopping_criteria=[judged],
            )
    finally:
        contiguous.remove()
    if judged.out_of_time:
        return None
    generated = [row[width:] for row in out.tolist()]
    return [tokenizer.decode(row[: row.index(end)] if end in row else row) for row in generated]


class _Judged(StoppingCriteria):
    """Stops a reply as soon as its reasoning can be judged: what would follow takes most of the time."""

    def __init__(self, tokenizer: Any, think: ThinkContract, prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.think = think
        self.prompt_tokens = prompt_tokens
        self.deadline = time.monotonic() + MAX_SECONDS
        self.out_of_time = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        replies = input_ids[:, self.prompt_tokens :]
        closed = [self.think.close in text for text in self.tokenizer.batch_decode(replies[:, -TAG_TOKENS:])]
        begins = self.tokenizer.batch_decode(replies[:, :TAG_TOKENS])
        may_open = self.think.prompt_opens or replies.shape[1] < TAG_TOKENS
        self.out_of_time = time.monotonic() > self.deadline
        done = [
            self.out_of_time or ended or not (may_open or self.think.open in begin)
            for ended, begin in zip(closed, begins, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)
