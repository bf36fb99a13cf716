"""A base's shape from its config.json: one definition for the platform's catalog and the trainer."""

from collections.abc import Mapping
from typing import Any

from workers.contract.estimate import BaseShape


def shape_of_config(config: Mapping[str, Any], *, parameters: int, tied: bool) -> BaseShape:
    """The shape that a Llama, Qwen2 or Qwen3 config.json gives. Raises ValueError when a size is missing.

    `parameters` and `tied` come from the stored tensors, which are right where a config is not.
    """
    heads = int(config.get("num_attention_heads") or 0)
    hidden = int(config.get("hidden_size") or 0)
    return BaseShape(
        layers=int(config.get("num_hidden_layers") or 0),
        hidden=hidden,
        intermediate=int(config.get("intermediate_size") or 0),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // max(1, heads)),
        vocabulary=int(config.get("vocab_size") or 0),
        tied=tied,
        parameters=parameters,
    )
