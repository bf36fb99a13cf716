"""The closed forms behind every estimate: what they must get right without a machine to measure on."""

import random

import pytest

from workers.contract import TrainResult, TrainSpec
from workers.contract.advice import with_advice
from workers.contract.estimate import PLANS, BaseShape, layer_activation_bytes, peak_bytes
from workers.contract.forecast import Correction, PastRun, correction_of, forecast, past_run_of
from workers.contract.machines import GIB, Machine, class_name
from workers.contract.workload import TokenCounts, bin_edge, count_tokens, workload_of

SMOL = BaseShape(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, tied=True,
    parameters=134_515_008,
)  # fmt: skip
LLAMA_8B = BaseShape(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256,
    tied=False, parameters=8_030_261_248,
)  # fmt: skip
H100 = Machine(device="cuda", name="NVIDIA H100 80GB HBM3", memory_bytes=78 * GIB)


def counts() -> TokenCounts:
    rng = random.Random(1)
    lengths = [(int(rng.lognormvariate(6, 0.8)) + 10, 50) for _ in range(2000)]
    return count_tokens(lengths, rows=2000, seconds=0.0)


@pytest.mark.parametrize(
    ("tokens", "mib"), [(435, 1545), (995, 1993), (1021, 2265), (2048, 2777), (2048, 3159)]
)
def test_peak_memory_is_within_a_tenth_of_what_was_measured(tokens: int, mib: int) -> None:
    predicted = peak_bytes(SMOL, TrainSpec(), PLANS[0], tokens, "cpu", 128)
    assert predicted == pytest.approx(mib * 1024**2, rel=0.1)


def test_a_layer_keeps_what_the_saved_tensors_say() -> None:
    assert layer_activation_bytes(SMOL, TrainSpec(), "cpu") == pytest.approx(17_952, rel=0.01)


def test_smaller_plans_need_less_and_larger_packs_more() -> None:
    for device in ("cpu", "cuda"):
        peaks = [peak_bytes(LLAMA_8B, TrainSpec(), plan, 8192, device, 8192) for plan in PLANS]
        assert peaks[-1] == min(peaks)
        assert peak_bytes(SMOL, TrainSpec(), PLANS[0], 4096, device, 1) > peak_bytes(
            SMOL, TrainSpec(), PLANS[0], 2048, device, 1
        )


def test_powers_of_two_are_edges_so_that_usual_limits_are_exact() -> None:
    for power in range(1, 18):
        assert bin_edge(2**power) == 2**power
    for tokens in range(1, 5000):
        assert tokens <= bin_edge(tokens) <= tokens * 65 / 64


def test_a_load_counts_epochs_steps_and_what_is_left_out() -> None:
    lengths = [(100, 40)] * 90 + [(3000, 40)] * 10
    load = workload_of(
        count_tokens(lengths, rows=100, seconds=0), TrainSpec(epochs=2, batch_size=8, max_length=2048)
    )
    assert (load.samples, load.excluded, load.steps) == (90, 10, 23)
    assert (load.tokens, load.trained_tokens, load.longest) == (18_000, 7_200, 100)
    assert load.squared_tokens == 180 * 100**2 and load.largest_pack == 800


def test_what_does_not_fit_comes_with_a_change_that_does() -> None:
    spec = TrainSpec(max_length=8192, micro_batch_tokens=8192, quantization="none")
    small = Machine(device="cuda", name="NVIDIA L4", memory_bytes=12 * GIB)

    def advised(spec: TrainSpec, machine: Machine) -> str:
        found = forecast(LLAMA_8B, spec, workload_of(counts(), spec), machine)
        load_of = lambda changed: workload_of(counts(), changed)  # noqa: E731
        return with_advice(found, LLAMA_8B, spec, load_of, machine, Correction()).advice

    assert advised(spec, H100) == ""
    assert advised(spec, small).startswith("Set quantization to nf4")
    changed = spec.model_copy(update={"quantization": "nf4"})
    assert forecast(LLAMA_8B, changed, workload_of(counts(), changed), small).fits
    assert "smaller base" in advised(spec, small.model_copy(update={"memory_bytes": 2 * GIB}))


def test_the_correction_is_a_median_of_the_newest() -> None:
    def past(by: float) -> PastRun:
        return PastRun(
            predicted_seconds=10,
            seconds=10 * by,
            predicted_memory_bytes=100,
            memory_bytes=int(100 * by),
        )

    assert correction_of([]) == Correction()
    assert correction_of([past(2), past(3), past(90)]).seconds == 3
    assert correction_of([past(2)] * 5 + [past(9)] * 50).seconds == 2


def test_only_a_run_on_the_same_class_of_machine_is_comparable() -> None:
    result = TrainResult(
        steps=1, trained_tokens=1, tokens_per_second=1, train_loss=1, heldout_loss=None, adapter="a",
        peak_memory_bytes=10, seconds=5, predicted_seconds=4, predicted_memory_bytes=9,
        device="NVIDIA H100 NVL",
    )  # fmt: skip
    assert past_run_of(result, on=H100) is not None
    assert past_run_of(result, on=Machine(device="cpu", name="cpu")) is None
    assert past_run_of(result.model_copy(update={"predicted_seconds": 0.0}), on=H100) is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("Tesla T4", "Tesla T4"),
        ("cpu", "cpu"),
    ],
)
def test_cards_are_known_by_their_driver_names(name: str, wanted: str) -> None:
    assert class_name(name) == wanted
