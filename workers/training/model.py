"""The base quantised to NF4 by bitsandbytes, with a LoRA by PEFT on top. Nothing here fetches or runs foreign
code.
"""

import logging
import os
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from workers.contract import TrainSpec
from workers.training.errors import TrainingError


def pick_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare_torch(seed: int) -> None:
    """Seed everything; use every core that this process may use, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        # By itself torch counts physical cores, so a machine of two hyper-threads would train on one.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_tokenizer(path: Path) -> Any:
    """The base's tokenizer, from its own files alone."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise TrainingError(
            "slow_tokenizer",
            f"The base in {path} has no tokenizer.json. Add the fast tokenizer that belongs to it.",
        )
    return tokenizer


def load_base(path: Path, spec: TrainSpec, device: torch.device) -> Any:
    """The base in bf16, its linear layers quantised when the spec asks for it; frozen."""
    quantization = None
    if spec.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=False,
        )
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.bfloat16,
        quantization_config=quantization,
        device_map={"": device},
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16 the first forward outside training would repack the weights in place,
            # after which training goes on without learning anything (bitsandbytes 0.50).
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def attach_lora(model: Any, spec: TrainSpec) -> Any:
    """Put a fresh LoRA on the targets; its fp32 masters are the only parameters that learn."""
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
    peft_model.train()
    return peft_model


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The LoRA masters by name, in the order in which the model holds them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
