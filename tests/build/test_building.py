"""What a build makes, keeps and makes again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builds import FAMILY, Built, build, reshard, same_bits, tree, weights, write_pair
from support.pairs import Pair, make_pair

from dami_merge.build.build_plan import variant_id
from dami_merge.build.stream import ShardStream
from dami_merge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dami_merge.checkpoints.endpoints import open_pair
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.formula import BlockInterpolator, interpolate
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import CheckpointError
from dami_router.manifest.family import load_family


def test_ends_are_the_endpoints(family: Built, pair: Pair) -> None:
    """λ=0 and λ=1 hold the endpoints' weight files, byte for byte."""
    for lambda_, side in ((0, pair.instruct), (1, pair.thinking)):
        content = (family.folder(lambda_) / "model.safetensors").read_bytes()
        assert content == (side / "model.safetensors").read_bytes()


def test_manifest_describes_what_is_there(family: Built, pair: Pair) -> None:
    """Every file's hash, both endpoints' hashes, the recipe verbatim and λ by layer stand in the manifest."""
    manifest = load_family(family.out)
    assert manifest.recipe == family.recipe
    assert [v.lambda_ for v in manifest.variants] == [0, 0.25, 0.5, 0.8, 1]
    for variant in manifest.variants:
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (family.out / variant.folder).iterdir()}
        assert variant.files == files
        assert {group.lambda_ for group in variant.resolved} == {variant.lambda_}
    for side, told in ((pair.instruct, manifest.endpoints.instruct), (pair.thinking, manifest.endpoints.thinking)):
        assert told.files["model.safetensors"] == hashlib.sha256((side / "model.safetensors").read_bytes()).hexdigest()
        assert (told.source, told.architecture, told.dtype) == (str(side), "Qwen3ForCausalLM", "BF16")


def test_second_run_changes_nothing(family: Built) -> None:
    """A finished family is left alone: no file is touched, all variants are reported as kept."""
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in family.out.rglob("*") if p.name != "journal.jsonl"}
    again = build(family.recipe, family.out).report
    assert (again.built, len(again.kept), again.bytes_written) == ((), 5, 0)
    after = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in family.out.rglob("*") if p.name != "journal.jsonl"}
    assert {p: s for p, s in after.items() if p.is_file()} == {p: s for p, s in before.items() if p.is_file()}


def test_piece_by_piece_ends_like_all_at_once(family: Built, tmp_path: Path) -> None:
    """Variants built one by one with --only, in any order, end in the same bytes as one run."""
    for lambda_ in (0.8, 0, 1, 0.5, 0.25):
        report = build(family.recipe, tmp_path / "pieces", only=(lambda_,)).report
        assert len(report.built) == 1
        assert lambda_ in [v.lambda_ for v in report.manifest.variants]
    assert tree(tmp_path / "pieces") == tree(family.out)


def test_damaged_file_is_made_again_alone(tmp_path: Path, pair: Pair) -> None:
    """A finished file whose content is no longer what was written is made again; the other shards are kept."""
    recipe = pair.recipe(0.5, dtype="bfloat16", family=FAMILY)
    out = build(recipe, tmp_path / "out", max_shard_size=20_000).out
    whole = tree(out)
    first, second = sorted((out / "Fam-l050").glob("model-*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-1] + b"\x7f")
    kept = second.stat().st_ino
    (out / "Fam-l050/README.md").write_text("a card that someone wrote")
    report = build(recipe, out, max_shard_size=20_000).report
    assert (report.built, report.bytes_written) == (("Fam-l050",), first.stat().st_size)
    assert second.stat().st_ino == kept
    assert (out / "Fam-l050/README.md").read_text() == "a card that someone wrote"
    (out / "Fam-l050/README.md").unlink()
    assert tree(out) == whole


def test_changed_inputs_and_recipes_are_noticed(tmp_path: Path) -> None:
    """Other weights, another path, another dtype: the variants that change are made again, and only those."""
    pair = make_pair(tmp_path, layers=2)
    out = build(pair.recipe(0.5, dtype="bfloat16", family=FAMILY), tmp_path / "out").out
    late = pair.recipe(0.5, dtype="bfloat16", family={**FAMILY, "path": "late(0.5)"})
    assert build(late, out).report.built == ("Fam-l025", "Fam-l050", "Fam-l080")
    fewer = pair.recipe(0.5, dtype="bfloat16", family={**FAMILY, "path": "late(0.5)", "lambdas": [0.5, 1]})
    report = build(fewer, out).report
    assert (report.built, [v.id for v in report.manifest.variants]) == ((), ["Fam-l050", "Fam-l100"])
    assert (out / "Fam-l000").is_dir()
    (tmp_path / "again").mkdir()
    other = make_pair(tmp_path / "again", layers=2, dtype=torch.float32)
    (other.instruct / "model.safetensors").replace(pair.instruct / "model.safetensors")
    report = build(late, out).report
    assert len(report.built) == 5
    fresh = build(late, tmp_path / "fresh").out
    assert {k: v for k, v in tree(out).items() if "journal" not in k} == {
        k: v for k, v in tree(fresh).items() if "journal" not in k
    }


def test_measured_and_pushed_stay_with_an_unchanged_variant(family: Built) -> None:
    """What was measured or pushed of a variant survives a later build that leaves it as it is."""
    path = family.out / "dami_family.json"
    data = json.loads(path.read_text())
    data["variants"][1]["hub"] = {"repo": "me/Fam-l025", "revision": "c" * 40}
    data["variants"][1]["measured"] = [{"benchmark": "x", "accuracy": 0.5, "mean_tokens": 10.0, "n": 4}]
    path.write_text(json.dumps(data))
    manifest = build(family.recipe, family.out).report.manifest
    assert manifest.variants[1].hub is not None
    assert manifest.variants[1].measured[0].accuracy == 0.5
    assert load_family(family.out) == manifest


def test_shards(tmp_path: Path, pair: Pair) -> None:
    """The files are Instruct's own, however Thinking is cut; with a size given, none is larger."""
    ours = make_pair(tmp_path, layers=3)
    reshard(ours.instruct, 3)
    reshard(ours.thinking, 2)
    recipe = ours.recipe(0.5, family={"name": "Fam", "lambdas": [0, 0.5]})
    built = build(recipe, tmp_path / "own")
    names = [p.name for p in sorted(ours.instruct.glob("*.safetensors"))]
    assert [p.name for p in sorted(built.folder(0.5).glob("*.safetensors"))] == names
    assert weights(built.folder(0)).keys() == weights(ours.instruct).keys()
    for name in names:
        assert (built.folder(0) / name).read_bytes() == (ours.instruct / name).read_bytes()
    limit = 12_000
    cut = build(recipe, tmp_path / "cut", max_shard_size=limit)
    index = json.loads((cut.folder(0.5) / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert all(p.stat().st_size < limit + 2_000 for p in cut.folder(0.5).glob("*.safetensors"))
    one, other = weights(built.folder(0.5)), weights(cut.folder(0.5))
    assert one.keys() == other.keys()
    assert all(same_bits(one[name], other[name]) for name in one)


def test_stored_head_of_a_tied_model_is_the_embeddings(tmp_path: Path) -> None:
    """A tied model that stores its head keeps the tensor, with the embeddings' λ; its partner need not store it."""
    pair = make_pair(tmp_path, layers=2)
    from safetensors.torch import load_file, save_file

    tensors = load_file(pair.instruct / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, pair.instruct / "model.safetensors", metadata={"format": "pt"})
    family = {"name": "Fam", "lambdas": [0.5], "path": "late(1)"}
    made = weights(build(pair.recipe(0.5, family=family), tmp_path / "out").folder(0.5))
    assert same_bits(made["lm_head.weight"], made["model.embed_tokens.weight"])


def test_odd_tensors(tmp_path: Path) -> None:
    """Integer buffers, empty and scalar tensors, odd sizes and mixed dtypes in one file all come through."""
    one = {
        "model.layers.0.a": torch.randn(3, dtype=torch.float16), "model.layers.0.b": torch.arange(7),
        "model.layers.1.c": torch.randn(5, 7), "model.layers.1.d": torch.tensor(2.0, dtype=torch.float64),
        "model.layers.1.e": torch.empty(0, 4, dtype=torch.bfloat16), "model.layers.1.f": torch.tensor([True, False]),
        "model.norm.weight": torch.randn(3, dtype=torch.bfloat16),
    }  # fmt: skip
    two = {n: (t + 0.5).to(t.dtype) if t.is_floating_point() else t.clone() for n, t in one.items()}
    pair = write_pair(tmp_path, one, two)
    for more in ({}, {"dtype": "bfloat16"}, {"out_dtype": "float32"}, {"dtype": "float16", "out_dtype": "float64"}):
        family = {"name": "Fam", "lambdas": [0.3]}
        made = weights(build(pair.recipe(0.5, family=family, **more), tmp_path / f"out{len(str(more))}").folder(0.3))
        for name, a in one.items():
            expected, b = a, two[name]
            if a.is_floating_point():
                compute = getattr(torch, more.get("dtype", ""), a.dtype)
                expected = interpolate(a.to(compute), b.to(compute), 0.3).to(
                    getattr(torch, more.get("out_dtype", ""), compute)
                )
            assert same_bits(made[name], expected), (name, more)


@given(
    seed=st.integers(0, 2**31),
    lambdas=st.lists(st.floats(-0.5, 1.5) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    out=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
)
def test_many_lambdas_at_once_are_the_formula(
    seed: int, lambdas: list[float], dtype: torch.dtype, out: torch.dtype
) -> None:
    """The builder's kernel gives `interpolate`'s bits for every λ, zeros of both signs and infinities included."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(67, generator=generator).to(dtype) for _ in "ab")
    a[:6] = torch.tensor([0.0, -0.0, 0.0, -0.0, float("inf"), 1.0], dtype=dtype)
    b[:6] = torch.tensor([0.0, -0.0, -0.0, 0.0, 1.0, float("-inf")], dtype=dtype)
    results = [torch.empty(67, dtype=out) for _ in lambdas]
    BlockInterpolator(100).write(a, b, lambdas, results)
    for lambda_, result in zip(lambdas, results, strict=True):
        assert torch.equal(result.nan_to_num(7.0), interpolate(a, b, lambda_).to(out).nan_to_num(7.0))
        zeros = result == 0
        assert torch.equal(torch.signbit(result[zeros]), torch.signbit(interpolate(a, b, lambda_).to(out)[zeros]))


def test_device_path_gives_the_same_bits(tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that copies blocks to a device and back gives the same files (here with the CPU as the device)."""
    recipe = pair.recipe(0.5, dtype="bfloat16", family=FAMILY)
    plain = tree(build(recipe, tmp_path / "plain").out)
    monkeypatch.setattr("dami_merge.build.building.check_device", lambda device: None)
    assert ShardStream.__init__.__kwdefaults__ == {"device": "cpu"}
    assert tree(build(recipe, tmp_path / "device", device="cpu:0").out) == plain


@given(lambda_=st.floats(0, 1), other=st.floats(0, 1))
def test_variant_ids(lambda_: float, other: float) -> None:
    """Ids are distinct for distinct λ, and as short as λ allows."""
    assert (variant_id("F", lambda_) == variant_id("F", other)) == (lambda_ == other)
    assert [variant_id("F", v) for v in (0, 0.4, 0.05, 0.125, 1, 0.123456)] == [
        "F-l000", "F-l040", "F-l005", "F-l0125", "F-l100", "F-l0123456",
    ]  # fmt: skip


def test_hub_endpoints_are_fetched_at_their_commit(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub endpoint is compared from headers, fetched once at its commit, and checked against the Hub's hashes."""
    recipe = parse_recipe(
        json.dumps(
            {
                "merge_method": "dami", "base_model": "org/instruct", "models": [{"model": "org/thinking"}],
                "parameters": {"lambda": 0.5},
            }
        )
    )  # fmt: skip
    folders = {"org/instruct": pair.instruct, "org/thinking": pair.thinking}
    announced = {"org/instruct": "0" * 64, "org/thinking": "1" * 64}
    real = open_checkpoint

    def opened(ref: ModelRef) -> Checkpoint:
        if ref.path not in folders:
            return real(ref)
        local = real(ModelRef(str(folders[ref.path])))
        return replace(
            local, ref=ref, folder=None, commit="c" * 40, file_hashes={"model.safetensors": announced[ref.path]}
        )

    fetched: list[tuple[str, str | None]] = []

    def fetch(side: Checkpoint) -> Path:
        fetched.append((str(side.ref), side.commit))
        return folders[str(side.ref)]

    monkeypatch.setattr("dami_merge.checkpoints.endpoints.open_checkpoint", opened)
    monkeypatch.setattr(Checkpoint, "read_json", lambda self, name: None)
    monkeypatch.setattr(Checkpoint, "read_text", lambda self, name: None)
    found = open_pair(recipe.instruct, recipe.thinking, recipe.dtype, fetch)
    assert fetched == [("org/instruct", "c" * 40), ("org/thinking", "c" * 40)]
    assert (str(found.instruct.ref), found.instruct.folder, found.instruct.commit) == (
        "org/instruct", pair.instruct, "c" * 40,
    )  # fmt: skip
    from dami_merge.build import build_family

    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: sha256 .* the Hub says 0000"):
        build_family(recipe, tmp_path / "out", fetch=fetch)
    assert not list(tmp_path.glob("out/*/*.safetensors"))
