"""Stock bitsandbytes stops learning after one evaluation on some CPUs; with its flag off it goes on.

    python -m benchmarks.engine.repack --base DIR [--steps 6]

Plain transformers, PEFT and bitsandbytes: train, evaluate once, train on; once as installed, once with
`support_avx512bf16_for_cpu = False` on every Linear4bit. The last line is JSON with the losses of both.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.report import Line

ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATE = 1e-3
ROWS = 4


def losses(base: Path, steps: int, *, repacking: bool) -> dict[str, Any]:
    """Losses of `steps` steps, of one evaluation, of `steps` steps more, all on the same rows."""
    torch.manual_seed(0)
    model = _model(base, repacking=repacking)
    ids = _batch(base)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    before = [_step(model, ids, optimizer) for _ in range(steps)]
    model.eval()
    with torch.no_grad():
        evaluated = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    model.train()
    after = [_step(model, ids, optimizer) for _ in range(steps)]
    return {"before": before, "evaluation": evaluated, "after": after, "gradient_norm": _gradient_norm(model)}


def _step(model: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def _gradient_norm(model: Any) -> float:
    """Of the last step; 0 when no gradient reached the LoRA."""
    found = [float(p.grad.norm()) for p in model.parameters() if p.requires_grad and p.grad is not None]
    return math.sqrt(sum(norm**2 for norm in found))


def _model(base: Path, *, repacking: bool) -> Any:
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415 - slow to import

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=quantization,
        device_map={"": "cpu"},
        local_files_only=True,
    )
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    if not repacking:
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    return model.train()


def _batch(base: Path) -> torch.Tensor:
    """A few contract rows, cut to the shortest."""
    lines = (ROOT / "examples" / "contracts" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    return torch.tensor([ids[: min(map(len, encoded))] for ids in encoded])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=6)
    parsed = parser.parse_args()
    line = Line("repack")
    found = {
        "stock": losses(parsed.base, parsed.steps, repacking=True),
        "flag_off": losses(parsed.base, parsed.steps, repacking=False),
    }
    for name, curves in found.items():
        shown = {key: [f"{x:.3f}" for x in curves[key]] for key in ("before", "after")}
        print(
            f"{name}: {shown['before']} evaluation {curves['evaluation']:.3f} {shown['after']}",
            file=sys.stderr,
        )
    line.end(found)


if __name__ == "__main__":
    main()
