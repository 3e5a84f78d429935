"""`dami deploy` on input that cannot be run: one message with what to do, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deployments import deploy, documents, family
from hypothesis import given
from hypothesis import strategies as st

from dami_router.deploying.model_shape import ModelShape
from dami_router.deploying.sizing import ALLOWANCE, GIB, USABLE, fit
from dami_router.errors import CheckpointError
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.quantile import QuantileMap
from dami_router.manifest.family import load_family

CASES: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("kserve", {"pushed": ()}, [], "names no repository of"),
    ("gateway", {"pushed": (0.0, 1.0)}, [], "Qwen3-4B-DAMI-l060"),
    ("compose", {}, ["--gpu-memory", "1"], "fits on no GPU of 1 GiB"),
    ("compose", {}, ["--gpus", "1", "--gpu-memory", "24"], "--gpus 3"),
    ("compose", {}, ["--gpus", "1", "--gpu-memory", "43"], "--gpus 2"),
    ("compose", {}, ["--only", "0.5"], "it has 0, 0.6 or 1"),
    ("compose", {}, ["--context", "300000"], "at most 262144 tokens"),
    ("kserve", {"name": "Q" * 70}, [], "names have at most 63"),
    ("kserve", {}, ["--name", "Upper"], "lower-case letters"),
    ("kserve", {}, ["--name", "-x"], "lower-case letters"),
    ("production-stack", {"name": "q" * 45}, [], "--name NAME with at most 43 characters"),
    ("kserve", {}, ["--engine", "tgi"], "--engine tgi is for --target compose"),
    ("ray", {}, ["--live"], "--live is for --target compose"),
    ("compose", {"source": "/home/me/instruct"}, ["--live"], "not an id there"),
    ("compose", {"path": [{"filter": None, "value": "uniform"}]}, ["--live"], "spread over the layers by its recipe"),
    ("compose", {"dtype": "Q3"}, [], "dtype Q3"),
    ("compose", {"config": {"num_key_value_heads": "8"}}, [], "num_key_value_heads"),
    ("compose", {"lambdas": ()}, [], "no variants"),
    ("compose", {}, ["--gpu-memory", "nan"], "--gpu-memory"),
    ("compose", {}, ["--only", "nan"], "it has 0, 0.6 or 1"),
    ("kserve", {}, ["--namespace", "Bad/NS"], "--namespace"),
    ("kserve", {}, ["--gateway", "name"], "NAMESPACE/NAME"),
    ("kserve", {}, ["--gateway-url", "javascript:x"], "--gateway-url"),
    ("kserve", {}, ["--gateway-url", "http://h/p?q"], "--gateway-url"),
    ("compose", {}, ["--image", "a\nb"], "--image"),
]


@pytest.mark.parametrize(("target", "made", "options", "told"), CASES)
def test_misuse_is_one_message_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, made: dict[str, Any], options: list[str], told: str
) -> None:
    """A family that is not on the Hub or fits no GPU, a name that Kubernetes refuses: what to do, and no folder."""
    made = dict(made)
    ends = {key: made.pop(key) for key in ("source", "dtype") if key in made}
    path = made.pop("path", "uniform")
    source = family(tmp_path / "f", **made)
    if ends or path != "uniform":
        manifest = json.loads((source / "dami_family.json").read_text())
        manifest["path"] = path
        manifest["endpoints"]["instruct"].update(ends)
        (source / "dami_family.json").write_text(json.dumps(manifest))
    assert deploy(tmp_path / "o", source, target, *options) in (1, 2)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert told in message
    assert "Traceback" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


def test_an_existing_folder_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An --out that exists, even empty or dangling, is refused; so is one whose place does not exist."""
    source = family(tmp_path / "f")
    (tmp_path / "o").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "o", tmp_path / "link"):
        assert deploy(out, source, "compose") == 2
        assert "exists already" in capsys.readouterr().err
    assert deploy(tmp_path / "no" / "where", source, "compose") == 2
    assert list((tmp_path / "o").iterdir()) == []


def test_two_families_with_one_name_are_told_apart_by_name(tmp_path: Path) -> None:
    """Two families in one namespace have no object's name in common, unless both are given the same --name."""
    first, second = (family(tmp_path / n, name=n) for n in ("Chat-4B", "Code-4B"))
    names = []
    for source in (first, second):
        assert deploy(tmp_path / f"o-{source.name}", source, "gateway") == 0
        names.append({line for path in (tmp_path / f"o-{source.name}").glob("*.yaml")
                      for line in path.read_text().splitlines() if line.startswith("  name: ")})  # fmt: skip
    assert names[0]
    assert not names[0] & names[1]


def test_variants_that_would_share_a_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids that differ only in case or in dots become one name on Kubernetes."""
    source = family(tmp_path / "f", lambdas=(0.0, 1.0))
    manifest = json.loads((source / "dami_family.json").read_text())
    manifest["variants"][0]["id"], manifest["variants"][1]["id"] = "V.1", "v-1"
    (source / "dami_family.json").write_text(json.dumps(manifest))
    assert deploy(tmp_path / "o", source, "kserve") == 2
    assert "two variants would both be called" in capsys.readouterr().err


def test_a_mistake_in_the_settings_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--router is read as strictly as router.yml; a file that it names must be beside it."""
    source = family(tmp_path / "f")
    CalibratedMap(16, {"instruct": QuantileMap.fit([0.1, 0.5, 0.9], 0.3, 0.6)}).save(tmp_path / "m.json")
    for text, told in (
        ("policy: {stickky: true}\n", "section.yml:1"),
        ("estimator: {chain: [{trained: ../x}]}\n", "x"),
        (f"estimator: {{chain: [{{confidence: {{map: {tmp_path}/m.json}}}}]}}\n", "beside the settings"),
        ("family: ./f\n", "leave `family` out"),
    ):
        (tmp_path / "section.yml").write_text(text)
        assert deploy(tmp_path / "o", source, "compose", "--router", str(tmp_path / "section.yml")) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk half-way leaves neither the folder nor its temporary one."""
    from dami_router.deploying import written_files

    source, written = family(tmp_path / "f"), []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(written_files, "write_atomically", full)
    assert deploy(tmp_path / "o", source, "compose") == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


def test_any_number_of_servers_is_placed_on_whole_gpus(tmp_path: Path) -> None:
    """A split server has its GPUs to itself; more servers than the machine holds are refused with the number needed."""
    source = family(tmp_path / "f", parameters=30_532_122_624, config={"num_key_value_heads": 4})
    assert deploy(tmp_path / "o", source, "compose", "--gpu-memory", "48", "--gpus", "6") == 0
    services = documents(tmp_path / "o" / "compose.yaml")[0]["services"]
    devices = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
               for name, one in services.items() if name != "router"]  # fmt: skip
    assert devices == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert deploy(tmp_path / "p", source, "compose", "--gpu-memory", "48", "--gpus", "5") == 2


@given(
    weights=st.integers(1, 600 * GIB), token=st.integers(1, 1 << 20), context=st.integers(1, 1 << 18),
    heads=st.sampled_from([1, 12, 32, 40]), kv_heads=st.sampled_from([1, 2, 8]), gpu=st.integers(4, 192),
)  # fmt: skip
def test_a_fit_is_the_smallest_split_that_holds_a_sequence(
    weights: int, token: int, context: int, heads: int, kv_heads: int, gpu: int
) -> None:
    """A found split fits with at least one sequence, divides the heads, and no smaller split fits; none means none."""
    shape = ModelShape(weights, token, context, heads, kv_heads)
    room = gpu * GIB * USABLE
    sums = {
        n: weights // n + ALLOWANCE + context * token // min(n, kv_heads) for n in (1, 2, 4, 8) if heads % n == 0
    }  # fmt: skip
    fitting = [n for n, need in sums.items() if need <= room]
    found = fit(shape, context, gpu * GIB)
    assert (found.gpus if found else None) == (fitting[0] if fitting else None)
    if found:
        assert found.needed == sums[found.gpus]
        assert found.cache_tokens >= context - min(found.gpus, kv_heads)


@pytest.mark.parametrize(
    ("weights", "heads", "kv_heads", "context", "gpus"),
    [
        (60, 32, 8, 1, 1), (70, 32, 8, 1, 1), (71, 32, 8, 1, 2), (100, 1, 1, 1, None), (300, 12, 4, 1, None),
        (300, 32, 4, 1, 8), (1, 32, 8, 200, 4), (1, 32, 1, 200, None),
    ],
)  # fmt: skip
def test_what_fits_on_gpus_of_80_gib(weights: int, heads: int, kv_heads: int, context: int, gpus: int | None) -> None:
    """A server has 72 of 80 GiB, 2 of them for the rest; heads divide the split, one key-value head has none."""
    shape = ModelShape(weights * GIB, GIB, 1 << 20, heads, kv_heads)
    found = fit(shape, context - (weights >= 60), 80 * GIB)
    assert (found.gpus if found else None) == gpus


def test_the_cache_of_a_token_follows_the_attention(tmp_path: Path) -> None:
    """Linear layers keep nothing for a token, latent attention one vector a layer, and text models are found inside."""
    made = load_family(family(tmp_path / "f"))
    plain = {"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16, "max_position_embeddings": 64}
    assert ModelShape.of(made, plain).token == 4 * 2 * 8 * 16 * 2
    kinds = ["linear_attention", "full_attention", "conv", "sliding_attention"]
    assert ModelShape.of(made, {**plain, "layer_types": kinds}).token == 2 * 2 * 8 * 16 * 2
    assert ModelShape.of(made, {**plain, "kv_lora_rank": 512, "qk_rope_head_dim": 64}).token == 4 * 576 * 2
    assert ModelShape.of(made, {"text_config": plain}).context == 64
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        ModelShape.of(made, {**plain, "num_hidden_layers": True})
