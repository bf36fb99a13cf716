"""What a preview shows is what the trainer renders, family by family and policy by policy."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.workers.training.tiny import FAMILIES, make_base, tokenizer_of
from workers.contract import PreviewResult, PreviewSample, PreviewSpec, ThinkPolicy, ValidateSpec
from workers.data import read_rows
from workers.data.validation import validate
from workers.training.errors import TrainingError
from workers.training.preview import SHOWN_CHARACTERS, preview
from workers.training.render import Renderer

POLICIES: tuple[ThinkPolicy, ...] = get_args(ThinkPolicy)
USER = {"role": "user", "content": "How many legs has a cat?"}
ANSWER = {"role": "assistant", "content": "Four."}
THOUGHT = {**ANSWER, "reasoning_content": "A cat is a mammal."}
ROWS = [
    {"messages": [USER, THOUGHT, USER, ANSWER]},
    {"messages": [USER, ANSWER]},
    {"messages": [USER, THOUGHT]},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One base a family, made when it is asked for first."""

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            folder = tmp_path_factory.mktemp("bases") / family
            folder.mkdir()
            tokenizer_of(family).save_pretrained(folder)
            self[family] = folder
            return folder

    return Made()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The rows, normalised, after one that is in error."""
    file, rows_file = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    file.write_text("\n".join(["broken", *map(json.dumps, ROWS)]), encoding="utf-8")
    validate(file, ValidateSpec(), rows_file=rows_file)
    return rows_file


def look(
    base: Path, data: Path, family: str = "plain", policy: ThinkPolicy = "traces", **more: Any
) -> PreviewResult:
    spec = PreviewSpec(base="b", think=FAMILIES[family].think, think_policy=policy, **more)
    return preview(spec, base=base, data=data)


def text(sample: PreviewSample, **wanted: bool) -> str:
    return "".join(
        segment.text
        for segment in sample.segments
        if all(getattr(segment, name) == value for name, value in wanted.items())
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_are_what_the_trainer_renders(
    bases: dict[str, Path], data: Path, family: str, policy: ThinkPolicy
) -> None:
    found = look(bases[family], data, family, policy)
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    samples = list(renderer.samples(read_rows(data)))
    shown = [sample for row in found.rows for sample in row.samples]
    assert [row.row for row in found.rows] == [2, 3, 4]
    assert [each.turn for each in shown] == [each.turn for each in samples]
    for one, two in zip(shown, samples, strict=True):
        assert (one.prompt_tokens, one.target_tokens) == (len(two.prompt_ids), len(two.target_ids))
        assert one.trained_tokens == two.trained_tokens
        assert sum(segment.tokens for segment in one.segments if segment.trained) == two.trained_tokens
        decode = renderer.tokenizer.decode
        assert text(one, target=True) == decode(two.target_ids)
        assert text(one, target=False) == decode(two.prompt_ids)
    thinks = policy != "no_think"
    assert ("A cat is a mammal." in text(shown[0], think=True)) == thinks
    assert ("A cat is a mammal." in text(shown[0], trained=True)) == (policy == "traces")
    assert "Four." in text(shown[0], think=False, trained=True)
    (counts, *_) = found.policies
    assert counts.policy == policy and counts.samples == 4
    assert counts.trained_tokens == sum(sample.trained_tokens for sample in samples)
    assert counts.with_reasoning == (2 if thinks else 0)
    assert found.counts is not None and found.counts.tokens == sum(map(len, samples))


def test_every_policy_is_counted_whichever_is_shown(bases: dict[str, Path], data: Path) -> None:
    by_policy = {policy: look(bases["qwen3"], data, "qwen3", policy) for policy in POLICIES}
    for policy, found in by_policy.items():
        assert {each.policy: each for each in found.policies} == {
            each: by_policy[each].policies[0] for each in POLICIES
        }, policy
    traces, answer_only, no_think = (by_policy[policy].policies[0] for policy in POLICIES)
    assert traces.trained_tokens == answer_only.trained_tokens + answer_only.think_tokens
    assert no_think.trained_tokens < traces.trained_tokens


def test_what_is_beyond_the_limit_is_named_with_what_would_be_lost(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    long = "word " * 100
    rows = [
        [USER, THOUGHT],
        [{"role": "user", "content": long}, ANSWER],
        [USER, {**ANSWER, "reasoning_content": long}],
        [USER, {"role": "assistant", "content": long}],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    found = look(bases["plain"], file, max_length=128)
    assert found.beyond.model_dump() == {
        "samples": 3,
        "rows": [2, 3, 4],
        "prompt": 1,
        "close_tag": 1,
        "answer": 1,
    }
    assert [row.samples[0].fits for row in found.rows] == [True, False, False, False]
    assert found.policies[2].beyond == 2  # without its reasoning the third fits


def test_only_the_rows_asked_for_are_shown(bases: dict[str, Path], data: Path) -> None:
    assert [row.row for row in look(bases["plain"], data, rows=[4, 1]).rows] == [4]
    found = look(bases["plain"], data, shown=1, counted_rows=2)
    assert ([row.row for row in found.rows], found.counted, found.complete) == ([2], 2, False)
    bare = look(bases["plain"], data, shown=2, counted_rows=0)
    assert (len(bare.rows), bare.counted, bare.counts, bare.policies[0].samples) == (2, 0, None, 0)


def test_a_long_text_is_cut_in_the_middle(bases: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    answer = {"role": "assistant", "content": "a" * 20_000 + "end"}
    file.write_text(json.dumps({"messages": [USER, answer]}), encoding="utf-8")
    (sample,) = look(bases["plain"], file).rows[0].samples
    last = sample.segments[-1]
    assert len(last.text) < SHOWN_CHARACTERS + 10 and "a […] a" in last.text and "end" in last.text[-30:]
    assert last.tokens == sample.target_tokens > 2048 and not sample.fits


def test_another_template_is_refused(tmp_path: Path, data: Path) -> None:
    base = make_base(tmp_path / "tiny")
    with pytest.raises(TrainingError) as refused:
        look(base, data, template_sha256="0" * 64)
    assert refused.value.code == "base_mismatch"


def test_a_bad_row_is_the_users(bases: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": []}', encoding="utf-8")
    with pytest.raises(TrainingError) as refused:
        look(bases["plain"], file)
    assert (refused.value.code, refused.value.fault) == ("bad_row", "user")


def test_of_a_long_chat_the_first_and_last_answers_are_shown(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{**USER, "content": f"Cat {number}?"} for number in range(40)]
    chat = [message for turn in turns for message in (turn, THOUGHT)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(3)), encoding="utf-8")
    found = look(bases["plain"], file)
    assert [(len(row.samples), row.left_out) for row in found.rows] == [(12, 28)] * 3
    assert [sample.turn for sample in found.rows[0].samples] == [*range(1, 12, 2), *range(69, 80, 2)]
    assert (found.counted, found.complete) == (3, True) and found.policies[0].samples == 120
    later = found.rows[0].samples[-1]
    assert later.segments[0].text.startswith("<") and "Cat 39?" in text(later) and " […] " in text(later)

    monkeypatch.setattr("workers.training.preview.COUNTED_CHARACTERS", 40_000)
    few = look(bases["plain"], file)
    assert (len(few.rows), few.counted, few.complete) == (3, 1, False) and few.policies[0].samples == 40
    monkeypatch.setattr("workers.training.preview.COUNTED_CHARACTERS", 10)
    none = look(bases["plain"], file)
    assert none.rows == few.rows and (none.counted, none.counts) == (0, None)
