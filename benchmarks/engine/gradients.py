"""Loss and gradients of one step, before anything is learnt: the engine's beside an fp32 reference's.

    python -m benchmarks.engine.gradients --base DIR --data FILE --spec FILE [--samples 8]

The reference is plain transformers and PEFT in fp32 on the weights that every side multiplies: NF4 unpacked
into bf16. Every sample goes through it alone. Beside it stands what plain transformers and PEFT make of it in
bf16, as TRL trains: how far bf16 itself is from fp32. B is not zero (as it is before the first step), or half
of the gradients would be.
Prints JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from workers.contract import TrainSpec
from workers.contract.estimate import MemoryPlan
from workers.training.forward import Decoder
from workers.training.loss import HeadLoss
from workers.training.model import attach_lora, load_base, prepare_torch, trainable
from workers.training.packs import make_pack
from workers.training.plan import make_plan
from workers.training.prepare import read_samples
from workers.training.render import Renderer, Sample
from workers.training.tokenizer import load_tokenizer

B_DEVIATION = 0.02
"""Of the normal distribution that B is drawn from."""
Gradients = dict[str, torch.Tensor]


def compare(base: Path, data: Path, spec: TrainSpec, plan: MemoryPlan, limit: int) -> dict[str, Any]:
    """Both losses with the LoRA as it begins and with a random B, and the latter's gradient cosines."""
    renderer = Renderer(load_tokenizer(base), spec.think, spec.think_policy)
    samples = read_samples(data, None, spec, renderer).train
    step = make_plan([len(sample) for sample in samples], spec).steps[0]
    packs = [[samples[index] for index in pack][:limit] for pack in step]
    begin, loss, gradients = engine(base, spec, plan, packs)
    reference_begin, reference_loss, exact = reference(base, spec, packs)
    plain_begin, plain_loss, rounded = reference(base, spec, packs, bf16=True)
    cosines = _cosines(gradients, exact)
    return {
        "step0_loss": {"ours": begin, "reference": reference_begin},
        "step0_loss_plain_bf16": plain_begin,
        "loss_with_random_b": {"ours": loss, "reference": reference_loss, "plain_bf16": plain_loss},
        "cosines": cosines,
        "worst": min(cosines, key=lambda name: cosines[name]),
        "worst_cosine_plain_bf16": min(_cosines(rounded, exact).values()),
        "samples": sum(len(pack) for pack in packs),
        "memory_plan": plan.name,
    }


def _cosines(found: Gradients, exact: Gradients) -> dict[str, float]:
    return {
        name: float(F.cosine_similarity(gradient.flatten().double(), exact[name].flatten().double(), 0))
        for name, gradient in found.items()
    }


def engine(
    base: Path, spec: TrainSpec, plan: MemoryPlan, packs: Sequence[Sequence[Sample]]
) -> tuple[float, float, Gradients]:
    """(loss as it begins, loss with a random B, gradients by PEFT's names) of the engine's own pieces."""
    model = attach_lora(load_base(base), spec)
    decoder = Decoder(model, spec, plan, torch.device("cpu"))
    begin = _engine_loss(decoder, packs)
    masters = trainable(model)
    fill_b(masters)
    decoder.refresh()
    decoder.masters.gradient.zero_()
    loss = _engine_loss(decoder, packs)
    # A master is a view of one long vector; its gradient lies at the same place of another.
    places = {name: (weight.data.storage_offset(), weight.shape) for name, weight in masters.items()}
    flat = decoder.masters.gradient
    return (
        begin,
        loss,
        {name: flat[at : at + shape.numel()].view(shape) for name, (at, shape) in places.items()},
    )


def _engine_loss(decoder: Decoder, packs: Sequence[Sequence[Sample]]) -> float:
    """Mean loss of the step; its gradients are added to the masters'."""
    tokens = sum(sample.trained_tokens for pack in packs for sample in pack)
    total = 0.0
    for samples in packs:
        pack = make_pack(samples, decoder.device)
        loss = HeadLoss.apply(decoder.hidden(pack), decoder.head, pack.labels, tokens)
        loss.backward()
        total += float(loss.detach())
    return total


def reference(
    base: Path, spec: TrainSpec, packs: Sequence[Sequence[Sample]], *, bf16: bool = False
) -> tuple[float, float, Gradients]:
    """The same of plain transformers and PEFT: in fp32, or in bf16 around fp32 masters."""
    causal_lm = nf4_in_fp32(base) if spec.quantization == "nf4" else load_base(base).float()
    model = attach_lora(causal_lm.bfloat16() if bf16 else causal_lm, spec)
    model.train()
    samples = [sample for pack in packs for sample in pack]
    masters = trainable(model)

    def losses() -> Iterator[torch.Tensor]:
        for sample in samples:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                yield _sample_loss(model, sample, samples)

    with torch.no_grad():
        begin = sum(float(part) for part in losses())
    fill_b(masters)
    loss = 0.0
    for part in losses():
        part.backward()
        loss += float(part.detach())
    return begin, loss, {name: weight.grad for name, weight in masters.items() if weight.grad is not None}


def _sample_loss(model: Any, sample: Sample, step: Sequence[Sample]) -> torch.Tensor:
    """The sample's share of the step's mean loss."""
    ids = torch.tensor([sample.prompt_ids + sample.target_ids])
    first = len(sample.prompt_ids) + sample.trained_from
    logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float()
    tokens = sum(each.trained_tokens for each in step)
    return F.cross_entropy(logits, ids[0, first:], reduction="sum") / tokens


def nf4_in_fp32(base: Path) -> Any:
    """The base in fp32, its linear layers rounded to what NF4, unpacked into bf16, keeps of them."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415 - slow to import

    model = load_base(base).float()
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                packed, state = quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4")
                module.weight.data = dequantize_4bit(packed, state).bfloat16().float()
    return model


def fill_b(masters: dict[str, torch.nn.Parameter]) -> None:
    """The same random numbers for the same name."""
    generator = torch.Generator().manual_seed(0)
    for name in sorted(masters):
        if "lora_B" in name:
            weight = masters[name].data
            weight.copy_(torch.randn(weight.shape, generator=generator) * B_DEVIATION)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True, help="a TrainSpec as JSON")
    parser.add_argument("--samples", type=int, default=64, help="at most, of each pack of the first step")
    parser.add_argument("--weights", choices=("resident", "scratch"), default="resident")
    parsed = parser.parse_args()
    spec = TrainSpec.model_validate_json(parsed.spec.read_text(encoding="utf-8"))
    prepare_torch(spec.seed)
    plan = MemoryPlan(weights=parsed.weights, checkpointing="none")
    found = compare(parsed.base, parsed.data, spec, plan, parsed.samples)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
