"""`dami verify` on sound families, and on each kind of damage, which it names."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.builds import FAMILY, Built, build, reshard
from support.pairs import Pair, make_pair

from dami_merge.checkpoints.checkpoint import read_header
from dami_merge.interpolation.formula import FLOATING_DTYPES, interpolate
from dami_merge.verify import Problem, verify_family
from dami_merge.verify.recovery import Evidence, gather
from dami_router.errors import CheckpointError, MisuseError


def problems(out: Path, **options: Any) -> list[Problem]:
    return verify_family(out, **options).all_problems


def rewrite_manifest(out: Path, change: Any) -> None:
    path = out / "dami_family.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rewrite_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def trust(out: Path, folder: Path, name: str = "model.safetensors") -> None:
    """Make the manifest agree with a changed file, so that its hash no longer gives it away."""
    sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    def change(data: Any) -> None:
        for variant in data["variants"]:
            if variant["folder"] == folder.name:
                variant["files"][name] = sha256

    rewrite_manifest(out, change)


@pytest.mark.parametrize("deep", [False, True])
def test_sound_family(family: Built, deep: bool) -> None:
    """A fresh family has no problem; λ is read back within its bound on every layer."""
    report = verify_family(family.out, deep=deep)
    assert report.all_problems == []
    assert report.notes == []
    for variant in report.variants:
        known = [layer for layer in variant.layers if layer.recovered]
        assert len(known) >= 4
        for layer in known:
            assert layer.recovered is not None
            assert layer.recovered.lambda_ == pytest.approx(variant.lambda_, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"tied": False, "dtype": torch.float16}),
        ("qwen3_moe", {}),
        ("qwen3", {"dtype": torch.float32}),
    ],
)
def test_sound_families_of_all_kinds(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    """Architectures, dtypes, shards and paths: what was built verifies, deeply."""
    pair = make_pair(tmp_path, kind, layers=3, **more)
    reshard(pair.thinking, 3)
    path = [{"filter": "self_attn", "value": "late(1)"}, {"value": "early(0.5)"}]
    family = {"name": "Fam", "lambdas": [0, 0.3, 0.7, 1], "path": path, "chat_template": "from(0.5)"}
    for limit in (None, 20_000):
        out = build(pair.recipe(0.5, family=family), tmp_path / f"out{limit}", max_shard_size=limit).out
        assert problems(out, deep=True) == []


def test_recipe_without_family_verifies(pair: Pair, tmp_path: Path) -> None:
    """The one variant of a schedule is read back layer by layer."""
    recipe = pair.recipe("ramp(0.1, 0.9)", dtype="bfloat16")
    built = build(recipe, tmp_path / "out", str(tmp_path / "my recipe.yml"))
    (variant,) = built.report.manifest.variants
    assert (variant.id, built.report.manifest.path) == ("my-recipe", "recipe")
    report = verify_family(built.out, deep=True)
    assert report.all_problems == []
    layers = {layer.where: layer.recovered.lambda_ for layer in report.variants[0].layers if layer.recovered}
    assert layers["model.layers.0"] == pytest.approx(0.1, abs=0.01)
    assert layers["model.layers.1"] == pytest.approx(0.5, abs=0.01)
    assert layers["model.layers.2"] == pytest.approx(0.9, abs=0.01)


@settings(max_examples=30)
@given(place=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_flipped_bit_is_named_with_its_tensor(tmp_path_factory: Any, pair: Pair, place: float, bit: int) -> None:
    """One flipped bit in the weights: file, tensor and byte are named."""
    out = build(
        pair.recipe(0.5, dtype="bfloat16", family={"name": "F", "lambdas": [0.4]}), tmp_path_factory.mktemp("flip")
    ).out
    file = out / "F-l040" / "model.safetensors"
    tensors = read_header(file)
    data = bytearray(file.read_bytes())
    first = min(t.start for t in tensors.values())
    at = first + int(place * (len(data) - first))
    data[at] ^= 1 << bit
    file.write_bytes(data)
    found = {p.code: p for p in problems(out)}
    assert found["hash"].file == "model.safetensors"
    (hit,) = (n for n, t in tensors.items() if t.start <= at < t.end)
    assert found["weights"].tensor == hit
    assert f"(byte {at // 2 * 2})" in found["weights"].message
    assert "1 elements" in found["weights"].message


def test_flipped_header_byte(family: Built) -> None:
    """A changed header is a damaged file, whatever it then says."""
    file = family.folder(0.5) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    assert {p.variant for p in problems(family.out)} == {"Fam-l050"}


def test_truncated_shard(tmp_path: Path, pair: Pair) -> None:
    """A shard that lost its end is named, with the tensor that it cuts."""
    out = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out", max_shard_size=20_000).out
    file = sorted((out / "Fam-l025").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    (found,) = problems(out)
    assert (found.code, found.variant, found.file) == ("header", "Fam-l025", file.name)
    assert "truncated" in found.message


def test_missing_file_and_missing_folder(family: Built) -> None:
    """What is not there is said to be not there."""
    (family.folder(0.5) / "tokenizer.json").unlink()
    shutil.rmtree(family.folder(1))
    found = [(p.code, p.variant, p.file) for p in problems(family.out)]
    assert found == [("missing", "Fam-l050", "tokenizer.json"), ("missing", "Fam-l100", None)]


def test_swapped_variants_are_named(family: Built) -> None:
    """Two folders that changed places: each is said to hold the other's weights, and λ read back says so too."""
    a, b = family.folder(0.25), family.folder(0.8)
    a.rename(family.out / "tmp")
    b.rename(a)
    (family.out / "tmp").rename(b)
    found = problems(family.out)
    swapped = {p.variant: p.message for p in found if p.code == "hash" and p.file == "model.safetensors"}
    assert "holds the weights of Fam-l080 (λ=0.8)" in swapped["Fam-l025"]
    assert "holds the weights of Fam-l025 (λ=0.25)" in swapped["Fam-l080"]
    assert any(p.code == "lambda" and "λ=0.25, the weights say 0.8" in p.message for p in found)


def test_swapped_variants_with_their_hashes_are_found_by_their_weights(family: Built) -> None:
    """Weights and hashes swapped together: only the weights themselves tell, and they do, layer by layer."""
    a, b = family.folder(0.25), family.folder(0.8)
    first, second = (f / "model.safetensors" for f in (a, b))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    trust(family.out, a)
    trust(family.out, b)
    found = problems(family.out)
    assert {p.code for p in found} == {"lambda"}
    assert any(p.variant == "Fam-l025" and "model.layers.0" in p.message for p in found)


def test_nan_is_named(family: Built) -> None:
    """A NaN is named by tensor and position even where the manifest has the file's hash."""
    folder = family.folder(0.5)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[7] = float("nan")
        tensors["model.norm.weight"][3] = float("inf")

    rewrite_weights(folder, spoil)
    trust(family.out, folder)
    found = {p.tensor: p.message for p in problems(family.out) if p.code == "not_finite"}
    assert "has 1 numbers that are not finite, first nan at 7" in found["model.layers.1.mlp.up_proj.weight"]
    assert "first inf at 3" in found["model.norm.weight"]


def test_tensor_sets_shapes_and_dtypes(family: Built) -> None:
    """A lost tensor, another shape and another dtype are each named."""
    folder = family.folder(0.5)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1].clone()
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].float()

    rewrite_weights(folder, spoil)
    trust(family.out, folder)
    found = {p.tensor: p.message for p in problems(family.out) if p.code == "tensors"}
    assert found["model.norm.weight"].endswith("expected BF16 [32], found none")
    assert found["model.layers.0.mlp.up_proj.weight"].endswith("expected BF16 [48, 32], found BF16 [47, 32]")
    assert found["model.layers.0.mlp.down_proj.weight"].endswith("expected BF16 [32, 48], found F32 [32, 48]")


def test_deep_finds_what_hash_and_sample_cannot(family: Built) -> None:
    """One element off by one unit, hash and all: λ read back still fits, --deep names the element."""
    folder = family.folder(0.5)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int16).view(-1)[5] ^= 1

    rewrite_weights(folder, spoil)
    trust(family.out, folder)
    (found,) = problems(family.out, deep=True)
    assert (found.code, found.tensor) == ("weights", "model.layers.1.mlp.up_proj.weight")
    assert "first at 5 " in found.message


def test_without_endpoints_it_says_so(tmp_path: Path) -> None:
    """Endpoints that are gone, or were changed, are no problem of the family; --deep cannot do without them."""
    pair = make_pair(tmp_path, layers=2)
    out = build(pair.recipe(0.5, dtype="bfloat16", family=FAMILY), tmp_path / "out").out
    pair.thinking.rename(tmp_path / "moved")
    report = verify_family(out)
    assert report.all_problems == []
    assert "λ was not read back" in report.notes[0]
    (found,) = problems(out, deep=True)
    assert found.code == "endpoints"
    (tmp_path / "moved").rename(pair.thinking)
    rewrite_weights(pair.thinking, lambda tensors: tensors["model.norm.weight"].add_(1))
    report = verify_family(out)
    assert report.all_problems == []
    assert "is not what the family was built from" in report.notes[0]
    # Against each other, variants still tell a lost tensor.
    rewrite_weights(out / "Fam-l050", lambda tensors: tensors.pop("model.norm.weight"))
    trust(out, out / "Fam-l050")
    assert [p.tensor for p in problems(out)] == ["model.norm.weight"]


def test_files_that_tgi_would_misread(family: Built) -> None:
    """rope_theta, torch_dtype, tokenizer class and template: whatever 4.51 would misread is named."""
    folder = family.folder(0.5)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}, "dtype": "float32"}
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "TokenizersBackend", "chat_template": "other", "extra_special_tokens": ["<a>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "tokenizer_config.json"):
        trust(family.out, folder, name)
    text = "\n".join(p.message for p in problems(family.out) if p.code == "tgi")
    for part in ("rope_theta is absent, the only place where 4.51 looks", "dtype is float32", "TokenizersBackend",
                 "extra_special_tokens is a list", "differs from the template"):  # fmt: skip
        assert part in text
    assert len(text.splitlines()) == 5


def test_changed_template_and_strange_files(family: Built) -> None:
    """A changed template and files that a loader might run or prefer are found."""
    folder = family.folder(0.5)
    (folder / "chat_template.jinja").write_text("{{ changed }}")
    (folder / "modeling.py").write_text("evil = 1")
    (folder / "other.bin").write_bytes(b"pickle")
    found = {(p.code, p.file) for p in problems(family.out)}
    assert {("hash", "chat_template.jinja"), ("template", None), ("stranger", "modeling.py"),
            ("stranger", "other.bin")} <= found  # fmt: skip


def test_lambda_edited_in_the_manifest(family: Built) -> None:
    """A manifest whose λ is not what its recipe gives is found out."""
    rewrite_manifest(family.out, lambda data: data["variants"][2].update({"lambda": 0.55}))
    assert [(p.code, p.variant) for p in problems(family.out)] == [("lambda", "Fam-l050")]


def test_no_family_and_no_manifest(tmp_path: Path) -> None:
    """A folder without a manifest is misuse; a manifest that cannot be read is a failure."""
    with pytest.raises(MisuseError, match="expected the folder of a built family"):
        verify_family(tmp_path)
    (tmp_path / "dami_family.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        verify_family(tmp_path)


@given(
    seed=st.integers(0, 2**31),
    lambda_=st.floats(0, 1) | st.floats(-0.5, 1.5),
    dtype=st.sampled_from(FLOATING_DTYPES),
    stored=st.sampled_from(FLOATING_DTYPES),
    scale=st.sampled_from([1e-6, 1e-3, 1e-2, 0.3]),
    size=st.sampled_from([1e-7, 1e-3, 1.0, 30.0]),
)
def test_bound_on_lambda_always_holds(
    seed: int, lambda_: float, dtype: torch.dtype, stored: torch.dtype, scale: float, size: float
) -> None:
    """The true λ is within the bound for every dtype and size of difference, also where most are one unit apart."""
    generator = torch.Generator().manual_seed(seed)
    base = size * torch.randn(500, generator=generator, dtype=torch.float64)
    other = base + size * scale * torch.randn(500, generator=generator, dtype=torch.float64)
    a, b = base.to(dtype), other.to(dtype)
    evidence = Evidence()
    evidence.add(gather(a, b, interpolate(a, b, lambda_).to(stored), dtype, reach=max(1.0, abs(lambda_))))
    found = evidence.recovered()
    assert found is None or found.agrees(lambda_)
