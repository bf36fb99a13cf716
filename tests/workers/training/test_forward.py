"""The engine's own forward pass against transformers and PEFT, and packs that cannot leak."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.conftest import SPEC
from tests.workers.training.tiny import make_base
from workers.contract import TrainSpec
from workers.contract.estimate import PLANS, MemoryPlan
from workers.training.forward import Decoder
from workers.training.loss import HeadLoss
from workers.training.measure import target_logprobs
from workers.training.model import attach_lora, load_base, trainable
from workers.training.packs import make_pack
from workers.training.plan import pack_samples
from workers.training.render import Sample

CPU = torch.device("cpu")
LENGTHS = [(9, 7), (60, 30), (3, 2), (40, 41), (200, 120)]
"""(prompt, answer) in tokens: some that share a bucket, and one of more than one block of queries."""


def samples_of(lengths: Sequence[tuple[int, int]] = LENGTHS, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(0, 250, (count,), generator=generator).tolist()
        return found

    return [Sample(0, 0, ids(prompt), ids(answer), trained_from=answer // 3) for prompt, answer in lengths]


def decoder_of(base: Path, plan: MemoryPlan = PLANS[0], **settings: Any) -> Decoder:
    """With a B that is not zero, or A would have no gradient."""
    spec = TrainSpec.model_validate(SPEC.model_dump() | {"quantization": "none"} | settings)
    model = attach_lora(load_base(base), spec)
    decoder = Decoder(model, spec, plan, CPU)
    torch.manual_seed(1)
    decoder.masters.vector.data.add_(torch.randn_like(decoder.masters.vector), alpha=0.05)
    decoder.refresh()
    return decoder


def learn(decoder: Decoder, packs: Sequence[Sequence[Sample]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a step made of these packs."""
    decoder.masters.gradient.zero_()
    tokens = sum(sample.trained_tokens for pack in packs for sample in pack)
    total = 0.0
    for samples in packs:
        pack = make_pack(samples, CPU)
        loss = HeadLoss.apply(decoder.hidden(pack), decoder.head, pack.labels, tokens)
        loss.backward()
        total += float(loss.detach())
    return total, decoder.masters.gradient.clone()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("targets", [SPEC.target_modules, ["q_proj", "up_proj"]], ids=["all", "two"])
@pytest.mark.parametrize("family", ["plain", "r1_qwen", "qwen3"])
def test_loss_and_gradients_are_those_of_an_fp32_reference(
    family: str, targets: list[str], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", family)
    decoder = decoder_of(base, target_modules=targets)
    loss, _ = learn(decoder, [samples_of()])
    gradients = {
        name: decoder.masters.gradient_of(parameter) for name, parameter in trainable(decoder.model).items()
    }

    reference = attach_lora(load_base(base), decoder.spec).float()
    for name, parameter in trainable(reference).items():
        parameter.data.copy_(trainable(decoder.model)[name])
    samples = samples_of()
    tokens = sum(sample.trained_tokens for sample in samples)
    expected = torch.zeros(())
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.target_ids])
        logprobs = reference(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        first = len(sample.prompt_ids) + sample.trained_from
        places = torch.arange(first, ids.shape[1])
        expected = expected - logprobs[places - 1, ids[0, places]].sum() / tokens
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-3)
    for name, parameter in trainable(reference).items():
        assert parameter.grad is not None
        assert cosine(parameter.grad, gradients[name]) > 0.999, name


def test_no_document_of_a_pack_knows_another(base: Path) -> None:
    """Other tokens in one document: not a bit of what is said about the rest may change."""
    decoder = decoder_of(base)
    samples = samples_of()
    before = target_logprobs(decoder, samples)
    others = samples_of(seed=9)
    counts = [sample.trained_tokens for sample in samples]
    for changed in range(len(samples)):
        mixed = [others[index] if index == changed else each for index, each in enumerate(samples)]
        parts = zip(before.split(counts), target_logprobs(decoder, mixed).split(counts), strict=True)
        same = [torch.equal(was, now) for was, now in parts]
        assert same == [index != changed for index in range(len(samples))]


def test_one_pack_of_32_equals_32_packs_of_one(base: Path) -> None:
    decoder = decoder_of(base)
    samples = samples_of([(5 + 3 * index, 4 + 2 * (index % 7)) for index in range(32)])
    together, gradient = learn(decoder, [samples])
    apart, other = learn(decoder, [[sample] for sample in samples])
    assert apart == pytest.approx(together, rel=1e-3)
    assert cosine(gradient, other) > 0.9995
    assert float(other.norm()) == pytest.approx(float(gradient.norm()), rel=5e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_memory_plan_computes_the_same(base: Path, quantization: str, dropout: float) -> None:
    found = []
    for plan in PLANS:
        decoder = decoder_of(base, plan, quantization=quantization, dropout=dropout)
        torch.manual_seed(3)
        found.append(learn(decoder, [samples_of()]))
    assert {loss for loss, _ in found} == {found[0][0]}
    assert all(torch.equal(gradient, found[0][1]) for _, gradient in found)
    assert float(found[0][1].norm()) > 0


def test_nf4_is_what_bitsandbytes_makes_of_the_weights(base: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415 - slow to import

    original = load_base(base).model.layers[0].mlp.down_proj.weight.data
    kept = decoder_of(base, quantization="nf4").blocks[0].down.weights.matrix(torch.empty(0))
    expected = dequantize_4bit(*quantize_4bit(original, blocksize=64, quant_type="nf4"))
    assert torch.equal(kept[: len(original)], expected) and not torch.equal(expected, original)


@pytest.mark.parametrize("plan", [PLANS[0], PLANS[1]], ids=lambda plan: plan.weights)
def test_transformers_still_generates_with_the_model(base: Path, plan: MemoryPlan) -> None:
    """And says what the engine says, so think rates are those of what was trained."""
    decoder = decoder_of(base, plan, quantization="nf4")
    (sample,) = samples_of([(20, 10)])
    with torch.no_grad():
        ids = torch.tensor([sample.prompt_ids + sample.target_ids])
        logprobs = decoder.model.eval()(input_ids=ids).logits[0].float().log_softmax(-1)
    places = torch.arange(len(sample.prompt_ids) + sample.trained_from, ids.shape[1])
    theirs = logprobs[places - 1, ids[0, places]]
    assert torch.allclose(theirs, target_logprobs(decoder, [sample]), atol=0.1)


def test_packs_are_full_and_hold_every_sample_once() -> None:
    lengths = [70, 30, 60, 40, 50, 50, 120, 10]
    packs = pack_samples(range(8), lengths, 100)
    assert sorted(index for pack in packs for index in pack) == list(range(8))
    assert [6] in packs
    assert sorted(sum(lengths[index] for index in pack) for pack in packs) == [10, 100, 100, 100, 120]
