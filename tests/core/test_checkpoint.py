"""Reading headers as untrusted input, and judging whether two endpoints fit."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.pairs import Pair, make_pair, write_raw

from dami_merge.checkpoints.checkpoint import open_checkpoint, read_header
from dami_merge.checkpoints.compatibility import Finding, compare
from dami_merge.checkpoints.model_ref import ModelRef
from dami_router.errors import CheckpointError

CONFIG = {"architectures": ["Tiny"], "model_type": "tiny", "num_hidden_layers": 2}


def tensors(seed: int = 0, rows: int = 8) -> dict[str, torch.Tensor]:
    base = torch.Generator().manual_seed(7)
    own = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in (("model.embed_tokens.weight", (rows, 16)), ("model.layers.0.mlp.weight", (16, 16))):
        made[name] = torch.randn(shape, generator=base) + 0.1 * torch.randn(shape, generator=own)
    return made


def findings(tmp_path: Path, instruct: Path, thinking: Path, dtype: str | None = None) -> list[Finding]:
    sides = [open_checkpoint(ModelRef(str(path))) for path in (instruct, thinking)]
    return compare(sides[0], sides[1], dtype=dtype)


def raw_pair(tmp_path: Path, **changes: object) -> tuple[Path, Path]:
    a = write_raw(tmp_path / "instruct", tensors(1), CONFIG)
    other = changes.get("tensors", tensors(2))
    b = write_raw(tmp_path / "thinking", other, {**CONFIG, **changes.get("config", {})})  # type: ignore[arg-type,dict-item]
    return a, b


def codes(found: list[Finding], severity: str = "error") -> list[str]:
    return [f.code for f in found if f.severity == severity]


def test_headers_agree_with_the_weights(qwen3: Pair) -> None:
    """Names, shapes and sizes read from headers are those of the checkpoint that Transformers wrote."""
    from safetensors.torch import load_file

    side = open_checkpoint(ModelRef(str(qwen3.instruct)))
    weights = load_file(qwen3.instruct / "model.safetensors")
    assert {n: t.shape for n, t in side.tensors.items()} == {n: tuple(t.shape) for n, t in weights.items()}
    assert side.nbytes == sum(t.nbytes for t in weights.values())
    assert side.parameters == sum(t.numel() for t in weights.values())
    assert side.tied


def test_a_fitting_pair_has_no_findings(qwen3: Pair) -> None:
    """Two fine-tunes of one base, written by Transformers, are accepted without a word."""
    assert findings(qwen3.instruct, qwen3.instruct, qwen3.thinking) == []


def test_sharded_checkpoints_read_as_one(tmp_path: Path) -> None:
    """Shards are found through the index, and one that is missing is named."""
    first, second = tensors(1).items()
    folder = write_raw(tmp_path / "m", dict([first]), CONFIG)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write_raw(folder, dict([second]), CONFIG)
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    index = {"weight_map": {first[0]: "model-1.safetensors", second[0]: "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(ModelRef(str(folder))).tensors) == {first[0], second[0]}
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files missing, first model-2\.safetensors"):
        open_checkpoint(ModelRef(str(folder)))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin"])
def test_an_index_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """A shard index that names a path outside the folder, or no safetensors file, is refused."""
    folder = write_raw(tmp_path / "m", tensors(), CONFIG)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="expected a file of the folder"):
        open_checkpoint(ModelRef(str(folder)))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Missing folders, files, missing configs and pickled weights each get their own message."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "empty", r"no config\.json"),
        (tmp_path / "pickled", r"only pytorch_model\.bin"),
        (tmp_path / "broken", r"config\.json is not valid JSON"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(ModelRef(str(path)))


def header(entries: object, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"1234", "not a whole safetensors file"),
        (header({}, length=2**60), "not a whole safetensors file"),
        (header(b"nonsense"), "not valid JSON"),
        (header([1]), "not a JSON object"),
        (header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}), "16 bytes, but spans 8"),
        (header({"w": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}), "truncated"),
        (header({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}}), "invalid header entry|but spans"),
        (header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}), "but spans"),
        (header({"w": {"dtype": "WHAT", "shape": [4], "data_offsets": [0, 16]}}), "invalid header entry"),
        (header({"w": {"shape": [4]}}), "invalid header entry"),
        (header({"w": 3}), "invalid header entry"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A truncated file, an impossible length, or offsets that do not fit are each one clear error."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@given(content=st.binary(max_size=80))
def test_any_bytes_are_a_header_or_one_message(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No file makes the header reader fail in any other way than with a CheckpointError."""
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    for data in (content, struct.pack("<Q", len(content)) + content):
        path.write_bytes(data)
        try:
            read_header(path)
        except CheckpointError as error:
            assert error.message


def test_different_architectures_are_refused(tmp_path: Path) -> None:
    """The architecture's name decides first."""
    a, b = raw_pair(tmp_path, config={"architectures": ["Other"]})
    assert codes(findings(tmp_path, a, b)) == ["architecture"]


def test_missing_and_reshaped_tensors_are_refused(tmp_path: Path) -> None:
    """A tensor that one side lacks, and one of another shape, are both named."""
    other = tensors(2)
    other["model.layers.0.mlp.weight"] = torch.zeros(16, 8)
    other["model.layers.1.mlp.weight"] = torch.zeros(4, 4)
    found = findings(tmp_path, *raw_pair(tmp_path, tensors=other))
    assert codes(found) == ["names", "shapes"]
    assert "`model.layers.1.mlp.weight`" in str(found[0])
    assert "[16, 16] in instruct, [16, 8] in thinking" in str(found[1])


@pytest.mark.parametrize("how", ["config", "dtype"])
def test_quantised_endpoints_are_refused(tmp_path: Path, how: str) -> None:
    """A quantization_config or 8-bit floats are refused with the way out."""
    if how == "config":
        a, b = raw_pair(tmp_path, config={"quantization_config": {"quant_method": "fp8"}})
    else:
        a, b = raw_pair(tmp_path, tensors={n: t.to(torch.float8_e4m3fn) for n, t in tensors(2).items()})
    found = findings(tmp_path, a, b)
    assert "quantised" in codes(found)
    assert "quantise the variants afterwards" in str(next(f for f in found if f.code == "quantised"))


def test_mixed_dtypes_want_a_decision(tmp_path: Path) -> None:
    """fp32 against bf16 is a warning, silent once the recipe says `dtype`."""
    a, b = raw_pair(tmp_path, tensors={n: t.bfloat16() for n, t in tensors(2).items()})
    assert codes(findings(tmp_path, a, b), "warning") == ["dtypes"]
    assert findings(tmp_path, a, b, dtype="bfloat16") == []


def test_identical_endpoints_are_refused(tmp_path: Path, qwen3: Pair) -> None:
    """A copy of Instruct under another path is found out, since every λ would give the same model."""
    shutil.copytree(qwen3.instruct, tmp_path / "copy")
    assert codes(findings(tmp_path, qwen3.instruct, tmp_path / "copy")) == ["identical"]


def test_unrelated_endpoints_are_warned_about(tmp_path: Path) -> None:
    """Two models trained from different starts are far apart, and the warning says what to expect."""
    a, b = raw_pair(tmp_path, tensors={n: torch.randn(t.shape) for n, t in tensors().items()})
    assert codes(findings(tmp_path, a, b), "warning") == ["unrelated"]


def test_swapped_endpoints_are_warned_about(tmp_path: Path) -> None:
    """Names that say Thinking and Instruct on the wrong sides are pointed out."""
    pair = make_pair(tmp_path / "pair", layers=2)
    a = pair.instruct.rename(tmp_path / "Tiny-Thinking")
    b = pair.thinking.rename(tmp_path / "Tiny-Instruct")
    assert codes(findings(tmp_path, a, b), "warning") == ["swapped"]


def test_swapped_templates_are_warned_about(tmp_path: Path) -> None:
    """Where names say nothing, the template that opens a <think> block gives Thinking away."""
    a, b = raw_pair(tmp_path)
    a, b = a.rename(tmp_path / "one"), b.rename(tmp_path / "two")
    template = "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (a / "tokenizer_config.json").write_text(json.dumps(config))
    assert codes(findings(tmp_path, a, b), "warning") == ["swapped"]


@pytest.mark.parametrize("beside", ["consolidated.safetensors", "adapter_model.safetensors", "model-old.safetensors"])
def test_files_beside_the_model_are_ignored(tmp_path: Path, beside: str) -> None:
    """With a model.safetensors, other weight files are not read: another layout, an adapter, a leftover."""
    folder = write_raw(tmp_path / "m", tensors(1), CONFIG)
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, folder / beside)
    assert {info.file for info in open_checkpoint(ModelRef(str(folder))).tensors.values()} == {"model.safetensors"}


def test_shards_without_an_index_leave_the_consolidated_file_alone(tmp_path: Path) -> None:
    """Mistral's consolidated file beside numbered shards is the same model once more."""
    folder = write_raw(tmp_path / "m", tensors(1), CONFIG)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    save_file({"tok_embeddings.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    assert set(open_checkpoint(ModelRef(str(folder))).tensors) == set(tensors(1))
    (folder / "model-00001-of-00001.safetensors").unlink()
    assert set(open_checkpoint(ModelRef(str(folder))).tensors) == {"tok_embeddings.weight"}


def test_an_index_that_the_single_file_is_not_in(tmp_path: Path) -> None:
    """With both, Transformers loads model.safetensors; so do we."""
    folder = write_raw(tmp_path / "m", tensors(1), CONFIG)
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(ModelRef(str(folder))).tensors) == set(tensors(1))


def test_a_hybrid_is_no_swapped_thinking_endpoint(tmp_path: Path) -> None:
    """A hybrid's template opens and closes an empty block when told to; as λ=0 it is in its place."""
    a, b = raw_pair(tmp_path)
    a, b = a.rename(tmp_path / "one"), b.rename(tmp_path / "two")
    hybrid = (
        "{% if add_generation_prompt %}<|a|>{% if not enable_thinking %}<think>\\n\\n</think>{% endif %}{% endif %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": hybrid}
    (a / "tokenizer_config.json").write_text(json.dumps(config))
    assert findings(tmp_path, a, b) == []


def test_differing_rope_settings_are_warned_about(tmp_path: Path) -> None:
    """Variants carry Instruct's config, so a different rope_theta is worth a word."""
    found = findings(tmp_path, *raw_pair(tmp_path, config={"rope_theta": 1e6}))
    assert codes(found, "warning") == ["config"]


def test_tensors_of_other_heads_are_refused(tmp_path: Path, qwen3: Pair) -> None:
    """Matrices of the same shapes whose rows are other heads have no model between them, and λ = 1 is not Thinking."""
    other = Path(shutil.copytree(qwen3.thinking, tmp_path / "thinking"))
    config = json.loads((other / "config.json").read_text())
    heads = config | {"num_attention_heads": 2 * config["num_attention_heads"], "head_dim": config["head_dim"] // 2}
    (other / "config.json").write_text(json.dumps(heads))
    found = findings(tmp_path, qwen3.instruct, other)
    assert codes(found, "error") == ["heads", "heads"]
    assert f"num_attention_heads differs: {config['num_attention_heads']} in instruct" in found[1].message
