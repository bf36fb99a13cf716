"""The proof that a replica really applies an adapter: golden token log-probabilities.

The trainer wrote down, for a few samples, what the trained model gives and what its base gives. This replica
is asked for the same tokens under the adapter's name and under the base's. Trainer and engine disagree a
little on both (NF4 against bf16, other kernels), but much the same on both, so the moves are compared: served
adapter minus served base, against trained adapter minus trained base. Where a replica serves the base under
the adapter's name, nothing moves.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import TypeVar

from workers.contract import AdapterManifest, GoldenSample, ServingProof, Sha256
from workers.serving.engine import Engine, EngineError, EngineView

log = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")
Question = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt ids and target ids: the engine says how likely the target is after the prompt."""

NEARER = 0.5
"""With more than this share of the trainer's move, a replica is nearer to the adapter than to the base."""
CLEAR = 1 / 6
"""Largest standard error of the share with which 0 and 1 can be told apart at `NEARER`: three of them fit."""
SMALLEST_EFFECT = 1e-3
"""Nats a token. What rounding in bfloat16 alone does, so nothing an app could notice."""
KERNEL_NOISE = 0.05
"""Nats a token by which two right replicas may differ at least: other kernels, another batch."""

EXCERPT_TOKENS = 16
"""By so many an engine that has started anew is seen to apply a version as the one before it did."""

MOST_REMEMBERED = 2000
"""Versions, and questions to the base; a hundred numbers each."""


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


@dataclass(frozen=True)
class _Proven:
    """A version that all of its samples have proven, and what was given for its excerpt then (nats)."""

    proof: ServingProof
    adapter: Sequence[float]
    base: Sequence[float]


class Proofs:
    """Proves one replica's versions, several at a time, and remembers what need not be asked twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._base_gave: dict[tuple[str, ...], list[float]] = {}
        """By engine, base, context and question (nats)."""
        self._adapter_gave: dict[str, dict[Question, list[float]]] = {}
        """By serving name, since it was registered, until it is proven in whole."""
        self._proven: dict[tuple[str, ...], _Proven] = {}
        """By engine, base, context and digest."""
        self._asking_base = Lock()

    def prove(
        self, view: EngineView, name: str, digest: Sha256, manifest: AdapterManifest
    ) -> tuple[ServingProof, bool]:
        """Short, because apps may be waiting, and asked anew whatever is remembered.

        What was proven in whole on such an engine is recognised by an excerpt: it has to move the base as it
        did then, by the same judgement as the trainer's numbers. Anything else, and what is not recognised,
        is proven by the sample that training changed most, and by all of them where that one does not tell
        adapter and base apart.

        Also returns whether there is nothing left to prove of this version, with this engine. Raises
        EngineError and NotProven.
        """
        _remember(self._adapter_gave, name, {})
        samples = _fitting(view, manifest)
        known = self._proven.get(_key(view, digest))
        if known is not None and self._recognises(name, _excerpt(samples[0]), known):
            self._adapter_gave.pop(name, None)
            return known.proof, True
        try:
            proof = self._judge(view, name, samples[:1])
        except NotProven:
            proof = None
        if proof is None or (proof.code != "applied" and len(samples) > 1):
            proof = self._judge(view, name, samples)
        return proof, False

    def prove_next(
        self, view: EngineView, name: str, digest: Sha256, manifest: AdapterManifest
    ) -> ServingProof | None:
        """Ask one question of those that the proof by all samples still needs; one at a time, so that an app
        that comes meanwhile waits for no more than that.

        Returns the proof with the last one. Raises EngineError and NotProven.
        """
        samples = _fitting(view, manifest)
        excerpt = _excerpt(samples[0])
        gave = self._adapter_gave.setdefault(name, {})
        questions = [*map(_question, samples), excerpt]
        missing = [(name, one) for one in questions if one not in gave]
        missing += [(view.base, one) for one in questions if _key(view, _hash(one)) not in self._base_gave]
        for model, question in missing[:1]:
            if model == name:
                self._adapter(name, [question])
            else:
                self._base(view, [question])
        if len(missing) > 1:
            return None
        proof = self._judge(view, name, samples)
        proven = _Proven(proof, self._adapter(name, [excerpt])[0], self._base(view, [excerpt])[0])
        _remember(self._proven, _key(view, digest), proven)
        self._adapter_gave.pop(name, None)
        return proof

    def _recognises(self, name: str, excerpt: Question, known: _Proven) -> bool:
        (gives,) = self._engine.target_logprobs(name, [excerpt])
        try:
            alike = judge(gives, known.base, known.adapter, known.base)
        except NotProven:
            return False
        log.info("%s moves its base as it did: %s", name, alike)
        return alike.code == "applied"

    def _judge(self, view: EngineView, name: str, samples: Sequence[GoldenSample]) -> ServingProof:
        questions = [_question(sample) for sample in samples]
        adapter, base = self._adapter(name, questions), self._base(view, questions)
        return judge(
            [value for values in adapter for value in values],
            [value for values in base for value in values],
            [value for sample in samples for value in sample.logprobs],
            [value for sample in samples for value in sample.base_logprobs],
        )

    def _adapter(self, name: str, questions: Sequence[Question]) -> list[list[float]]:
        gave = self._adapter_gave.setdefault(name, {})
        if missing := [one for one in questions if one not in gave]:
            gave |= zip(missing, self._engine.target_logprobs(name, missing), strict=True)
        return [gave[one] for one in questions]

    def _base(self, view: EngineView, questions: Sequence[Question]) -> list[list[float]]:
        """Asked once for each question: versions of one dataset have them in common."""
        keys = [_key(view, _hash(question)) for question in questions]
        with self._asking_base:
            found = {key: self._base_gave[key] for key in keys if key in self._base_gave}
            missing = {key: one for key, one in zip(keys, questions, strict=True) if key not in found}
            if missing:
                gave = self._engine.target_logprobs(view.base, list(missing.values()))
                for key, values in zip(missing, gave, strict=True):
                    found[key] = values
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


def _question(sample: GoldenSample) -> Question:
    return tuple(sample.prompt_ids), tuple(sample.target_ids)


def _excerpt(sample: GoldenSample) -> Question:
    """The last tokens of the sample, after the one before them: short enough to be asked while apps wait."""
    tokens = [*sample.prompt_ids, *sample.target_ids][-EXCERPT_TOKENS - 1 :]
    return tuple(tokens[:1]), tuple(tokens[1:])


def _hash(question: Question) -> str:
    return sha256(repr(question).encode()).hexdigest()


def _key(view: EngineView, what: str) -> tuple[str, ...]:
    return view.version, view.base, str(view.max_length), what


def _remember(known: dict[K, T], key: K, value: T) -> None:
    """In the place of the oldest once there are too many."""
    if key not in known and len(known) >= MOST_REMEMBERED:
        del known[next(iter(known))]
    known[key] = value
