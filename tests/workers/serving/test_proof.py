"""The golden proof in numbers: what quantisation may cost, and what may not pass for an adapter."""

import math
import random

import pytest

from workers.contract import ServingProof
from workers.serving.proof import NotProven, judge

TOKENS = 256


class Replica:
    """Log-probabilities of one trained adapter, and of engines that serve it rightly and wrongly."""

    def __init__(
        self, effect: float, *, quantisation: float = 0.2, noise: float = 0.01, seed: int = 1
    ) -> None:
        """Root mean squares in nats a token: `effect` is what training changed, `quantisation` what NF4 moves
        adapter and base alike, `noise` what differs between two passes of one engine."""
        self._draw = random.Random(seed)
        self._noise = noise
        self.trained_base = [-abs(self._draw.gauss(0, 3)) for _ in range(TOKENS)]
        self.trained = [value + self._draw.gauss(0, effect) for value in self.trained_base]
        self._shift = [self._draw.gauss(0, quantisation) for _ in range(TOKENS)]

    def serve(self, logprobs: list[float]) -> list[float]:
        moved = zip(logprobs, self._shift, strict=True)
        return [value + shift + self._draw.gauss(0, self._noise) for value, shift in moved]

    def judge(self, adapter: list[float]) -> ServingProof:
        return judge(adapter, self.serve(self.trained_base), self.trained, self.trained_base)


@pytest.mark.parametrize("effect", [3.0, 0.3, 0.05, 0.02])
@pytest.mark.parametrize("seed", range(20))
def test_quantisation_cancels_however_little_the_adapter_differs(effect: float, seed: int) -> None:
    replica = Replica(effect, seed=seed)
    proof = replica.judge(replica.serve(replica.trained))
    assert proof.code == "applied"
    assert proof.effect == pytest.approx(effect, rel=0.25)
    assert proof.share == pytest.approx(1, abs=0.3)
    if effect < 0.1:
        assert proof.adapter_distance > 0.5 * proof.base_distance, "which plain distances could not have told"


@pytest.mark.parametrize("effect", [3.0, 0.3, 0.05, 0.02])
@pytest.mark.parametrize("seed", range(20))
def test_the_base_under_the_adapters_name_is_caught_while_there_is_a_difference(
    effect: float, seed: int
) -> None:
    replica = Replica(effect, seed=seed)
    with pytest.raises(NotProven, match="does not clearly apply the adapter"):
        replica.judge(replica.serve(replica.trained_base))


def test_an_engine_without_noise_is_caught_at_any_difference_that_counts() -> None:
    replica = Replica(0.002, noise=0)
    served = replica.serve(replica.trained_base)
    with pytest.raises(NotProven, match="0% of what training changed"):
        judge(served, served, replica.trained, replica.trained_base)


@pytest.mark.parametrize("effect", [0.0, 0.0005])
def test_an_adapter_that_does_not_differ_is_ready_and_said_to_be_so(effect: float) -> None:
    replica = Replica(effect)
    proof = replica.judge(replica.serve(replica.trained))
    assert proof.code == "adapter_without_effect"
    assert (proof.share is None) is (effect == 0)


@pytest.mark.parametrize("effect", [0.0, 0.0005, 0.02, 3.0])
def test_another_adapter_under_this_name_is_caught(effect: float) -> None:
    replica = Replica(effect)
    with pytest.raises(NotProven):
        replica.judge(
            [value + random.Random(7).gauss(0, 2.5) for value in replica.serve(replica.trained_base)]
        )


def test_half_an_adapter_is_caught() -> None:
    """A scale forgotten on the way: alpha over rank, say."""
    replica = Replica(2.0)
    halved = [(a + 2 * b) / 3 for a, b in zip(replica.trained, replica.trained_base, strict=True)]
    with pytest.raises(NotProven, match="33% of what training changed"):
        replica.judge(replica.serve(halved))


def test_the_numbers_are_of_one_token_when_there_is_one() -> None:
    proof = judge([-0.1], [-3.1], [-0.2], [-3.0])
    assert proof.tokens == 1
    assert proof.share_error == pytest.approx(0, abs=1e-12)
    assert proof.share == pytest.approx(3.0 / 2.8)
    assert math.isclose(proof.adapter_distance, 0.1)
