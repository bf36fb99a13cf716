"""`python -m workers`: train, estimate, validate, base, evaluate, agent.

Results go to stdout, everything else to stderr.
"""

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Literal

from workers.contract import TrainProgress, ValidateSpec, ValidationReport


def main(arguments: list[str]) -> int:
    parsed = _parser(arguments[:1]).parse_args(arguments)
    command: str = parsed.command
    return {
        "train": _train,
        "estimate": _estimate,
        "validate": _validate,
        "base": _base,
        "evaluate": _evaluate,
        "agent": _agent,
    }[command](parsed)


def _parser(wanted: list[str]) -> argparse.ArgumentParser:
    """The parser; rooms that own their arguments are loaded only when their command is `wanted`."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train an adapter; the last line is the result as JSON")
    train.add_argument("--base", type=Path, required=True, metavar="DIR", help="folder of the base's weights")
    train.add_argument("--data", type=Path, required=True, metavar="FILE", help="chats as JSONL")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="where losses and adapter go")
    train.add_argument("--eval", type=Path, metavar="FILE", help="held-out chats as JSONL")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    train.add_argument("--spec", type=Path, metavar="FILE", help="settings as a JSON object")
    train.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may be repeated"
    )

    estimate = commands.add_parser(
        "estimate", help="tokens, memory and time of a run before it runs; exit 1 when it cannot fit"
    )

    validate = commands.add_parser(
        "validate", help="check a dataset file; exit 0 when every row can be trained on"
    )
    validate.add_argument("file", type=Path, metavar="FILE")
    validate.add_argument("--json", action="store_true", help="print the report as JSON")

    base = commands.add_parser(
        "base", help="check a base folder, print its facts and keep them in its base.json"
    )
    base.add_argument("path", type=Path, metavar="DIR")

    evaluate = commands.add_parser("evaluate", help="answer rows with base and adapter, and grade them")
    agent = commands.add_parser("agent", help="keep one engine's adapters as the platform wants them")
    if wanted == ["estimate"]:
        from workers.training.estimate_cli import add_arguments as add_estimate  # noqa: PLC0415

        add_estimate(estimate)
    if wanted == ["evaluate"]:
        from workers.evaluation.cli import add_arguments as add_evaluate  # noqa: PLC0415

        add_evaluate(evaluate)
    if wanted == ["agent"]:
        from workers.serving.cli import add_arguments as add_agent  # noqa: PLC0415

        add_agent(agent)
    return parser


def _train(parsed: argparse.Namespace) -> int:
    from workers.training import train  # noqa: PLC0415 - each command loads only what it needs
    from workers.training.errors import Cancelled, TrainingError  # noqa: PLC0415
    from workers.training.settings import spec_for  # noqa: PLC0415

    stop = _StopOnSignal()
    try:
        # Libraries that print must not come between a script and the result.
        with contextlib.redirect_stdout(sys.stderr):
            result = train(
                spec_for(parsed.base, parsed.spec, parsed.set),
                base=parsed.base,
                data=parsed.data,
                eval_data=parsed.eval,
                out=parsed.out,
                on_event=_print_progress,
                resume=parsed.resume,
                should_stop=stop,
            )
    except TrainingError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr)
        return 1
    except Cancelled:
        print("Stopped. Resume with --resume where checkpoints were written.", file=sys.stderr)
        return 130
    print(result.model_dump_json())
    return 0


def _estimate(parsed: argparse.Namespace) -> int:
    from workers.training.estimate_cli import run  # noqa: PLC0415

    return run(parsed)


class _StopOnSignal:
    """Ctrl-C and SIGTERM stop the run after the step it is in; a second one stops it at once."""

    def __init__(self) -> None:
        self.wish: Literal["continue", "cancel"] = "continue"
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, number: int, _frame: FrameType | None) -> None:
        self.wish = "cancel"
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> Literal["continue", "cancel"]:
        return self.wish


def _print_progress(progress: TrainProgress) -> None:
    if progress.loss is None:
        print(f"{progress.phase}: {progress.message}", file=sys.stderr, flush=True)
        return
    print(
        f"step {progress.step}/{progress.total_steps}  loss {progress.loss:.4f}  "
        f"{progress.tokens_per_second:.0f} tokens/s  {progress.eta_seconds:.0f} s left",
        file=sys.stderr,
        flush=True,
    )


def _validate(parsed: argparse.Namespace) -> int:
    from workers.data.limited import validate_in_child  # noqa: PLC0415

    report = validate_in_child(parsed.file, ValidateSpec())
    print(
        json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
        if parsed.json
        else _report_text(report)
    )
    return 0 if report.valid and not report.error_count else 1


def _report_text(report: ValidationReport) -> str:
    lines = [f"{report.rows:,} rows, {report.valid:,} of them can be trained on ({report.seconds:.1f} s)."]
    for name, problems, count in (
        ("error", report.errors, report.error_count),
        ("warning", report.warnings, report.warning_count),
    ):
        for problem in problems:
            place = "file" if problem.row == 0 else f"row {problem.row}"
            place += f", {problem.field}" if problem.field else ""
            lines.append(f"{name}: {place}: {problem.message} [{problem.code}]")
        if count > len(problems):
            lines.append(f"{count - len(problems):,} more {name}s are not listed.")
    return "\n".join(lines)


def _base(parsed: argparse.Namespace) -> int:
    from workers.training.base import base_facts, open_base  # noqa: PLC0415
    from workers.training.errors import TrainingError  # noqa: PLC0415

    try:
        facts = json.dumps(base_facts(open_base(parsed.path)))
    except TrainingError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr)
        return 1
    try:
        (parsed.path / "base.json").write_text(facts + "\n", encoding="utf-8")
    except OSError as error:
        print(f"base.json was not written: {error.strerror}.", file=sys.stderr)
    print(facts)
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from workers.evaluation.cli import run  # noqa: PLC0415

    return run(parsed)


def _agent(parsed: argparse.Namespace) -> int:
    from workers.serving.cli import run  # noqa: PLC0415

    return run(parsed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
