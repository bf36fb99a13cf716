"""Presets: what a person means by quick, balanced or thorough, turned into every number of a TrainSpec."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.training.models import Preset
from workers.contract import ThinkPolicy, TrainSpec
from workers.contract.limits import why_not_learning_rate, why_unknown

Overrides = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Recipe:
    """What a preset wants: how wide an adapter, how often through the data, and how few steps are too few."""

    rank: int
    passes: float
    min_steps: int
    max_steps: int = 0


RECIPES: Mapping[Preset, Recipe] = {
    Preset.QUICK: Recipe(rank=8, passes=0.5, min_steps=10, max_steps=200),
    Preset.BALANCED: Recipe(rank=16, passes=1, min_steps=25),
    Preset.THOROUGH: Recipe(rank=32, passes=3, min_steps=75),
}


@dataclass(frozen=True)
class Scale:
    """What suits bases up to a size: a small base bears, and needs, a far larger learning rate."""

    parameters: float
    learning_rate: float
    passes: float
    """Factor on a recipe's passes: gentler steps have to go through the data more often."""
    max_length: int
    """Tokens; bases that reason at length need room for it."""


SCALES = (
    Scale(1e9, 1e-3, 1, 2048),
    Scale(4e9, 4e-4, 2, 8192),
    Scale(20e9, 2e-4, 2, 8192),
    Scale(math.inf, 1e-4, 2, 8192),
)

SETTINGS: Mapping[str, str] = {
    "epochs": "Times through the data",
    "max_steps": "Most optimizer steps (0: no limit)",
    "batch_size": "Samples per step",
    "micro_batch_tokens": "Tokens per forward pass",
    "max_length": "Longest sample in tokens",
    "max_excluded_share": "Share of samples that may be too long",
    "learning_rate": "Learning rate",
    "schedule": "Learning-rate schedule",
    "warmup_ratio": "Share of steps to warm up",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Gradient norm limit",
    "optimizer": "Optimizer",
    "rank": "Rank of the adapter",
    "alpha": "Alpha of the adapter",
    "dropout": "Dropout in the adapter",
    "quantization": "Precision of the base while training",
    "seed": "Seed",
    "checkpoint_every": "Steps between checkpoints (0: none)",
    "think_policy": "What is learned of the reasoning",
    "heldout_share": "Share of the data held out",
    "heldout_group": "Column whose rows are held out together",
}
"""The settings of a TrainSpec that a person may choose, with their names on the page."""

LIMITS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "max_steps": (0, 1_000_000),
    "checkpoint_every": (0, 1_000_000),
    "micro_batch_tokens": (16, 1_048_576),
    "alpha": (1, 4096),
    "weight_decay": (0, 10),
    "max_grad_norm": (0, 1000),
}
"""Ranges that the contract leaves open and no machine would bear."""

MAX_EPOCHS = 10.0
STEPS_PER_PASS = 30
MIN_BATCH, MAX_BATCH = 4, 32
ROWS_FOR_SMALL_SHARE = 100


def resolve_spec(
    *,
    base: BaseModel,
    data: DatasetVersion,
    eval_data: DatasetVersion | None,
    preset: str,
    overrides: Overrides,
) -> TrainSpec:
    """Every number of a run, from the base's size, the data's report, the preset and what the person set.

    Overrides may be text from a form; an empty one counts as not given. Raises UserError with the setting's
    name as its place.
    """
    given = {name: value for name, value in overrides.items() if value != ""}
    _check_names(given)
    rows = data.report.valid
    share = 0.0 if eval_data else 0.1 if rows >= ROWS_FOR_SMALL_SHARE else 0.2
    pinned = {
        "base": base.id,
        "base_revision": base.revision,
        "base_digest": base.digest or None,
        "template_sha256": base.template_sha256 or None,
        "data_sha256": data.trained_sha256,
        "eval_sha256": eval_data.trained_sha256 if eval_data else None,
        "think": base.think,
        "target_modules": base.lora_targets,
    }
    policy = think_policy(base, valid=rows, with_reasoning=int(data.report.body.get("with_reasoning", 0)))
    spec = _validated(
        {
            **_defaults(base, preset, rows, share),
            "heldout_share": share,
            "think_policy": policy,
            **given,
            **pinned,
        }
    )
    _check_limits(spec, given)
    _check_against(spec, base, eval_data)
    _check_group(spec, data)
    if "checkpoint_every" not in given:
        spec = spec.model_copy(update={"checkpoint_every": _checkpoint_every(estimate_steps(spec, rows))})
    return spec


def group_columns(data: DatasetVersion) -> list[str]:
    """Columns of the data by which rows may be held out together: those kept beside the conversation."""
    return sorted((data.report.body.get("doctor") or {}).get("fields") or {})


def think_policy(base: BaseModel, *, valid: int, with_reasoning: int) -> ThinkPolicy:
    """Learn from traces where most rows carry them; otherwise keep a reasoning base's own thinking out of
    the loss."""
    if valid and with_reasoning >= valid / 2:
        return "traces"
    return "no_think" if base.think_contract.family == "plain" else "answer_only"


def estimate_steps(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps a run over `rows` valid rows should take; packing and exclusions move it a little."""
    trained = max(1, round(rows * (1 - spec.heldout_share)))
    steps = max(1, round(math.ceil(trained / spec.batch_size) * spec.epochs))
    return min(steps, spec.max_steps) if spec.max_steps else steps


def usual_learning_rate(base: BaseModel) -> float:
    """The rate that suits a base of this size."""
    return _scale(base).learning_rate


def _scale(base: BaseModel) -> Scale:
    return next(scale for scale in SCALES if base.parameters < scale.parameters)


def _defaults(base: BaseModel, preset: str, rows: int, share: float) -> dict[str, Any]:
    recipe = _recipe(preset)
    scale = _scale(base)
    trained = max(1, round(rows * (1 - share)))
    batch = max(MIN_BATCH, min(MAX_BATCH, math.ceil(trained / STEPS_PER_PASS)))
    enough = recipe.min_steps / math.ceil(trained / batch)
    rank = min(recipe.rank, base.max_rank)
    max_length = min(scale.max_length, base.context_length)
    return {
        "epochs": round(min(MAX_EPOCHS, max(recipe.passes * scale.passes, enough)), 2),
        "max_steps": recipe.max_steps,
        "batch_size": batch,
        "learning_rate": scale.learning_rate,
        "rank": rank,
        "alpha": 2 * rank,
        "max_length": max_length,
        "micro_batch_tokens": max_length,
    }


def _recipe(preset: str) -> Recipe:
    if preset not in Preset.values:
        raise UserError(
            "unknown_preset",
            f"There is no preset {preset[:40]!r}.",
            "preset",
            f"Use one of: {', '.join(Preset.values)}.",
        )
    return RECIPES[Preset(preset)]


def _checkpoint_every(steps: int) -> int:
    """About six checkpoints in a run: a lost worker costs a sixth at most, and saving costs next to
    nothing."""
    return max(5, min(200, steps // 6))


def _check_names(given: Overrides) -> None:
    for name in given:
        if name not in SETTINGS:
            raise UserError(
                "unknown_setting",
                why_unknown(name) or f"There is no setting {name[:60]!r}.",
                name[:60],
                f"Known settings: {', '.join(SETTINGS)}.",
            )


def _validated(values: dict[str, Any]) -> TrainSpec:
    try:
        return TrainSpec.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        name = str(problem["loc"][0])
        raise _bad(name, values.get(name), problem["msg"].removeprefix("Input ")) from error


def _check_limits(spec: TrainSpec, given: Overrides) -> None:
    for name in given:
        value = getattr(spec, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise _bad(name, value, "should be a finite number")
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            raise _bad(name, value, f"should be between {low:g} and {high:g}")


def _bad(name: str, value: object, rule: str) -> UserError:
    label = SETTINGS.get(name, name)
    return UserError(
        "bad_setting",
        f"{label} ({name}) is {str(value)[:60]!r}; it {rule}.",
        name,
        "Change it, or leave it to the preset.",
    )


def _check_group(spec: TrainSpec, data: DatasetVersion) -> None:
    if not spec.heldout_group:
        return
    if not spec.heldout_share:
        raise UserError(
            "heldout_twice",
            "Separate evaluation data is chosen, so nothing is held out of the training data.",
            "heldout_group",
            "Leave one of the two away.",
        )
    columns = group_columns(data)
    if spec.heldout_group not in columns:
        raise UserError(
            "no_such_column",
            f"{data} has no column {spec.heldout_group[:60]!r} beside its conversations.",
            "heldout_group",
            f"Choose from: {', '.join(columns[:20])}." if columns else "Leave it empty.",
        )


def _check_against(spec: TrainSpec, base: BaseModel, eval_data: DatasetVersion | None) -> None:
    """What a spec may not ask of this base and this data."""
    if spec.rank > base.max_rank:
        raise UserError(
            "rank_too_large",
            f"Rank {spec.rank} is above {base.max_rank}, the largest that {base.name} is served with.",
            "rank",
            f"Choose {base.max_rank} or less.",
        )
    if spec.max_length > base.context_length:
        raise UserError(
            "max_length_too_long",
            f"A sample of {spec.max_length} tokens does not fit the context of {base.name}: "
            f"that is {base.context_length}.",
            "max_length",
            f"Choose {base.context_length} or less.",
        )
    if (why := why_not_learning_rate(spec.learning_rate, base.parameters)) is not None:
        raise UserError("learning_rate_out_of_range", why, "learning_rate", "Or leave it to the preset.")
    if eval_data and spec.heldout_share:
        raise UserError(
            "heldout_twice",
            "Separate evaluation data is chosen, so nothing is held out of the training data.",
            "heldout_share",
            "Leave one of the two away.",
        )
    if not eval_data and not spec.heldout_share:
        raise UserError(
            "nothing_to_evaluate_on",
            "With nothing held out and no evaluation data the adapter could not be evaluated, nor approved.",
            "heldout_share",
            "Hold a share out (0.1, say), or choose evaluation data.",
        )
