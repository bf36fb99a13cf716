"""The base as transformers loads it, with PEFT's LoRA modules. Nothing here fetches or runs foreign code."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from workers.contract import TrainSpec
from workers.training.products import widen_products


def pick_device(rank: int = 0) -> torch.device:
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def prepare_torch(seed: int) -> None:
    """Seed everything; use every core that this process may use, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        # By itself torch counts physical cores, so a machine of two hyper-threads would train on one.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    # Of the kernels that oneDNN makes for every shape it keeps 1,024 by itself. A pack of another size needs
    # some 25 new ones, 0.7 MB each, made in 0.3 ms each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    widen_products()
    torch.manual_seed(seed)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_base(path: Path) -> Any:
    """The base in bf16 on the host, frozen. Quantising and moving it is left to `frozen.py`."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.bfloat16,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.requires_grad_(False)
    return model


def attach_lora(model: Any, spec: TrainSpec) -> Any:
    """Put a fresh LoRA on the targets; its fp32 masters are the only parameters that learn."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - slow to import

    torch.manual_seed(spec.seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=sorted(spec.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The LoRA masters by name, in the order in which the model holds them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
