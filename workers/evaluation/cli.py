"""`python -m workers evaluate`: a suite from the command line, against any OpenAI-compatible endpoint."""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from workers.contract import EvaluateSpec, SplitSpec, ThinkContract
from workers.evaluation.errors import EvaluationError
from workers.evaluation.prompts import read_prompts
from workers.evaluation.suite import ROWS_FILE, SuiteProgress, evaluate

KEY_VARIABLE = "OPENAI_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = EvaluateSpec.model_fields
    parser.add_argument("--endpoint", required=True, metavar="URL", help="base URL, ending in /v1")
    parser.add_argument(
        "--base-model", required=True, metavar="NAME", help="name of the base at the endpoint"
    )
    parser.add_argument(
        "--adapter-model", required=True, metavar="NAME", help="name of the adapter at the endpoint"
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="rows to answer (JSONL chats)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where rows.jsonl goes; without it none is kept"
    )
    parser.add_argument("--max-rows", type=int, default=defaults["max_rows"].default, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=defaults["max_tokens"].default, metavar="N")
    parser.add_argument("--concurrency", type=int, default=defaults["concurrency"].default, metavar="N")
    parser.add_argument(
        "--wait-seconds", type=int, default=0, metavar="S", help="wait for the adapter to be served"
    )
    parser.add_argument(
        "--heldout-share", type=float, default=0.0, help="answer only this held-out share of the rows"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out split")
    parser.add_argument(
        "--think",
        default='{"family": "plain"}',
        metavar="JSON",
        help="think contract of the base (ThinkContract)",
    )
    parser.epilog = f"The key for the endpoint, when it wants one, is read from {KEY_VARIABLE}."


def run(args: argparse.Namespace) -> int:
    """Prints progress on stderr and, as the last line on stdout, the EvaluationSummary as JSON."""
    try:
        spec = _spec(args)
        with ExitStack() as stack:
            out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            out.mkdir(parents=True, exist_ok=True)
            if args.data.resolve() == (out / ROWS_FILE).resolve():
                raise ValueError(f"--out would overwrite --data; choose another folder than {out}.")
            prompts = read_prompts(args.data, split=spec.split, max_rows=spec.max_rows, think=spec.think)
            summary = evaluate(spec, prompts, out=out, on_progress=_print)
    except (ValueError, OSError, EvaluationError) as error:
        print(_sentence(error), file=sys.stderr)
        return 1
    print(summary.model_dump_json())
    return 0


def _spec(args: argparse.Namespace) -> EvaluateSpec:
    return EvaluateSpec(
        base_model=args.base_model,
        adapter_model=args.adapter_model,
        endpoint=args.endpoint,
        api_key=os.environ.get(KEY_VARIABLE, ""),
        split=SplitSpec(share=args.heldout_share, seed=args.seed) if args.heldout_share else None,
        max_rows=args.max_rows,
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        think=ThinkContract.model_validate_json(args.think),
        wait_seconds=args.wait_seconds,
    )


def _print(progress: SuiteProgress) -> None:
    print(f"{progress.done}/{progress.total} {progress.message}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    return f"error: {error.code}: {error}" if isinstance(error, EvaluationError) else f"error: {error}"
