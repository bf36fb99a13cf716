"""What vLLM answers, base by base, in one process: started by test_families.py, because vLLM wants its own.

Reads jobs as JSON, `[{"base": folder, "adapter": folder, "prompts": [[id, ..], ..], "tokens": n}, ..]`, from
the file named first and writes `[{"base": replies, "adapter": replies}, ..]` into the file named second. A
reply is a list of [token id, log-probability].
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

RANK = 8


def replies(engine: LLM, job: dict[str, Any], adapter: LoRARequest | None) -> list[list[tuple[int, float]]]:
    sampling = SamplingParams(temperature=0, max_tokens=job["tokens"], logprobs=0, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in job["prompts"]]
    found = []
    for output in engine.generate(prompts, sampling, lora_request=adapter, use_tqdm=False):
        reply = output.outputs[0]
        assert reply.logprobs is not None
        scores: list[Any] = list(reply.logprobs)
        found.append(
            [(token, chosen[token].logprob) for token, chosen in zip(reply.token_ids, scores, strict=True)]
        )
    return found


def answer(job: dict[str, Any]) -> dict[str, Any]:
    engine = LLM(
        model=job["base"],
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=8,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=RANK,
    )
    return {
        "base": replies(engine, job, None),
        "adapter": replies(engine, job, LoRARequest("trained", 1, job["adapter"])),
    }


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([answer(job) for job in jobs]))
