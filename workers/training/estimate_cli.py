"""`python -m workers estimate`: what a run would take, for a person and, as the last line, for a program."""

import argparse
import sys
from pathlib import Path

from workers.contract.estimate import Estimate
from workers.contract.machines import GIB, Machine
from workers.training.errors import TrainingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=Path, required=True, metavar="DIR", help="folder of the base's weights"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="chats as JSONL")
    parser.add_argument("--eval", type=Path, metavar="FILE", help="held-out chats as JSONL")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="settings as a JSON object")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may be repeated"
    )
    parser.add_argument(
        "--device", default="", metavar="NAME", help="`cpu` or a GPU such as 'L40S'; default: what is here"
    )
    parser.add_argument(
        "--device-memory", type=_bytes, default=0, metavar="BYTES", help="memory that the run may take"
    )
    parser.add_argument(
        "--past",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="--out of an earlier run, newest first",
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON line")


def run(parsed: argparse.Namespace) -> int:
    from workers.training.estimate import estimate_run, machine_for  # noqa: PLC0415 - the parser comes first
    from workers.training.settings import spec_for  # noqa: PLC0415

    try:
        machine = machine_for(parsed.device, parsed.device_memory)
        estimate = estimate_run(
            spec_for(parsed.base, parsed.spec, parsed.set),
            base=parsed.base,
            data=parsed.data,
            eval_data=parsed.eval,
            machine=machine,
            past=parsed.past,
        )
    except TrainingError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr)
        return 1
    if not parsed.json:
        print(_text(estimate, machine))
    print(estimate.model_dump_json())
    if estimate.fits:
        return 0
    print(f"error: does_not_fit: {_refusal(estimate, machine)}", file=sys.stderr)
    return 1


def _text(estimate: Estimate, machine: Machine) -> str:
    left_out = f"; {estimate.excluded:,} samples are too long and left out" if estimate.excluded else ""
    where = f"cpu with {machine.cores} cores" if machine.device == "cpu" else machine.name
    made_of = (
        f"corrected by {estimate.past_runs} earlier runs"
        if estimate.past_runs
        else "its speed measured just now"
        if machine.device == "cpu"
        else "no earlier run known, so half to twice"
    )
    return "\n".join(
        [
            f"Samples  {estimate.samples:,}{left_out}",
            f"Tokens   {estimate.tokens:,} through the model, {estimate.trained_tokens:,} of them trained on",
            f"Steps    {estimate.steps:,}; {estimate.packs:,} packs up to {estimate.largest_pack:,} tokens",
            f"Memory   {_gib(estimate.memory_low_bytes)} to {_gib(estimate.memory_high_bytes)} GiB, likely "
            f"{_gib(estimate.memory_bytes)}, of {_gib(machine.memory_bytes)} free",
            f"Time     {_time(estimate.seconds_low)} to {_time(estimate.seconds_high)}, likely "
            f"{_time(estimate.seconds)}, on {where} ({made_of})",
            f"Plan     {estimate.plan.name}",
        ]
    )


def _refusal(estimate: Estimate, machine: Machine) -> str:
    return (
        f"The run needs {_gib(estimate.memory_bytes)} GiB in its smallest form; "
        f"{_gib(machine.memory_bytes)} GiB are free. {estimate.advice}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bytes(text: str) -> int:
    """Bytes, or a number with K, M, G or T for powers of 1,024, as in 24G."""
    unit = {"K": 1, "M": 2, "G": 3, "T": 4}.get(text[-1:].upper(), 0)
    try:
        size = int(float(text[:-1] if unit else text) * 1024**unit)
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size. Write bytes, or a number with K, M, G or T: 24G."
        )
    return size
