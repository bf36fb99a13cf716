"""What may not be asked of a run, and why, in words: for a submission and for the command line alike."""

import math
from typing import NamedTuple

LEARNING_RATES: tuple[tuple[float, float, float], ...] = (
    (5e7, 1e-6, 1e-1),
    (1e9, 1e-6, 5e-3),
    (4e9, 1e-6, 2e-3),
    (20e9, 1e-6, 1e-3),
    (math.inf, 1e-7, 5e-4),
)
"""(bases below so many parameters, lowest, highest): below a LoRA learns nothing, above it falls apart.

Wide on purpose, about five times around what works by our own presets; toys of tests bear anything.
"""

RENAMED = {
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "lr": "learning_rate",
    "learning_rate_multiplier": "learning_rate",
    "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "save_steps": "checkpoint_every",
    "optim": "optimizer",
}
"""What PEFT, TRL and others call a setting, and what it is called here."""

HARMLESS = frozenset({"", "none", "null", "false", "true", "[]", "default"})
"""A value, as text, that asks for nothing beyond what a run does anyway."""


class Unserved(NamedTuple):
    """Something that PEFT can train and the serving engine cannot load, or that would change the base."""

    reason: str
    instead: str


UNSERVED = {
    "use_dora": Unserved(
        "DoRA trains a magnitude for every output beside the LoRA, and vLLM loads no adapter that has one",
        "Leave it out; a higher rank comes close",
    ),
    "bias": Unserved(
        "trained biases belong to the base's own layers, and vLLM loads an adapter without them only",
        "Leave it out or write none",
    ),
    "modules_to_save": Unserved(
        "whole layers saved with an adapter (often embed_tokens or lm_head) replace the base's own, "
        "which every other adapter on the same replica shares",
        "Leave it out, and put the layers' projections into target_modules",
    ),
    "init_lora_weights": Unserved(
        "PiSSA, OLoRA, CorDA and LoftQ start by changing the base's weights, so the adapter would fit a base "
        "that the replicas do not serve; other starts are not offered",
        "Leave it out; B starts at zero and A at random by the seed",
    ),
    "use_rslora": Unserved(
        "the scale of an adapter is alpha / rank here, one rule for every version",
        "Leave it out and set alpha to rank times the scale you want",
    ),
    "rank_pattern": Unserved("an adapter has one rank for all its layers here", "Set rank"),
    "alpha_pattern": Unserved("an adapter has one alpha for all its layers here", "Set alpha"),
    "layers_to_transform": Unserved("an adapter covers all layers of the base here", "Leave it out"),
    "trainable_token_indices": Unserved(
        "trained token embeddings replace the base's own, which all adapters of a replica share",
        "Leave it out",
    ),
    "exclude_modules": Unserved("what is trained is named, not what is not", "Set target_modules"),
    "target_parameters": Unserved("vLLM loads LoRA on linear layers alone", "Set target_modules"),
}


def is_harmless(name: str, value: object) -> bool:
    """Whether a setting that does not exist here asks, with this value, for what happens anyway."""
    if name not in UNSERVED:
        return False
    text = str(value).strip().lower()
    if name == "init_lora_weights":
        return text in ("true", "default", "none", "null", "")
    return text in HARMLESS - {"true"} or value in ((), [], {})


def why_unknown(name: str) -> str | None:
    """Why there is no setting of this name, and what to do; None when nothing is known of it."""
    if name in UNSERVED:
        reason, instead = UNSERVED[name]
        return f"{name} cannot be set: {reason}. {instead}."
    if name in RENAMED:
        return f"There is no setting {name}; here it is called {RENAMED[name]}."
    return None


def why_not_learning_rate(learning_rate: float, parameters: int) -> str | None:
    """Why a base of so many parameters should not be trained at this rate; None when it may."""
    low, high = next(
        (low, high) for below, low, high in LEARNING_RATES if parameters < below or below == math.inf
    )
    if low <= learning_rate <= high:
        return None
    size = f"{parameters / 1e9:.3g} billion" if parameters >= 1e9 else f"{parameters / 1e6:.3g} million"
    effect = "would learn next to nothing" if learning_rate < low else "would forget what it knows"
    return (
        f"learning_rate is {learning_rate:g}; a base of {size} parameters {effect}. "
        f"Set it between {low:g} and {high:g}."
    )
