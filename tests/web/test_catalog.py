"""The catalog: its rows, and what may be added as a base."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from stillhouse.catalog.actions import add_base, sync_catalog
from stillhouse.catalog.bases import BASES
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError
from workers.contract.weights import digest_base, template_sha256

pytestmark = pytest.mark.django_db

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


def safetensors(payload: bytes = b"\0" * 8) -> bytes:
    """A whole safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(payload)]}}).encode()
    return struct.pack("<Q", len(header)) + header + payload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole base, small."""
    path = tmp_path / "SmolLM2-135M-Instruct"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (path / "model.safetensors").write_bytes(safetensors())
    sync_catalog()
    return path


def refused(folder: Path, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        add_base(folder, **options)
    assert not BaseModel.objects.exclude(digest="").exists()
    return caught.value


def test_the_catalog_is_the_data_rows_and_syncing_twice_changes_nothing() -> None:
    sync_catalog()
    sync_catalog()
    assert set(BaseModel.objects.values_list("id", flat=True)) == {base.id for base in BASES}
    assert len(BASES) == 18
    for base in BaseModel.objects.all():
        assert not base.available
        assert base.think_contract.family
        assert base.licence and "/" in base.hub_id


def test_syncing_keeps_what_was_added_and_mends_what_drifted(folder: Path) -> None:
    added = add_base(folder)
    BaseModel.objects.filter(pk=added.id).update(name="Something else")
    sync_catalog()
    added.refresh_from_db()
    assert added.available and added.name == "SmolLM2 135M Instruct" and added.path == str(folder)


def test_a_base_is_recognised_by_its_folder_and_pinned_by_digests(folder: Path) -> None:
    base = add_base(folder)
    assert base.id == "smollm2-135m-instruct"
    file_digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert base.digest == hashlib.sha256(f"{file_digest}  model.safetensors\n".encode()).hexdigest()
    assert base.template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert base.added_at is not None


def test_a_base_is_recognised_by_its_configuration_or_named_outright(folder: Path, tmp_path: Path) -> None:
    odd = folder.rename(tmp_path / "weights")
    assert refused(odd).code == "unknown_base"
    (odd / "config.json").write_text(json.dumps({**CONFIG, "_name_or_path": "Qwen/Qwen3-0.6B"}))
    assert add_base(odd).id == "qwen3-0.6b"
    assert add_base(odd, base_id="qwen3-8b").id == "qwen3-8b"
    with pytest.raises(UserError) as caught:
        add_base(odd, base_id="gpt-17")
    assert caught.value.code == "unknown_base"


def test_a_base_is_found_by_name_in_bases_dir_and_nowhere_above_it(folder: Path, settings: Any) -> None:
    settings.BASES_DIR = folder.parent
    assert add_base(folder.name).path == str(folder)
    for name in ("nothing-here", f"{folder.name}/../../{folder.parent.name}/gone", "..", ""):
        with pytest.raises(UserError) as caught:
            add_base(name)
        assert caught.value.code in ("no_such_folder", "unknown_base", "no_config")


def test_other_weights_under_the_same_id_are_refused_unless_meant(folder: Path) -> None:
    first = add_base(folder)
    (folder / "model.safetensors").write_bytes(safetensors(b"\1" * 8))
    with pytest.raises(UserError) as caught:
        add_base(folder)
    assert caught.value.code == "base_already_added"
    assert BaseModel.objects.get(pk=first.id).digest == first.digest
    assert add_base(folder, replace=True).digest != first.digest


@pytest.mark.parametrize("name", ["modeling_own.py", "code/run.py"])
def test_python_code_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("print('hello')")
    error = refused(folder)
    assert (error.code, error.place) == ("remote_code", name)


@pytest.mark.parametrize("config", ["config.json", "tokenizer_config.json"])
def test_remote_code_by_auto_map_is_refused(folder: Path, config: str) -> None:
    body = json.loads((folder / config).read_text())
    (folder / config).write_text(json.dumps({**body, "auto_map": {"AutoModel": "own--x.Model"}}))
    error = refused(folder)
    assert (error.code, error.place) == ("remote_code", config)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "original/consolidated.00.pth", "args.pkl"]
)
def test_pickles_are_refused_even_beside_safetensors(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    assert refused(folder).code == "unsafe_weights"


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("config.json", "no_config"),
        ("tokenizer.json", "no_tokenizer"),
        ("tokenizer_config.json", "no_template"),
        ("model.safetensors", "no_weights"),
    ],
)
def test_what_is_missing_is_named(folder: Path, missing: str, code: str) -> None:
    (folder / missing).unlink()
    assert refused(folder).code == code


@pytest.mark.parametrize(
    ("named", "kind", "decoder", "fits"),
    [
        ("LlamaTokenizerFast", "llama", {"type": "ByteLevel"}, False),
        ("LlamaTokenizer", "qwen3", {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, False),
        ("LlamaTokenizerFast", "qwen2", {"type": "ByteLevel"}, True),
        ("LlamaTokenizerFast", "llama", {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, True),
        ("PreTrainedTokenizerFast", "llama", {"type": "ByteLevel"}, True),
    ],
)
def test_a_tokenizer_class_that_would_drop_spaces_is_refused(
    folder: Path, named: str, kind: str, decoder: dict[str, Any], fits: bool
) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": kind}))
    (folder / "tokenizer.json").write_text(json.dumps({"decoder": decoder}))
    config = {"chat_template": TEMPLATE, "tokenizer_class": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if fits:
        assert add_base(folder)
        return
    error = refused(folder)
    assert (error.code, error.place) == ("wrong_tokenizer_class", "tokenizer_config.json")
    assert named in str(error)


def test_a_factor_of_attention_that_nothing_reads_is_refused(folder: Path) -> None:
    """As in the config.json of DeepSeek-R1-0528-Qwen3-8B, whose attn_factor takes YaRN's own scaling back."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}
    write = (folder / "config.json").write_text
    write(json.dumps(CONFIG | {"rope_scaling": scaling}))
    error = refused(folder)
    assert (error.code, error.place) == ("unread_attention_factor", "config.json")
    assert '"attention_factor": 1.0 beside' in str(error)
    write(json.dumps(CONFIG | {"rope_scaling": scaling | {"factor": None}}))
    assert refused(folder).code == "bad_config"
    write(json.dumps(CONFIG | {"rope_scaling": scaling | {"attention_factor": 1.0}}))
    assert add_base(folder)


@pytest.mark.parametrize(
    "content", [safetensors()[:-1], safetensors() + b"x", b"version https://git-lfs.github.com/spec/v1", b""]
)
def test_a_cut_copy_of_weights_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    error = refused(folder)
    assert (error.code, error.place) == ("bad_weights", "model.safetensors")


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    error = refused(folder)
    assert (error.code, error.place) == ("weights_incomplete", "model-00002.safetensors")


def test_broken_json_is_said_in_words(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")
    assert refused(folder).code == "bad_config"


def test_the_template_file_counts_before_the_tokenizers(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert template_sha256(folder) == hashlib.sha256(b"other").hexdigest()


def test_the_named_default_template_counts(folder: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert template_sha256(folder) == hashlib.sha256(TEMPLATE.encode()).hexdigest()


def test_the_digest_covers_every_shard_by_name(folder: Path) -> None:
    before = digest_base(folder)
    (folder / "model-2.safetensors").write_bytes(safetensors())
    both = digest_base(folder)
    (folder / "model-2.safetensors").rename(folder / "model-3.safetensors")
    assert len({before, both, digest_base(folder)}) == 3
