"""The figure of `escalation.py` without an engine: PEFT answers, batch by batch.

    python benchmarks/escalation_local.py --base DIR --adapter DIR --rows more.jsonl

For a machine whose cores are too busy for an engine's hundred thousand small steps. Margin and entropy are
those of the same model; greedy, bf16, the adapter merged.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from benchmarks.escalation import TOP, Answer, judged, report  # noqa: E402
from benchmarks.report import Line  # noqa: E402

MOST_TOKENS = 64
"""Of an answer; the expected ones have 50 at most."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=3600, help="begin no batch after these")
    chosen, line = parser.parse_args(), Line("escalation")
    tokenizer = AutoTokenizer.from_pretrained(chosen.base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(chosen.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, chosen.adapter).merge_and_unload().to(torch.bfloat16).eval()
    questions = [json.loads(line)["messages"] for line in chosen.rows.read_text("utf-8").splitlines()]
    answers: list[Answer] = []
    until = time.monotonic() + chosen.seconds
    for start in range(0, len(questions), chosen.batch):
        if time.monotonic() > until:
            break
        answers += ask_all(model, tokenizer, questions[start : start + chosen.batch])
        print(f"{len(answers)} of {len(questions)}", file=sys.stderr, flush=True)
    line.end(report(answers, f"PEFT, {chosen.adapter.name}"))


def ask_all(model: Any, tokenizer: Any, questions: list[list[dict[str, str]]]) -> list[Answer]:
    prompts = [
        tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        for messages in questions
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        made = model.generate(
            **inputs,
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    said = made.sequences[:, inputs["input_ids"].shape[1] :]
    contents: list[list[dict[str, Any]]] = [[] for _ in questions]
    ended = [False] * len(questions)
    for step, logits in enumerate(made.logits):
        values, tokens = torch.log_softmax(logits, -1).topk(TOP)
        for index, content in enumerate(contents):
            token = int(said[index, step])
            ended[index] = ended[index] or token == tokenizer.eos_token_id
            if not ended[index]:
                content.append(entry(tokenizer, token, values[index].tolist(), tokens[index].tolist()))
    return [
        judged(
            messages,
            "".join(one["token"] for one in content) if end else "",
            content,
        )
        for messages, content, end in zip(questions, contents, ended, strict=True)
    ]


def entry(tokenizer: Any, token: int, values: list[float], tokens: list[int]) -> dict[str, Any]:
    """As OpenAI's `logprobs.content` has it."""
    top = [
        {"token": tokenizer.decode([one]), "logprob": value}
        for one, value in zip(tokens, values, strict=True)
    ]
    return {
        "token": tokenizer.decode([token]),
        "logprob": values[tokens.index(token)],
        "top_logprobs": top,
    }


if __name__ == "__main__":
    main()
