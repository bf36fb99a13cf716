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
from threading import Lock
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
"""Versions proven, and samples; a hundred numbers each."""


class NotProven(Exception):
    """The replica cannot show that it applies the adapter. The text is a sentence for the pool page."""


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
    """Proves one replica's versions, several at a time, and remembers what need not be asked twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._base_gave: dict[tuple[str, ...], list[float]] = {}
        """What the base gave for a golden sample (nats), by engine, base, context and sample."""
        self._whole: dict[tuple[str, ...], None] = {}
        """Versions proven by all of their samples, by engine, base, context and digest."""
        self._asking_base = Lock()

    def prove(
        self, view: EngineView, name: str, digest: Sha256, manifest: AdapterManifest
    ) -> tuple[ServingProof, bool]:
        """Short, because apps may be waiting: by the sample that training changed most, and by all of them
        where that one does not tell adapter and base apart.

        Also returns whether there is nothing left to prove of this version, with this engine. Raises
        EngineError and NotProven.
        """
        samples = _fitting(view, manifest)
        try:
            proof = self._measure(view, name, samples[:1])
        except NotProven:
            proof = None
        if proof is not None and (proof.code == "applied" or len(samples) == 1):
            return proof, len(samples) == 1 or _key(view, digest) in self._whole
        return self.prove_whole(view, name, digest, manifest), True

    def prove_whole(
        self, view: EngineView, name: str, digest: Sha256, manifest: AdapterManifest
    ) -> ServingProof:
        """By all golden samples. Raises EngineError and NotProven."""
        proof = self._measure(view, name, _fitting(view, manifest))
        _remember(self._whole, _key(view, digest), None)
        return proof

    def _measure(self, view: EngineView, name: str, samples: Sequence[GoldenSample]) -> ServingProof:
        adapter = self._engine.target_logprobs(name, _asked(samples))
        base = self._base(view, samples)
        return judge(
            [value for values in adapter for value in values],
            [value for values in base for value in values],
            [value for sample in samples for value in sample.logprobs],
            [value for sample in samples for value in sample.base_logprobs],
        )

    def _base(self, view: EngineView, samples: Sequence[GoldenSample]) -> list[list[float]]:
        """Asked once for each sample: versions of one dataset have them in common."""
        keys = [_key(view, sha256(repr(sample).encode()).hexdigest()) for sample in samples]
        with self._asking_base:
            found = {key: self._base_gave[key] for key in keys if key in self._base_gave}
            missing = [(key, sample) for key, sample in zip(keys, samples, strict=True) if key not in found]
            if missing:
                gave = self._engine.target_logprobs(view.base, _asked([sample for _, sample in missing]))
                found |= {key: values for (key, _), values in zip(missing, gave, strict=True)}
                for key, values in found.items():
                    _remember(self._base_gave, key, values)
        return [found[key] for key in keys]


def _fitting(view: EngineView, manifest: AdapterManifest) -> list[GoldenSample]:
    """The samples that this engine can score, the one that training changed most first."""
    samples = [fitted for sample in manifest.golden if (fitted := _fit(sample, view.max_length))]
    if not samples:
        raise NotProven(
            "The manifest holds no golden samples that this engine can score, so nothing can be proven."
        )
    return samples


def _asked(samples: Sequence[GoldenSample]) -> list[tuple[Sequence[int], Sequence[int]]]:
    return [(sample.prompt_ids, sample.target_ids) for sample in samples]


def _key(view: EngineView, what: str) -> tuple[str, ...]:
    return view.version, view.base, str(view.max_length), what


def _remember(known: dict[tuple[str, ...], T], key: tuple[str, ...], value: T) -> None:
    """In the place of the oldest once there are too many."""
    if len(known) >= MOST_REMEMBERED:
        del known[next(iter(known))]
    known[key] = value
