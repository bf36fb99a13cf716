"""The engine beside TRL on a CPU: real tokens per second at equal loss. The last line is the result as JSON.

    python -m benchmarks.engine --base DIR [--full] [--rounds 5] [--turn 6]

All sides train the same samples in the same steps from the same LoRA on the same NF4 weights, two threads
each, and take turns (see turns.py). A side's figure is the median over the rounds, after one step that nobody
times. The loss gate is step-0 loss, gradients and the curves of 200 steps; `--full` adds the held-out loss of
three seeds, which takes an hour more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import arithmetic, gate
from benchmarks.engine.environment import home, python_of, versions
from benchmarks.engine.export import Exported, export, export_lora
from benchmarks.engine.turns import ROOT, Side, start
from benchmarks.engine.whole import whole_run
from benchmarks.engine.workload import CONTRACTS, Workload, contracts, full_packs
from benchmarks.report import Line
from workers.contract import TrainSpec
from workers.training.base import open_base, shape_of

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")
STEP0_SAMPLES = 64
GATE_STEPS = 200
GATE_BATCH = 2
SEEDS = (0, 1, 2)
TRL = ("trl_default", "trl_tuned")


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    base: Path
    folder: Path
    """Empty; thrown away afterwards."""
    logs: Path
    peer: Path
    """The interpreter of TRL's environment."""
    threads: int


def main() -> None:
    parsed = _arguments()
    line = Line("engine")
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as folder:
        bench = Bench(parsed.base.resolve(), Path(folder), home() / "logs", python_of("trl"), parsed.threads)
        steps = 1 + parsed.rounds * parsed.turn
        checks, step0 = measure_step0(bench)
        short = measure(bench, contracts(bench.base, steps), parsed.rounds, parsed.turn)
        steps = 1 + parsed.full_rounds * parsed.full_turn
        long = measure(
            bench, full_packs(bench.base, steps, bench.folder), parsed.full_rounds, parsed.full_turn
        )
        checks.append(curve(bench))
        if parsed.full:
            checks.append(heldout(bench))
    figures = {
        "real_tokens_per_second": short["real_tokens_per_second"],
        "ratios": short["ratios"],
        "loss_gate": gate.verdict(checks) | step0,
        "peak_memory_bytes": short["peak_memory_bytes"],
        "predicted": short["whole_run"]["predicted"],
        "measured": short["whole_run"]["measured"],
        "contracts": short,
        "full_packs": long,
        "threads": bench.threads,
        "versions": {"ours": versions(sys.executable, PACKAGES), "trl": versions(bench.peer, PACKAGES)},
    }
    line.end(figures)


def measure(bench: Bench, workload: Workload, rounds: int, turn: int) -> dict[str, Any]:
    """Speed of all sides on one workload, their losses and memory, and what the estimate had said."""
    exported = prepare(bench, workload)
    whole = whole_run(
        workload,
        bench.base,
        bench.folder / f"whole-{workload.name}",
        bench.threads,
        bench.logs / f"whole-{workload.name}.log",
    )
    say(f"predicted and measured of a whole run: {json.dumps(whole)}")
    say(f"{workload.about}; {statistics.fmean(exported.step_tokens):.0f} tokens a step")
    with sides(bench, workload, exported, ("ours", *TRL)) as running:
        speeds = take_turns(running, exported.step_tokens, rounds, turn)
        for side in running:
            side.finish()
    medians = {name: round(statistics.median(found), 1) for name, found in speeds.items()}
    return {
        "about": workload.about,
        "real_tokens_per_second": medians,
        "all_rounds": {name: [round(speed, 1) for speed in found] for name, found in speeds.items()},
        "ratios": {f"ours/{name}": round(ratio(speeds["ours"], speeds[name]), 3) for name in TRL},
        "tokens_per_step": statistics.fmean(exported.step_tokens),
        "trained_share": round(exported.trained_share, 3),
        "arithmetic": arithmetic_limit(bench, workload.spec, exported, medians),
        "peak_memory_bytes": {side.name: side.facts["peak_resident_bytes"] for side in running},
        "losses": {side.name: side.facts["losses"] for side in running},
        "whole_run": whole,
        "peer": {name: running_facts(running, name) for name in TRL},
    }


def take_turns(
    running: Sequence[Side], step_tokens: Sequence[int], rounds: int, turn: int
) -> dict[str, list[float]]:
    """Real tokens per second of every side in every round, A B C A B C; the first step is not counted."""
    speeds: dict[str, list[float]] = {side.name: [] for side in running}
    for side in running:
        side.take(1)
    for number in range(rounds):
        first = 1 + number * turn
        tokens = sum(step_tokens[first : first + turn])
        for side in running:
            speeds[side.name].append(tokens / sum(side.take(turn)))
        shown = "  ".join(f"{name} {found[-1]:.0f}" for name, found in speeds.items())
        say(f"round {number + 1}/{rounds}: {shown} tokens/s (load {os.getloadavg()[0]:.1f})")
    return speeds


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of the two speeds' ratio: what slowed a round, slowed both."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def prepare(bench: Bench, workload: Workload, heldout: Path | None = None) -> Exported:
    """Everything that the sides read, in a folder named after the workload."""
    folder = bench.folder / workload.name
    exported = export(workload, bench.base, folder, heldout)
    (folder / "spec.json").write_text(workload.spec.model_dump_json(), encoding="utf-8")
    export_lora(bench.base, workload.spec, folder / "lora.safetensors")
    return exported


@contextmanager
def sides(
    bench: Bench,
    workload: Workload,
    exported: Exported,
    names: Sequence[str],
    *,
    heldout: Path | None = None,
    extra: Sequence[str] = (),
) -> Iterator[list[Side]]:
    """The named sides, loaded one after the other and waiting for their first turn."""
    running: list[Side] = []
    try:
        for name in names:
            out = bench.folder / "out" / name
            if name == "ours":
                arguments = ["--data", str(workload.data), "--spec", str(exported.folder / "spec.json")]
                arguments += ["--heldout", str(heldout)] if heldout else []
                command: tuple[Any, str] = (sys.executable, "benchmarks.engine.ours")
            else:
                setting = name.removeprefix("trl_").removesuffix("_padded")
                arguments = [setting, "--exported", str(exported.folder)]
                arguments += ["--lora", str(exported.folder / "lora.safetensors"), *extra]
                arguments += ["--checkpointing", "no"] if name.endswith("_padded") else []
                command = (bench.peer, "benchmarks.engine.peer")
            arguments += ["--base", str(bench.base), "--out", str(out)]
            running.append(start(name, *command, arguments, bench.threads, bench.logs))
            running[-1].until_ready()
        yield running
    finally:
        for side in running:
            side.stop()


def running_facts(running: Sequence[Side], name: str) -> dict[str, Any]:
    facts = next(side.facts for side in running if side.name == name)
    return {key: facts[key] for key in ("attention", "trainable_dtype")}


def arithmetic_limit(
    bench: Bench, spec: TrainSpec, exported: Exported, medians: dict[str, float]
) -> dict[str, Any]:
    """What the two cores could do if training were nothing but bf16 products, and each side's share of it."""
    import torch  # noqa: PLC0415 - only its matrix product is needed here

    torch.set_num_threads(bench.threads)
    shape = shape_of(open_base(bench.base))
    tokens = round(statistics.fmean(exported.step_tokens))
    rates = arithmetic.matmul_rates(shape, min(tokens, spec.micro_batch_tokens), torch.device("cpu"))
    flops = [
        arithmetic.step_flops(
            shape,
            spec,
            [len(exported.train[index]) for index in step],
            sum(exported.train[index].trained_tokens for index in step),
        )
        for step in exported.steps
    ]
    per_token = sum(flops) / sum(exported.step_tokens)
    limit = rates["mean"] / per_token
    return {
        "bf16_gflops_per_second": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "flops_per_token": round(per_token),
        "tokens_per_second_limit": round(limit, 1),
        "share_of_limit": {name: round(speed / limit, 3) for name, speed in medians.items()},
    }


def measure_step0(bench: Bench) -> tuple[list[gate.Check], dict[str, Any]]:
    """Step-0 loss and gradients against the fp32 reference."""
    workload = contracts(bench.base, 1, batch_size=STEP0_SAMPLES)
    spec = bench.folder / "step0.json"
    spec.write_text(workload.spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.engine.gradients", "--base", str(bench.base)]
    command += ["--data", str(workload.data), "--spec", str(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(bench.threads)}
    log = bench.logs / "gradients.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stream, text=True, check=False
        )
    if done.returncode != 0:
        raise SystemExit(f"The gradients could not be compared; see {log}.")
    found = json.loads(done.stdout.splitlines()[-1])
    checks = [gate.check_step0(**found["step0_loss"]), gate.check_gradients(found.pop("cosines"))]
    for check in checks:
        word = "passed" if check.passed else "FAILED"
        say(f"{check.name}: {check.figure:.6f} (limit {check.limit}), {word}")
    return checks, {"step0": found}


def curve(bench: Bench) -> gate.Check:
    """200 steps: the engine's losses between those of TRL packed and TRL padded."""
    workload = contracts(bench.base, GATE_STEPS, batch_size=GATE_BATCH)
    exported = prepare(bench, workload)
    names = ("ours", "trl_tuned", "trl_default_padded")
    with sides(bench, workload, exported, names) as running:
        for side in running:
            side.take(GATE_STEPS)
            side.finish()
    return gate.check_curve(*(side.facts["losses"] for side in running))


def heldout(bench: Bench) -> gate.Check:
    """Held-out loss after one epoch with three seeds, of the engine and of TRL tuned."""
    found: dict[str, list[float]] = {"ours": [], "trl_tuned": []}
    rows = len((CONTRACTS / "train.jsonl").read_text(encoding="utf-8").splitlines())
    for seed in SEEDS:
        workload = contracts(bench.base, rows // 8, seed=seed)
        exported = prepare(bench, workload, CONTRACTS / "heldout.jsonl")
        with sides(bench, workload, exported, tuple(found), heldout=CONTRACTS / "heldout.jsonl") as running:
            for side in running:
                side.take(len(exported.steps))
                side.finish()
                found[side.name].append(side.facts["heldout_loss"])
        say(f"held-out loss, seed {seed}: {found}")
    return gate.check_heldout(found["ours"], found["trl_tuned"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    parser.add_argument("--full", action="store_true", help="with the held-out loss of three seeds")
    parser.add_argument("--rounds", type=int, default=5, help="of the contract data")
    parser.add_argument("--turn", type=int, default=6, help="steps of a side in a round")
    parser.add_argument("--full-rounds", type=int, default=3, help="of the full packs")
    parser.add_argument("--full-turn", type=int, default=2)
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    return parser.parse_args()


if __name__ == "__main__":
    main()
