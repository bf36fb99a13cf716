"""The proof that a replica really applies an adapter: golden token log-probabilities.

The trainer wrote down, for a few samples, what the trained model gives and what its base gives. This replica
is asked for the same tokens under the adapter's name and under the base's. Trainer and engine disagree a
little on both (NF4 against bf16, other kernels), but much the same on both, so the moves are compared: served
adapter minus served base, against trained adapter minus trained base. Where a replica serves the base under
the adapter's name, nothing moves.
"""

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

from workers.contract import AdapterManifest, GoldenSample, ServingProof, Sha256
from workers.serving.engine import Engine, EngineError, EngineView

T = TypeVar("T")

NEARER = 0.5
"""With more than this share of the trainer's move, a replica is nearer to the adapter than to the base."""
CLEAR = 1 / 6
"""Largest standard error of the share with which 0 and 1 can be told apart at `NEARER`: three of them fit."""
SMALLEST_EFFECT = 1e-3
"""Nats a token. What rounding in bfloat16 alone does, so nothing an app could notice."""
KERNEL_NOISE = 0.05
"""Nats a token by which two right replicas may differ at least: other kernels, another batch."""

MOST_REMEMBERED = 2000
"""Versions proven, and sets of samples; a few hundred numbers each."""


class NotProven(Exception):
    """The replica cannot show that it applies the adapter. The text is a sentence for the pool page."""


def prove(
    engine: Engine,
    *,
    name: str,
    base: str,
    max_length: int,
    golden: Sequence[GoldenSample],
    base_gave: list[list[float]] | None = None,
) -> tuple[ServingProof, list[list[float]]]:
    """Measure `name` and `base` on the engine against the trainer's numbers.

    Also returns what the base gave for each sample (nats), which the next call is spared with as `base_gave`.
    Raises EngineError and NotProven.
    """
    samples = [fitted for sample in golden if (fitted := _fit(sample, max_length))]
    if not samples:
        raise NotProven(
            "The manifest holds no golden samples that this engine can score, so nothing can be proven."
        )
    asked = [(sample.prompt_ids, sample.target_ids) for sample in samples]
    engine.warm_up(name, samples[0].prompt_ids)
    adapter, base_alone = (
        engine.target_logprobs(name, asked),
        base_gave or engine.target_logprobs(base, asked),
    )
    proof = judge(
        [value for values in adapter for value in values],
        [value for values in base_alone for value in values],
        [value for sample in samples for value in sample.logprobs],
        [value for sample in samples for value in sample.base_logprobs],
    )
    return proof, base_alone


def prove_again(
    engine: Engine,
    *,
    name: str,
    max_length: int,
    golden: Sequence[GoldenSample],
    base_gave: Sequence[Sequence[float]],
) -> ServingProof | None:
    """The proof after a restart of the same engine, short because apps wait: the sample that training changed
    most, against what the base gave for it before. None where that does not settle it: prove in full then."""
    sample = next(fitted for one in golden if (fitted := _fit(one, max_length)))
    [adapter] = engine.target_logprobs(name, [(sample.prompt_ids, sample.target_ids)])
    try:
        proof = judge(adapter, base_gave[0], sample.logprobs, sample.base_logprobs)
    except NotProven:
        return None
    return proof if proof.code == "applied" else None


def judge(
    adapter: Sequence[float], base: Sequence[float], trained: Sequence[float], trained_base: Sequence[float]
) -> ServingProof:
    """The proof from four log-probabilities (nats) of every golden token: this replica's under the adapter's
    name and the base's, and the trainer's. Raises NotProven."""
    moved = [a - b for a, b in zip(adapter, base, strict=True)]
    expected = [a - b for a, b in zip(trained, trained_base, strict=True)]
    quantisation = _rms([a - b for a, b in zip(base, trained_base, strict=True)])
    effect, tokens = _rms(expected), len(expected)
    share = sum(a * b for a, b in zip(moved, expected, strict=True)) / (tokens * effect**2) if effect else 0.0
    scatter = _rms([a - share * b for a, b in zip(moved, expected, strict=True)])
    error = scatter / (effect * math.sqrt(tokens)) if effect else 0.0
    tellable = effect >= SMALLEST_EFFECT and error <= CLEAR
    if _rms([a - b for a, b in zip(moved, expected, strict=True)]) > (
        NEARER * effect + max(quantisation, KERNEL_NOISE)
    ) or (tellable and share < NEARER):
        raise NotProven(
            f"Under the adapter's name this replica shows {share:.0%} of what training changed "
            f"({effect:.4f} nats a token), and differs from its base by {_rms(moved):.4f}: "
            "it does not clearly apply the adapter. Restart the engine."
        )
    return ServingProof(
        adapter_distance=_mean_distance(adapter, trained),
        base_distance=_mean_distance(base, trained),
        tokens=tokens,
        effect=effect,
        share=share if effect else None,
        share_error=error if effect else None,
        code="applied" if tellable else "adapter_without_effect",
    )


def _fit(sample: GoldenSample, max_length: int) -> GoldenSample | None:
    """The sample with as many targets as fit the engine's context beside the one token it must generate."""
    if not len(sample.logprobs) == len(sample.base_logprobs) == len(sample.target_ids):
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


def _rms(values: Sequence[float]) -> float:
    """Root mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def _mean_distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


class Proofs:
    """Proves one replica's versions, and remembers what need not be asked twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._base_gave: dict[tuple[str, ...], list[list[float]]] = {}
        """What the base gave for golden samples, by engine, base, context and samples."""
        self._proven: dict[tuple[str, ...], None] = {}
        """Versions proven in full, by engine, base, context and digest; the oldest first. Kept when their
        files go: a cold version that comes back has an app waiting for it."""

    def prove(self, view: EngineView, name: str, digest: Sha256, manifest: AdapterManifest) -> ServingProof:
        """In full the first time, shortly after a restart of the same engine. The base is asked once for the
        same samples: versions of one dataset have them in common. Raises as the function `prove`."""
        engine, golden = (view.version, view.base, str(view.max_length)), manifest.golden
        samples = (*engine, sha256(repr(golden).encode()).hexdigest())
        base, length = self._base_gave.get(samples), view.max_length
        if base and (*engine, digest) in self._proven:
            proof = prove_again(self._engine, name=name, max_length=length, golden=golden, base_gave=base)
            if proof is not None:
                return proof
        proof, base = prove(
            self._engine, name=name, base=view.base, max_length=length, golden=golden, base_gave=base
        )
        _remember(self._base_gave, samples, base)
        _remember(self._proven, (*engine, digest), None)
        return proof


def _remember(known: dict[tuple[str, ...], T], key: tuple[str, ...], value: T) -> None:
    """In the place of the oldest once there are too many."""
    if len(known) >= MOST_REMEMBERED:
        del known[next(iter(known))]
    known[key] = value
