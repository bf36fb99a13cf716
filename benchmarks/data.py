"""The data rooms, measured: `make bench-data`. Ends with one JSON line. Needs no server, and 2 GB of disk.

- `stream`: checking JSON Lines chats: everything but tokens and near duplicates. `peer`: roles, empty texts,
  exact repeats, lengths, and the one pattern that says where to look for personal data and residue (not the
  looking, not the normalised file), as a loop over `datasets` and pandas in PEER_PYTHON; null where they are
  not installed.
- `near`: the same with near duplicates.
- `derive`: a new version of the normalised rows: personal data masked, exact repeats dropped, checked anew.
- `cpu_ms_per_mb` is what all processes of a measurement spent, whoever else used the cores.
- `tokens`: counting the tokens of a part of the file, rendered with the base's template, beside the base's
  tokenizer alone over the same texts in batches of 256 with its own threads; null without `--base`.
  `cpu_share_of_bare` is the same by processor time, but for what the processes of the templates spend.
- `detectors`: precision and recall of the personal-data and secret detectors on people that Faker made up, in
  several locales, among texts without any.
"""

import argparse
import json
import os
import random
import resource
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from faker import Faker  # noqa: E402

from benchmarks.report import Line  # noqa: E402
from workers.contract import DeriveSource, DeriveSpec, DropDuplicates, Mask, ValidateSpec  # noqa: E402
from workers.data.figures import RESIDUE  # noqa: E402
from workers.data.limited import derive_in_child, validate_in_child  # noqa: E402
from workers.data.personal import PREFILTER, kinds, personal_kinds  # noqa: E402

TOKEN_ROWS = 40_000
LOCALES = ("en_US", "de_DE", "fr_FR", "it_IT", "es_ES", "en_GB")
PEER = """
import sys, time, json, hashlib, re
from collections import Counter
from datasets import load_dataset
watched = re.compile(sys.argv[3])
start = time.monotonic()
data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
frame = data.to_pandas()
seen, valid, flagged, lengths = set(), 0, 0, Counter()
for messages in frame["messages"]:
    roles = [m["role"] for m in messages]
    good = roles[-1] == "assistant" and all(m["content"].strip() for m in messages)
    valid += good
    seen.add(hashlib.sha256(json.dumps([dict(m) for m in messages], sort_keys=True).encode()).digest())
    lengths[sum(len(m["content"]) for m in messages).bit_length()] += 1
    texts = [m["content"] for m in messages] + [m.get("reasoning_content") or "" for m in messages]
    flagged += any(watched.search(text) for text in texts)
print(json.dumps({"seconds": time.monotonic() - start, "valid": valid, "unique": len(seen)}))
"""


def write_chats(path: Path, rows: int) -> None:
    """Chats of about a kilobyte: random words, one row in fifty a repeat, one in fifty almost one."""
    rng = random.Random(3)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(20_000)]
    said: list[str] = rng.choices(words, k=150)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % 50 == 2:
                said[70] = rng.choice(words)
            elif number % 50 != 1:
                said = rng.choices(words, k=150)
            answer = {
                "role": "assistant",
                "reasoning_content": " ".join(said[60:130]),
                "content": " ".join(said[130:]),
            }
            file.write(
                json.dumps({"messages": [{"role": "user", "content": " ".join(said[:60])}, answer]}) + "\n"
            )


def measure(path: Path, *, near: bool) -> dict[str, float | int]:
    """One check in the limited child, as a worker does it, normalised file included."""
    size = path.stat().st_size
    start, spent = time.monotonic(), cpu_seconds()
    report = validate_in_child(
        path, ValidateSpec(near_duplicates=near), rows_file=path.with_name("rows.parquet")
    )
    seconds, spent = time.monotonic() - start, cpu_seconds() - spent
    assert report.doctor is not None and report.valid == report.rows, report.errors[:3]
    return {
        "rows": report.rows,
        "seconds": round(seconds, 2),
        "mb_per_second": round(size / 1e6 / seconds, 1),
        "cpu_ms_per_mb": round(spent * 1e9 / size, 1),
        "reader_peak_mib": report.peak_rss_bytes >> 20,
        "helper_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "exact_duplicates": report.doctor.exact_duplicates,
        "near_duplicates": report.doctor.near_duplicates,
    }


def cpu_seconds(*, itself: bool = False) -> float:
    """Of all children that have ended, and of this process too where `itself` is asked for."""
    who = [resource.RUSAGE_CHILDREN, *([resource.RUSAGE_SELF] if itself else [])]
    used = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure_derivation(rows_file: Path, size: int) -> dict[str, float | int]:
    """`size`: bytes of the original."""
    spec = DeriveSpec(
        sources=[DeriveSource(name="chats", sha256="0" * 64)],
        operations=[Mask(kinds=list(kinds())), DropDuplicates()],
        near_duplicates=False,
    )
    source = rows_file.rename(rows_file.with_name("source.parquet"))
    start, spent = time.monotonic(), cpu_seconds()
    result = derive_in_child(spec, [source], rows_file.parent)
    seconds, spent = time.monotonic() - start, cpu_seconds() - spent
    assert result.report is not None
    return {
        "rows": result.report.valid,
        "seconds": round(seconds, 2),
        "mb_per_second": round(size / 1e6 / seconds, 1),
        "cpu_ms_per_mb": round(spent * 1e9 / size, 1),
        "peak_mib": result.peak_rss_bytes >> 20,
    }


def measure_tokens(path: Path, base: Path, rows: int) -> dict[str, float | int]:
    """`count`, as a worker does it, beside the bare tokenizer. Loading the tokenizer is in neither."""
    from workers.contract import ThinkContract  # noqa: PLC0415 - transformers takes seconds to load
    from workers.contract.workload import CountSpec  # noqa: PLC0415
    from workers.data import read_rows  # noqa: PLC0415
    from workers.data.think import with_reasoning  # noqa: PLC0415
    from workers.training.counting import count  # noqa: PLC0415
    from workers.training.tokenizer import load_tokenizer  # noqa: PLC0415

    think = ThinkContract(family="plain", history_keeps=True)
    part = path.with_name("part.jsonl")
    with path.open("rb") as whole, part.open("wb") as out:
        out.writelines(islice(whole, rows))
    tokenizer = load_tokenizer(base)
    texts = ["".join(with_reasoning(said, think) for said in row["messages"]) for row in read_rows(part)]
    start, spent = time.monotonic(), cpu_seconds(itself=True)
    bare = 0
    for at in range(0, len(texts), 256):
        found = tokenizer(texts[at : at + 256], add_special_tokens=False)["input_ids"]
        bare += sum(map(len, found))
    bare_seconds, bare_cpu = time.monotonic() - start, cpu_seconds(itself=True) - spent
    spec = CountSpec(base="base", think=think, think_policy="traces")
    start, spent = time.monotonic(), cpu_seconds(itself=True)
    load_tokenizer(base)
    loading, loading_cpu = time.monotonic() - start, cpu_seconds(itself=True) - spent
    start, spent = time.monotonic(), cpu_seconds(itself=True)
    counted = count(spec, base=base, data=part)
    seconds = time.monotonic() - start - loading
    cpu = cpu_seconds(itself=True) - spent - loading_cpu
    return {
        "rows": counted.rows,
        "tokens_per_second": round(counted.tokens / seconds),
        "bare_tokens_per_second": round(bare / bare_seconds),
        "share_of_bare": round(counted.tokens / seconds / (bare / bare_seconds), 2),
        "cpu_share_of_bare": round(counted.tokens / cpu / (bare / bare_cpu), 2),
    }


def measure_peer(path: Path, scratch: Path) -> dict[str, float] | None:
    """The loop over datasets and pandas, in its own process; None where they are not installed."""
    python = os.environ.get("PEER_PYTHON", sys.executable)
    spent = cpu_seconds()
    done = subprocess.run(
        [python, "-c", PEER, str(path), str(scratch / "cache"), f"{PREFILTER}|{RESIDUE}"],
        capture_output=True, text=True, check=False, timeout=3600,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    size = path.stat().st_size
    return found | {
        "mb_per_second": round(size / 1e6 / found["seconds"], 1),
        "cpu_ms_per_mb": round((cpu_seconds() - spent) * 1e9 / size, 1),
    }


def secrets_of(rng: random.Random) -> dict[str, Callable[[], str]]:
    """Made-up secrets in the shapes that providers document."""
    letters = string.ascii_letters + string.digits

    def some(count: int, alphabet: str = letters) -> str:
        return "".join(rng.choices(alphabet, k=count))

    return {
        "api_key": lambda: rng.choice(
            [
                "sk-proj-" + some(40),
                "AKIA" + some(16, string.ascii_uppercase + string.digits),
                "ghp_" + some(36),
            ]
        ),
        "private_key": lambda: "-----BEGIN RSA PRIVATE KEY-----",
        "access_token": lambda: f"eyJ{some(20)}.eyJ{some(40)}.{some(43)}",
        "password": lambda: f"password={some(14)}",
    }


def measure_detectors(people: int) -> dict[str, dict[str, float | int]]:
    """Each value alone inside a sentence; precision also counts what is found in sentences without any."""
    rng = random.Random(5)
    Faker.seed(5)
    hits, made, wrong = Counter[str](), Counter[str](), Counter[str]()
    for locale in LOCALES:
        fake = Faker(locale)
        makers: dict[str, Callable[[], str]] = {
            "email": fake.email,
            "phone": fake.phone_number,
            "iban": fake.iban,
            "card_number": fake.credit_card_number,
            **secrets_of(rng),
        }
        if locale in ("en_US", "es_ES", "it_IT", "fr_FR"):
            makers["national_id"] = fake.nif if locale == "es_ES" else fake.ssn
        for _ in range(people):
            for kind, make in makers.items():
                found = personal_kinds(f"{fake.sentence()} {make()} {fake.sentence()}")
                made[kind] += 1
                hits[kind] += kind in found
                wrong.update(set(found) - {kind})
            numbers = f"{rng.randint(1, 10**12)} {fake.date()} {rng.random():.6f}"
            plain = f"{fake.sentence()} {numbers} {fake.sentence()}"
            wrong.update(set(personal_kinds(plain)))
    return {
        kind: {
            "made": made[kind],
            "recall": round(hits[kind] / made[kind], 3),
            "precision": round(hits[kind] / max(1, hits[kind] + wrong[kind]), 3),
        }
        for kind in sorted(made)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=200, help="people for each locale")
    parser.add_argument("--base", type=Path, help="folder of a base, for `tokens`")
    given = parser.parse_args()
    line = Line("data")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = scratch / "chats.jsonl"
        write_chats(data, given.rows)
        figures = {
            "bytes": data.stat().st_size,
            "stream": measure(data, near=False),
            "near": measure(data, near=True),
            "derive": measure_derivation(scratch / "rows.parquet", data.stat().st_size),
            "tokens": measure_tokens(data, given.base, min(given.rows, TOKEN_ROWS)) if given.base else None,
            "peer": measure_peer(data, scratch),
            "detectors": measure_detectors(given.people),
        }
    line.end(figures)


if __name__ == "__main__":
    main()
