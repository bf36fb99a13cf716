"""The proof that a replica really applies an adapter: golden token log-probabilities.

The trainer wrote down what the trained model gives for a few samples. This replica is asked for the same
tokens under the adapter's name and under the base's. Trainer and engine differ a little (NF4 against bf16,
other kernels), so the numbers are never equal; but a replica that serves the base under the adapter's name
gives the base's numbers.
"""

from collections.abc import Sequence

from workers.contract import GoldenSample, ServingProof
from workers.serving.engine import Engine, EngineError

NEARER_THAN = 0.5
"""The replica is proven when its distance to the trainer's adapter is below this share of the base's
distance.

A replica that ignores the adapter shows a share of 1, a faithful one little more than the noise of
quantisation. Half keeps away from both: noise would have to be as large as half of what training changed, and
then the adapter cannot be told from its base by anybody.
"""


class NotProven(Exception):
    """The replica cannot show that it applies the adapter. The text is a sentence for the pool page."""


def prove(
    engine: Engine, *, name: str, base: str, max_length: int, golden: Sequence[GoldenSample]
) -> ServingProof:
    """Measure `name` and `base` on the engine against the trainer's numbers.

    Raises EngineError and NotProven.
    """
    samples = [fitted for sample in golden if (fitted := _fit(sample, max_length))]
    if not samples:
        raise NotProven(
            "The manifest holds no golden samples that this engine can score, so nothing can be proven."
        )
    asked = [(sample.prompt_ids, sample.target_ids) for sample in samples]
    engine.warm_up(name, samples[0].prompt_ids)
    proof = ServingProof(
        adapter_distance=_distance(engine.target_logprobs(name, asked), samples),
        base_distance=_distance(engine.target_logprobs(base, asked), samples),
        tokens=sum(len(sample.target_ids) for sample in samples),
    )
    if not is_proven(proof):
        raise NotProven(
            f"Under {name} this replica is {proof.adapter_distance:.3f} nats a token from the trainer's "
            f"golden samples, and its base {proof.base_distance:.3f}: it does not clearly apply the adapter. "
            "Restart the engine."
        )
    return proof


def is_proven(proof: ServingProof) -> bool:
    """Clearly nearer to the trainer's adapter than the base is.

    False for a base at distance 0: nothing to tell.
    """
    return proof.adapter_distance < NEARER_THAN * proof.base_distance


def _fit(sample: GoldenSample, max_length: int) -> GoldenSample | None:
    """The sample with as many targets as fit the engine's context beside the one token it must generate."""
    if len(sample.logprobs) != len(sample.target_ids):
        raise EngineError(
            "The manifest's golden samples are damaged: tokens and log-probabilities differ in number."
        )
    room = max_length - 1 - len(sample.prompt_ids) if max_length else len(sample.target_ids)
    if room < 1:
        return None
    return sample.model_copy(
        update={
            "target_ids": sample.target_ids[:room],
            "logprobs": sample.logprobs[:room],
            "base_logprobs": sample.base_logprobs[:room],
        }
    )


def _distance(measured: Sequence[Sequence[float]], samples: Sequence[GoldenSample]) -> float:
    """Mean absolute difference to the trainer's adapter, in nats a token."""
    differences = [
        abs(here - there)
        for values, sample in zip(measured, samples, strict=True)
        for here, there in zip(values, sample.logprobs, strict=True)
    ]
    return sum(differences) / len(differences)
