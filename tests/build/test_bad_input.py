"""What cannot be built: one message that says what was expected and found, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builds import FAMILY, build, tree, write_pair
from support.pairs import Pair, make_pair, write_tokenizer

from dami_merge.build import Options, build_family
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import CheckpointError, DamiError, FailureError, MisuseError


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + data[8 + length :])


@pytest.fixture
def spoilt(tmp_path: Path) -> Pair:
    """A pair that a test may spoil."""
    return make_pair(tmp_path, layers=2)


def refusal(pair: Pair, out: Path, **more: Any) -> DamiError:
    """Build what must be refused; nothing may be left behind."""
    with pytest.raises(DamiError) as caught:
        build(pair.recipe(0.5, family=FAMILY, **more), out)
    assert not out.exists()
    return caught.value


FP8 = {"quant_method": "fp8"}

SPOIL: dict[str, tuple[Callable[[Pair], object], str]] = {
    "architecture": (
        lambda p: edit_json(p.thinking / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"])),
        "architectures differ: instruct has .*Qwen3.*, thinking .*Llama",
    ),
    "names": (
        lambda p: edit_weights(p.thinking, lambda t: t.pop("model.norm.weight")),
        "thinking lacks 1 tensors: `model.norm.weight`",
    ),
    "shapes": (
        lambda p: edit_weights(p.thinking, lambda t: t.update({"model.norm.weight": torch.ones(31)})),
        r"differ in shape, first `model.norm.weight`: \[32\] in instruct, \[31\] in thinking",
    ),
    "dtypes": (
        lambda p: edit_weights(p.thinking, lambda t: t.update({"model.norm.weight": torch.ones(32).int()})),
        "`model.norm.weight` is BF16 in instruct, I32 in thinking",
    ),
    "vocabulary size": (
        lambda p: edit_weights(p.thinking, lambda t: t.update({"model.embed_tokens.weight": torch.ones(40, 32)})),
        "vocabularies of different size",
    ),
    "vocabulary": (
        lambda p: edit_json(p.thinking / "tokenizer.json", lambda t: t["model"]["vocab"].update(t1=2, t2=1)),
        "different vocabularies: 2 tokens have different ids",
    ),
    "quantised by config": (
        lambda p: edit_json(p.thinking / "config.json", lambda c: c.update(quantization_config=FP8)),
        r"is quantised \(fp8\); quantised weights cannot be interpolated",
    ),
    "quantised by dtype": (
        lambda p: [edit_weights(s, lambda t: t.update(a=torch.ones(4).to(torch.float8_e4m3fn))) for s in p],
        r"is quantised \(F8_E4M3\)",
    ),
    "integer buffers": (
        lambda p: [edit_weights(s, lambda t, i=i: t.update(b=torch.full((3,), i))) for i, s in enumerate(p)],
        r"`b` \(I64\) differs between the endpoints",
    ),
    "truncated": (
        lambda p: (p.thinking / "model.safetensors").write_bytes((p.thinking / "model.safetensors").read_bytes()[:-7]),
        "model.safetensors: tensor .* truncated",
    ),
    "empty": (lambda p: (p.thinking / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "header too long": (
        lambda p: (p.instruct / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "not a whole safetensors file",
    ),
    "header with a wrong size": (
        lambda p: edit_header(p.instruct, lambda h: h["model.norm.weight"].update(shape=[33])),
        r"`model.norm.weight` says BF16 \[33\], 66 bytes, but spans 64",
    ),
    "overlapping tensors": (
        lambda p: edit_header(p.instruct, lambda h: h["model.norm.weight"].update(data_offsets=[0, 64])),
        "overlaps|leaves a gap",
    ),
    "index that leaves the folder": (
        lambda p: (p.thinking / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"model.norm.weight": "../instruct/model.safetensors"}})
        ),
        "the shard index points at `../instruct/model.safetensors`; expected a file of the folder",
    ),
    "link that leaves the folder": (
        lambda p: (p.instruct / "LICENSE").symlink_to("/etc/hostname"),
        "LICENSE is a link to /etc/hostname, outside the checkpoint's folder",
    ),
    "pickles": (
        lambda p: (p.thinking / "model.safetensors").rename(p.thinking / "pytorch_model.bin"),
        "no .safetensors file .*, only pytorch_model.bin",
    ),
    "a broken config": (lambda p: (p.thinking / "config.json").write_text("{"), "config.json is not valid JSON"),
    "no such folder": (lambda p: p.thinking.rename(p.thinking.with_name("moved")), "no such folder"),
    "no config": (lambda p: (p.thinking / "config.json").unlink(), "no config.json"),
}


@pytest.mark.parametrize("what", SPOIL)
def test_endpoints_that_cannot_be_used(spoilt: Pair, tmp_path: Path, what: str) -> None:
    """Each kind of unusable endpoint is refused with one precise message before anything is written."""
    spoil, message = SPOIL[what]
    spoil(spoilt)
    error = refusal(spoilt, tmp_path / "out")
    assert isinstance(error, CheckpointError)
    assert re.search(message, error.message), error.message
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"chat_template": "auto"}, "chat_template: mergekit's own key"),
        ({"tokenizer": {"source": "union"}}, "keeps Instruct's tokenizer"),
        ({"famly": {}}, "famly: unknown key"),
    ],
)
def test_recipes_that_belong_to_mergekit(spoilt: Pair, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    """Keys that only mergekit can follow are refused, with the way out."""
    with pytest.raises(MisuseError, match=message) as caught:
        build(spoilt.recipe(0.5, **more), tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_existing_things_are_not_written_over(pair: Pair, tmp_path: Path) -> None:
    """A file, a strange folder at a variant's place, another family, an endpoint: each is refused and stays."""
    recipe = pair.recipe(0.5, family=FAMILY)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MisuseError, match="is a file"):
        build(recipe, tmp_path / "file")
    (tmp_path / "out/Fam-l050").mkdir(parents=True)
    (tmp_path / "out/Fam-l050/thesis.txt").write_text("mine")
    with pytest.raises(MisuseError, match=r"Fam-l050: already there, and not made by `dami build`"):
        build(recipe, tmp_path / "out")
    assert (tmp_path / "out/Fam-l050/thesis.txt").read_text() == "mine"
    other = build(pair.recipe(0.5, family={**FAMILY, "name": "Other"}), tmp_path / "other").out
    before = tree(other)
    with pytest.raises(MisuseError, match="holds the family Other; this recipe makes Fam"):
        build(recipe, other)
    with pytest.raises(MisuseError, match="lies in the endpoint"):
        build(recipe, pair.instruct / "family")
    assert tree(other) == before


def test_no_permission(pair: Pair, tmp_path: Path) -> None:
    """A folder that may not be written, and a weight file that may not be read, are one message each."""
    if os.geteuid() == 0:
        # Root may do anything; a path below a file fails in the same calls.
        (tmp_path / "file").write_text("")
        with pytest.raises(FailureError, match="cannot be written: Not a directory"):
            build(pair.recipe(0.5, family=FAMILY), tmp_path / "file" / "out")
        return
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(FailureError, match="cannot be written: Permission denied"):
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "closed" / "out")


def test_only_and_sizes_and_devices(pair: Pair, tmp_path: Path) -> None:
    """An unknown λ, a device that is not there or has no meaning: refused before anything is written."""
    recipe = pair.recipe(0.5, family=FAMILY)
    with pytest.raises(MisuseError, match=r"--only 0\.3: the recipe has no such variant"):
        build(recipe, tmp_path / "out", only=(0.3,))
    with pytest.raises(MisuseError, match="expected cpu or cuda"):
        build(recipe, tmp_path / "out", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(FailureError, match="no CUDA device"):
            build(recipe, tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_endpoint_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """An endpoint that is cut short after it was looked at stops the build; nothing looks finished."""
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(1024, 1024),
        "model.layers.1.x": torch.randn(1024, 1024),
    }
    pair = write_pair(tmp_path, tensors, {n: t + 0.1 for n, t in tensors.items()})
    path = pair.thinking / "model.safetensors"

    def cut(total: int) -> Any:
        os.truncate(path, path.stat().st_size - 100)
        from contextlib import nullcontext

        return nullcontext(lambda count: None)

    with pytest.raises(CheckpointError, match="it shrank while it was read"):
        build_family(parse_recipe(pair.recipe(0.5, family=FAMILY)), tmp_path / "out", Options(), progress=cut)
    assert not list((tmp_path).rglob("Fam-*/*.safetensors"))
    assert not (tmp_path / "out/dami_family.json").exists()


def dami(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dami_router.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


def test_the_commands(pair: Pair, tmp_path: Path) -> None:
    """build and verify from the command line: results on stdout, progress on stderr, exit codes 0, 1 and 2."""
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(pair.recipe(0.5, dtype="bfloat16", family=FAMILY))
    done = dami("build", recipe, tmp_path / "out", "--json", "--max-shard-size", "30KB")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["built"] == ["Fam-l000", "Fam-l025", "Fam-l050", "Fam-l080", "Fam-l100"]
    assert re.search(r"build: 100%.*B/s", done.stderr.rsplit("\r", 1)[-1])
    assert len(list((tmp_path / "out/Fam-l050").glob("model-*-of-*.safetensors"))) > 1
    done = dami("verify", tmp_path / "out")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "sound")
    file = next((tmp_path / "out/Fam-l050").glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    done = dami("verify", tmp_path / "out", "--json")
    assert done.returncode == 1
    assert {p["code"] for p in json.loads(done.stdout)["problems"]} >= {"hash", "weights"}
    for arguments in (["verify", tmp_path], ["build", recipe, tmp_path / "out2", "--max-shard-size", "much"]):
        done = dami(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
    write_tokenizer(tmp_path)
