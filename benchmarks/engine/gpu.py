"""The engine beside TRL and Unsloth on an NVIDIA GPU. The last line is the result as JSON.

    python -m benchmarks.engine.gpu [--rounds 3] [--steps 10]
    python -m benchmarks.engine.gpu --tiny      the engine alone on a tiny base: to try the script

The base has the shape of Llama-3.1-8B and random weights: honest for speed and memory, never for quality.
Each side has the GPU to itself; rounds go A B C A B C. What could not be run is listed under `not_run`, with
the reason.
The tokenizer is that of the demonstration base (--tokenizer), which has fewer entries than the vocabulary.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import arithmetic
from benchmarks.engine.environment import home, python_of, versions
from benchmarks.engine.export import Exported, export, export_lora
from benchmarks.engine.turns import Side, start
from benchmarks.engine.workload import Workload, full_packs
from benchmarks.report import Line
from workers.training.base import open_base, shape_of

GIB = 1 << 30
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONTEXT = 1 << 20
DENSE_BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Published dense bf16 operations per second (SXM where there are two), for MFU."""
GOALS = {"tokens_per_second_h100": 14_000, "peak_gib_8k_checkpointed": 11}
SIDES = ("ours", "trl_default", "trl_tuned", "unsloth")


@dataclass
class GpuBench:
    """Where everything is, and what could not be run."""

    base: Path
    folder: Path
    not_run: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None and the reason under `not_run`."""
        try:
            return work()
        # SystemExit is how a side that died gives the end of its log; a missing peer must not end the rest.
        except (SystemExit, OSError, RuntimeError) as error:
            self.not_run[name] = str(error)[-600:]
            return None


def main() -> None:
    parsed = _arguments()
    last = Line("engine-gpu")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=parsed.scratch) as folder:
        base = make_base(Path(folder) / "base", TINY if parsed.tiny else LLAMA_8B, parsed.tokenizer)
        bench = GpuBench(base, Path(folder))
        if parsed.tiny:
            line = tiny(bench)
        elif not torch.cuda.is_available():
            reason = "There is no NVIDIA GPU here: no speed, no memory and no longest context was measured."
            line = {"measured": None, "not_run": {"everything": reason}}
        else:
            line = measure_all(bench, parsed.rounds, parsed.steps)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    last.end({**line, "gpu": gpu, "versions": all_versions(), "goals": GOALS})


def tiny(bench: GpuBench) -> dict[str, Any]:
    """Every piece of this script that needs no GPU and no peer, on a tiny base."""
    workload, exported = prepare(bench, tokens=512, packs=2, steps=3)
    speed = one_run(bench, "ours", workload, exported)
    return {"tiny": True, **speed, "mfu": mfu(bench, workload, exported, speed["tokens_per_second"])}


def measure_all(bench: GpuBench, rounds: int, steps: int) -> dict[str, Any]:
    """Speed of all sides on 2 x 4,096 tokens, memory at 8k, the longest contexts."""
    workload, exported = prepare(bench, tokens=4096, packs=2, steps=steps)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name in SIDES:
            if name not in bench.not_run:
                found = bench.attempt(name, partial(one_run, bench, name, workload, exported))
                runs[name] += [found] if found else []
    speeds = {
        name: statistics.median(run["tokens_per_second"] for run in found)
        for name, found in runs.items()
        if found
    }
    return {
        "real_tokens_per_second": speeds,
        "ratios": {
            f"ours/{name}": speeds["ours"] / speed for name, speed in speeds.items() if "ours" in speeds
        },
        "mfu": {name: mfu(bench, workload, exported, speed) for name, speed in speeds.items()},
        "peak_memory_bytes": {
            name: max(run["peak_memory_bytes"] for run in found) for name, found in runs.items() if found
        },
        "losses": {name: found[0]["losses"] for name, found in runs.items() if found},
        "peak_8k_checkpointed": bench.attempt("peak_8k", partial(peak_at, bench, 8192, 11 * GIB)),
        "longest_context": {
            f"{gib}_gib": bench.attempt(f"context_{gib}", partial(longest_context, bench, gib * GIB))
            for gib in (24, 80)
        },
        "loss_gate": "not part of this script: `make bench-engine` compares losses with an fp32 reference",
        "not_run": bench.not_run,
    }


def prepare(bench: GpuBench, *, tokens: int, packs: int, steps: int) -> tuple[Workload, Exported]:
    folder = bench.folder / f"{packs}x{tokens}"
    workload = full_packs(bench.base, steps, folder, tokens=tokens, documents=1, packs=packs)
    exported = export(workload, bench.base, folder)
    (folder / "spec.json").write_text(workload.spec.model_dump_json(), encoding="utf-8")
    export_lora(bench.base, workload.spec, folder / "lora.safetensors")
    return workload, exported


def one_run(
    bench: GpuBench, name: str, workload: Workload, exported: Exported, device_bytes: int = 0
) -> dict[str, Any]:
    """One side, alone, from loading to the end: speed after its first step, peak memory, losses."""
    side = begin(bench, name, workload, exported, device_bytes)
    try:
        side.until_ready()
        side.take(len(exported.steps))
        side.finish()
    finally:
        side.stop()
    timed = side.seconds[1:]
    peak = side.facts.get("peak_device_bytes") or side.facts["peak_memory_bytes"]
    return {
        "tokens_per_second": sum(exported.step_tokens[1:]) / sum(timed) if timed else 0.0,
        "peak_memory_bytes": peak,
        "memory_plan": side.facts.get("memory_plan", ""),
        "losses": side.facts["losses"],
    }


def begin(bench: GpuBench, name: str, workload: Workload, exported: Exported, device_bytes: int) -> Side:
    common = ["--base", str(bench.base), "--out", str(bench.folder / "out" / name)]
    logs = home() / "logs-gpu"
    if name == "ours":
        arguments = ["--data", str(workload.data), "--spec", str(exported.folder / "spec.json")]
        arguments += ["--device-bytes", str(device_bytes)] if device_bytes else []
        return start(name, sys.executable, "benchmarks.engine.ours", [*arguments, *common], 8, logs)
    setting = "default" if name == "trl_default" else "tuned"
    arguments = [setting, "--exported", str(exported.folder)]
    arguments += ["--lora", str(exported.folder / "lora.safetensors")]
    arguments += ["--unsloth"] if name == "unsloth" else []
    python = python_of("unsloth" if name == "unsloth" else "trl")
    return start(name, python, "benchmarks.engine.peer", [*arguments, *common], 8, logs)


def peak_at(bench: GpuBench, tokens: int, device_bytes: int) -> dict[str, Any]:
    """Ours with one document of `tokens` and `device_bytes` of memory: its planner has to checkpoint."""
    workload, exported = prepare(bench, tokens=tokens, packs=1, steps=2)
    return one_run(bench, "ours", workload, exported, device_bytes)


def longest_context(bench: GpuBench, device_bytes: int) -> int:
    """Tokens of the longest document that ours trains on in `device_bytes`, to within 1/16."""

    def fits(tokens: int) -> bool:
        try:
            peak_at(bench, tokens, device_bytes)
        except SystemExit:
            return False
        return True

    return longest(fits, start=8192, limit=CONTEXT)


def longest(fits: Callable[[int], bool], *, start: int, limit: int) -> int:
    """The largest count that fits: doubled, then the gap halved until it is a 16th; 0 when none does."""
    good, bad = 0, start
    while bad <= limit and fits(bad):
        good, bad = bad, bad * 2
    while good and bad - good > good // 16:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return min(good, limit)


def mfu(bench: GpuBench, workload: Workload, exported: Exported, tokens_per_second: float) -> float | None:
    """Share of the GPU's published bf16 rate, by the LoRA-aware count; None for a device without one."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    peak = next((rate for known, rate in DENSE_BF16_PEAK.items() if known in name), None)
    if peak is None:
        return None
    return tokens_per_second * flops_per_token(bench, workload, exported) / peak


def flops_per_token(bench: GpuBench, workload: Workload, exported: Exported) -> float:
    shape = shape_of(open_base(bench.base))
    samples = [[exported.train[index] for index in step] for step in exported.steps]
    flops = sum(
        arithmetic.step_flops(
            shape, workload.spec, [len(each) for each in step], sum(each.trained_tokens for each in step)
        )
        for step in samples
    )
    return flops / sum(exported.step_tokens)


def make_base(folder: Path, shape: dict[str, Any], tokenizer: Path) -> Path:
    """A Llama of random bf16 weights in `folder`, with the tokenizer and template of another base."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - slow to import

    vocabulary = {"vocab_size": len(AutoTokenizer.from_pretrained(tokenizer, local_files_only=True))}
    config = LlamaConfig(**(vocabulary | shape), max_position_embeddings=CONTEXT, tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def all_versions() -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "bitsandbytes", "trl", "unsloth")
    found = {"ours": versions(sys.executable, packages)}
    for name in ("trl", "unsloth"):
        if (home() / name / "stamp").is_file():
            found[name] = versions(home() / name / "bin" / "python", packages)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of 2 x 4,096 tokens; the first is not timed")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--tokenizer", type=Path, default=home().parent / "bases" / "smollm2-135m-instruct", metavar="DIR"
    )
    parser.add_argument("--scratch", type=Path, help="folder with room for 17 GB of weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
