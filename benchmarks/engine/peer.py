"""One side: SFTTrainer of TRL (or of TRL under Unsloth), in the peer's own environment.

`default` is the trainer as it comes: padded batches, gradient checkpointing. `tuned` is the best that its
settings offer: best-fit-decreasing packing, fused AdamW, no checkpointing, the best attention there is.
Both see the samples that the engine sees, step by step, and begin with the engine's LoRA.
"""

import argparse
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.engine.turns import Turns, peak_resident_bytes

IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", choices=("default", "tuned"))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--exported", type=Path, required=True, help="folder written by export.py")
    parser.add_argument("--lora", type=Path, required=True, help="the LoRA's first weights, safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unsloth", action="store_true")
    parser.add_argument("--attention", default="", help="instead of the best there is")
    parser.add_argument(
        "--checkpointing", choices=("yes", "no", ""), default="", help="instead of the setting's"
    )
    parser.add_argument(
        "--masters", choices=("bf16", "fp32"), default="bf16", help="bf16 is what TRL makes of them"
    )
    parsed = parser.parse_args()
    exported = json.loads((parsed.exported / "samples.json").read_text(encoding="utf-8"))
    turns = Turns(len(exported["steps"]))
    if parsed.unsloth:
        import unsloth  # noqa: F401, PLC0415 - it patches what is imported after it
    trainer = make_trainer(parsed, exported, turns)
    turns.wait()
    trainer.train()
    facts = {
        "losses": [float(loss) for loss in trainer.step_losses],
        "peak_resident_bytes": peak_resident_bytes(),
        "attention": trainer.model.config._attn_implementation,
        "trainable_dtype": str(next(p.dtype for p in trainer.model.parameters() if p.requires_grad)),
    }
    if exported["heldout"]:
        facts["heldout_loss"] = heldout_loss(trainer.model, exported["heldout"])
    turns.done(**facts, **device_facts())


def make_trainer(parsed: argparse.Namespace, exported: dict[str, Any], turns: Turns) -> Any:
    """An SFTTrainer that trains on the exported samples in their order and reports every step to `turns`."""
    import torch  # noqa: PLC0415 - the protocol's stdout has to be in place first
    from transformers import AutoTokenizer, TrainerCallback  # noqa: PLC0415
    from trl import SFTTrainer  # noqa: PLC0415

    class Timed(SFTTrainer):
        step_losses: list[Any]
        micro_losses: list[Any]

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            self.micro_losses.append(loss.detach())
            return loss

    class Report(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            trainer.step_losses.append(torch.stack(trainer.micro_losses).sum())
            trainer.micro_losses.clear()
            turns.step(state.global_step)

    torch.manual_seed(exported["spec"]["seed"])
    dataset, rows_per_step = make_dataset(exported, packed=parsed.setting == "tuned")
    model, peft_config = (load_unsloth if parsed.unsloth else load_base)(parsed, exported["spec"])
    trainer = Timed(
        model=model,
        args=config(parsed, exported, rows_per_step),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(parsed.base, local_files_only=True),
        peft_config=peft_config,
        callbacks=[Report()],
    )
    trainer.step_losses, trainer.micro_losses = [], []
    set_lora(trainer.model, parsed.lora, torch.float32 if parsed.masters == "fp32" else None)
    never_repack(trainer.model)
    return trainer


def make_dataset(exported: dict[str, Any], *, packed: bool) -> tuple[Any, int]:
    """A dataset in the order of the steps, and its rows per step: samples, or packs by TRL's own packing.

    The packer is given one step's samples at a time, so that it cannot move any to another step.
    """
    from datasets import Dataset, concatenate_datasets  # noqa: PLC0415
    from datasets.utils.logging import disable_progress_bar  # noqa: PLC0415
    from trl.data_utils import pack_dataset  # noqa: PLC0415

    disable_progress_bar()
    groups = []
    for step in exported["steps"]:
        samples = [exported["train"][index] for index in step]
        groups.append(
            Dataset.from_dict(
                {
                    "input_ids": [sample["ids"] for sample in samples],
                    "labels": [labels(sample) for sample in samples],
                }
            )
        )
    if packed:
        groups = [pack_dataset(group, exported["spec"]["micro_batch_tokens"], "bfd") for group in groups]
    rows = {len(group) for group in groups}
    if len(rows) != 1:
        raise SystemExit(f"Steps of {sorted(rows)} rows: SFTTrainer wants the same number in every step.")
    return concatenate_datasets(groups), rows.pop()


def labels(sample: dict[str, Any]) -> list[int]:
    """The sample's ids, with everything before the answer left out of the loss."""
    masked = sample["trained_from"]
    return [IGNORED] * masked + list(sample["ids"][masked:])


def config(parsed: argparse.Namespace, exported: dict[str, Any], rows_per_step: int) -> Any:
    """SFTConfig: what the two sides share, what the harness needs, and what makes the setting."""
    import torch  # noqa: PLC0415
    from trl import SFTConfig  # noqa: PLC0415

    spec = exported["spec"]
    longest = max(len(sample["ids"]) for sample in exported["train"])
    values: dict[str, Any] = {
        "output_dir": str(parsed.out),
        "max_steps": len(exported["steps"]),
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": spec["schedule"],
        "warmup_steps": 0,
        "weight_decay": spec["weight_decay"],
        "max_grad_norm": spec["max_grad_norm"],
        "seed": spec["seed"],
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "per_device_train_batch_size": rows_per_step,
        # The default would cut longer samples off.
        "max_length": max(1024, longest),
    }
    if parsed.setting == "tuned":
        values |= {
            "packing": True,
            "packing_strategy": "bfd",
            "max_length": spec["micro_batch_tokens"],
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": rows_per_step,
            "gradient_checkpointing": False,
            "optim": "adamw_torch_fused",
            # The packs are made (see make_dataset); TRL's preparation would mix the steps' samples.
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
    if parsed.checkpointing:
        values["gradient_checkpointing"] = parsed.checkpointing == "yes"
    return SFTConfig(**values)


def load_base(parsed: argparse.Namespace, spec: dict[str, Any]) -> tuple[Any, Any]:
    """The base as TRL's documentation loads it for QLoRA, and the LoRA to put on it."""
    import torch  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: PLC0415

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    tuned = parsed.setting == "tuned"
    model = AutoModelForCausalLM.from_pretrained(
        parsed.base,
        dtype=torch.bfloat16,
        quantization_config=quantization if spec["quantization"] == "nf4" else None,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        attn_implementation=parsed.attention or (best_attention() if tuned else None),
        local_files_only=True,
    )
    return model, LoraConfig(
        r=spec["rank"],
        lora_alpha=spec["alpha"],
        lora_dropout=spec["dropout"],
        target_modules=spec["target_modules"],
        task_type="CAUSAL_LM",
    )


def load_unsloth(parsed: argparse.Namespace, spec: dict[str, Any]) -> tuple[Any, None]:
    """The same by Unsloth, which puts the LoRA on by itself."""
    from unsloth import FastLanguageModel  # noqa: PLC0415

    model, _ = FastLanguageModel.from_pretrained(
        str(parsed.base), max_seq_length=spec["micro_batch_tokens"], load_in_4bit=True, local_files_only=True
    )
    wanted: Any = {"yes": "unsloth", "no": False, "": False if parsed.setting == "tuned" else "unsloth"}
    model = FastLanguageModel.get_peft_model(
        model,
        r=spec["rank"],
        lora_alpha=spec["alpha"],
        lora_dropout=spec["dropout"],
        target_modules=spec["target_modules"],
        bias="none",
        use_gradient_checkpointing=wanted[parsed.checkpointing],
        random_state=spec["seed"],
    )
    return model, None


def best_attention() -> str:
    """Flash attention where there is a GPU and the package for it; else torch's own."""
    import torch  # noqa: PLC0415

    flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def set_lora(model: Any, file: Path, masters: Any) -> None:
    """The engine's first weights in every LoRA matrix, in TRL's precision unless `masters` names one."""
    from safetensors.torch import load_file  # noqa: PLC0415

    wanted = load_file(file)
    ours = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wanted.keys() != ours.keys():
        raise SystemExit(
            f"The LoRA has other weights than the engine's: {sorted(wanted.keys() ^ ours.keys())[:4]}"
        )
    for name, parameter in ours.items():
        parameter.data = wanted[name].to(parameter.device, masters or parameter.dtype)


def never_repack(model: Any) -> None:
    """bitsandbytes would repack weights on a CPU's first evaluation, and training would go dead."""
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def heldout_loss(model: Any, samples: list[dict[str, Any]]) -> float:
    """Mean over the trained tokens, in nats."""
    import torch  # noqa: PLC0415

    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        for sample in samples:
            ids = torch.tensor([sample["ids"]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, sample["trained_from"] - 1 : -1].float()
            targets = ids[0, sample["trained_from"] :]
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            tokens += len(targets)
    return total / tokens if tokens else math.nan


def device_facts() -> dict[str, Any]:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return {}
    return {"peak_device_bytes": torch.cuda.max_memory_allocated()}


if __name__ == "__main__":
    main()
