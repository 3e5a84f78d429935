"""What makes no sense, does not fit or has no room is told in one sentence, and the rest goes on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.live import make_live_pair
from support.pairs import Pair, make_pair

from dami_merge.live import Engine, Generation
from dami_router.errors import CheckpointError, DamiError, MisuseError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Qwen3 pair."""
    return make_live_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def engine(pair: Pair) -> Engine:
    """The pair, loaded."""
    return Engine.load(str(pair.instruct), str(pair.thinking))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"lambda_": 1.2}, r"λ: expected a number in \[0, 1\], found 1.2"),
        ({"lambda_": -0.1}, r"λ: expected a number in \[0, 1\], found -0.1"),
        ({"lambda_": float("nan")}, "λ: expected a number"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, found 0"),
        ({"temperature": -1.0}, "temperature: expected a number of at least 0"),
        ({"temperature": float("inf")}, "temperature: expected"),
        ({"top_p": 0.0}, "top_p: expected a number above 0"),
        ({"top_k": -1}, "top_k: expected a whole number of at least 0"),
        ({"top_log_probs": 21}, "top_log_probs: expected a whole number from 0 to 20, found 21"),
        ({"prompt_log_probs": -1}, "prompt_log_probs: expected a whole number from 0 to 20"),
        ({"stop": ("",)}, "stop: expected texts of 1 to"),
        ({"stop": ("a",) * 17}, "stop: expected at most 16"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(asked: dict[str, Any], message: str) -> None:
    """Each bad value is named with what was expected and what was found."""
    with pytest.raises(MisuseError, match=message):
        Generation(**{"prompt": [1], "lambda_": 0.5, **asked})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"lambda_": "0.5"}, r"λ: expected a number in \[0, 1\], a schedule or None, found '0.5'"),
        ({"lambda_": True}, "λ: expected a number"),
        ({"lambda_": 1.0000001}, "found 1.0000001"),
        ({"prompt": "text"}, "prompt: expected a sequence of token ids, found str"),
        ({"prompt": [1, "2"]}, "prompt: expected token ids"),
        ({"prompt": [True]}, "prompt: expected token ids"),
        ({"prompt": 5}, "prompt: expected a sequence of token ids, found int"),
        ({"max_new_tokens": "9"}, "max_new_tokens: expected a whole number of at least 1, found '9'"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: expected a whole number"),
        ({"temperature": None}, "temperature: expected a number of at least 0, found None"),
        ({"top_p": "1"}, "top_p: expected a number above 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, found 0"),
        ({"presence_penalty": 2.5}, "presence_penalty: expected a number of at least -2 and at most 2, found 2.5"),
        ({"frequency_penalty": "x"}, "frequency_penalty: expected a number"),
        ({"min_p": -0.1}, "min_p: expected a number of at least 0 and at most 1"),
        ({"typical_p": 0}, "typical_p: expected a number above 0"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"stop": "ab"}, "stop: expected a sequence of texts, found 'ab'"),
        ({"stop": (1,)}, "stop: expected texts"),
        ({"log_probs": 1}, "log_probs: expected True or False"),
        ({"prompt_log_probs": True}, "prompt_log_probs: expected a whole number from 0 to 20"),
    ],
)
def test_a_value_of_another_type_is_refused_as_any_other(asked: dict[str, Any], message: str) -> None:
    """What is no number where one belongs is a MisuseError that names the setting."""
    with pytest.raises(MisuseError, match=message):
        Generation(**{"prompt": [1], "lambda_": 0.5, **asked})


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2)
ODDITY = ODD | st.lists(ODD, max_size=3) | st.tuples(ODD) | st.dictionaries(ODD, ODD, max_size=1)
SETTINGS = [field.name for field in fields(Generation)]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(SETTINGS), ODDITY, min_size=1, max_size=3))
def test_whatever_is_asked_is_answered_or_refused(engine: Engine, asked: dict[str, Any]) -> None:
    """Any value of any type for any setting: a MisuseError, or an answer of the engine."""
    try:
        generation = Generation(**{"prompt": [1], "lambda_": 0.5, "max_new_tokens": 2, **asked})
        row = engine.add(generation)
    except MisuseError:
        return
    assert engine.step()
    engine.remove(row)


def test_numbers_of_numpy_are_numbers(engine: Engine) -> None:
    """λ, counts and token ids may be numpy's."""
    generation = Generation(
        [np.int64(3), np.int32(4)], np.float32(0.5), max_new_tokens=np.int64(3), temperature=np.float64(0.0),
        ignore_eos=True,
    )  # type: ignore[arg-type, list-item]  # fmt: skip
    plain = Generation([3, 4], 0.5, max_new_tokens=3, ignore_eos=True)
    assert engine.complete([generation])[0].tokens == engine.complete([plain])[0].tokens


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (Generation([1, 48], 0.5), "token ids outside 0 to 47"),
        (Generation([-1], 0.5), "token ids outside"),
        (Generation([1] * 512, 0.5), "the prompt has 512 tokens; at most 511"),
        (Generation([1]), "no λ given"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_refused(engine: Engine, generation: Generation, message: str) -> None:
    """add refuses it at once and keeps nothing of it; a row beside it is not disturbed."""
    engine.add(Generation([1], 0.5, max_new_tokens=2, ignore_eos=True))
    with pytest.raises(MisuseError, match=message):
        engine.add(generation)
    assert engine.waiting == 1
    assert [bool(event.finish_reason) for _ in range(2) for event in engine.step()] == [False, True]
    assert not engine.busy


def test_a_schedule_outside_the_segment_is_refused(engine: Engine) -> None:
    """A row's schedule is checked layer by layer when it is added."""
    from dami_merge.interpolation.schedule import parse_lambda

    schedule = parse_lambda("ramp(0, 1.5)")
    with pytest.raises(MisuseError, match=r"λ: expected a number in \[0, 1\], found 1.5"):
        engine.add(Generation([1], schedule))
    with pytest.raises(MisuseError, match="layer index"):
        engine.add(Generation([1], parse_lambda("step(0, 1, at=40)")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode: expected one of auto, mixed, uniform"),
        ({"dtype": "int8"}, "dtype: expected one of bfloat16"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not available"),
        ({"device": "toaster"}, "device 'toaster' is not available"),
        ({"path": "late(-1)"}, "expected a number of at least 0"),
        ({"chat_template": "both"}, "expected instruct, thinking or from"),
        ({"max_length": 513}, "max_length: the model was made for 512 tokens, found 513"),
        ({"max_length": 1}, "max_length"),
        ({"max_rows": 0}, "max_rows"),
        ({"max_rows": "3"}, "max_rows: expected a whole number of at least 1, found '3'"),
        ({"max_length": "many"}, "max_length: expected a whole number of at least 2"),
        ({"prefill": 1.5}, "prefill: expected a whole number"),
        ({"device": 3.5}, "device"),
        ({"dtype": 16}, "dtype: expected one of bfloat16"),
        ({"mode": None}, "mode: expected one of auto, mixed, uniform"),
    ],
)
def test_bad_options_are_refused(pair: Pair, options: dict[str, Any], message: str) -> None:
    """Every option that makes no sense is named."""
    with pytest.raises(MisuseError, match=message):
        Engine.load(str(pair.instruct), str(pair.thinking), **options)


@pytest.mark.parametrize("name", ["", 5, None])
def test_an_endpoint_that_is_no_name_is_refused(pair: Pair, name: Any) -> None:
    """Neither an empty text nor another type is a folder or a Hub id."""
    with pytest.raises(MisuseError, match="expected a local folder or a Hub id"):
        Engine.load(str(pair.instruct), name)


def test_unsupported_modules_are_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts of another design are refused by the names of their modules, and nothing is loaded by then."""
    monkeypatch.setattr("dami_merge.live.loading.local", lambda *_: pytest.fail("downloads"))
    monkeypatch.setattr("dami_merge.live.loading.load_pairs", lambda *_: pytest.fail("loads"))
    moe = make_live_pair(tmp_path, "ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=16)
    with pytest.raises(CheckpointError, match=r"Ernie4_5_MoeExperts \(`model.layers.*experts`\)") as caught:
        Engine.load(str(moe.instruct), str(moe.thinking))
    assert "Ernie4_5_MoeTopKRouter" in caught.value.message
    assert "dami build" in (caught.value.hint or "")


@pytest.mark.parametrize(("filtered", "message"), [("experts.1.", "8 tensors"), ("up_proj", "8 tensors")])
def test_experts_of_one_layer_share_a_lambda(tmp_path: Path, filtered: str, message: str) -> None:
    """A path that tells apart the tensors of one parameter is refused before weights are read; other filters work."""
    moe = make_pair(tmp_path, "qwen3_moe")
    ends = str(moe.instruct), str(moe.thinking)
    with pytest.raises(MisuseError, match=rf"experts.gate_up_proj` holds ({message}), such as .*experts.0.gate_proj"):
        Engine.load(*ends, path=[{"filter": filtered, "value": "late(0.5)"}, {"value": "uniform"}])
    engine = Engine.load(*ends, path=[{"filter": ".experts.", "value": "late(0.5)"}, {"value": "uniform"}])
    vector = engine.model.vector(0.5)
    assert len(set(vector)) > 1


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gpt_neox", {}, "GPTNeoXForCausalLM is not supported .* supported are .*Qwen3"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "Gemma3Attention that is not causal"),
        ("apertus", {}, "XIELUActivation"),
        ("gpt_oss", {}, "GptOssAttention"),
    ],
)
def test_what_was_not_compared_with_transformers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, config: dict[str, Any], message: str
) -> None:
    """A class that is not listed is refused by name even where all its modules are known; so is other attention."""
    monkeypatch.setattr("dami_merge.live.loading.local", lambda *_: pytest.fail("downloads"))
    pair = make_live_pair(tmp_path, kind, **config)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(str(pair.instruct), str(pair.thinking))


def changed(pair: Pair, folder: Path, **config: Any) -> Pair:
    """A copy of a pair with other config values on both sides."""
    import shutil

    made = Pair(folder / "a", folder / "b")
    for source, target in zip(pair, made, strict=True):
        shutil.copytree(source, target)
        known = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**known, **config}))
    return made


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mystery"}, "model_type 'mystery' is unknown to Transformers"),
        ({"model_type": "vit"}, "ViTConfig is not the config of a language model"),
        ({"model_type": ["qwen3"]}, "is unknown to Transformers"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rotary embedding `proportional`"),
        ({"num_hidden_layers": 5, "layer_types": None}, "lacks .* of the model's .* tensors, such as `model.layers.3"),
        ({"intermediate_size": 64}, r"`model.layers.0.mlp.gate_proj.weight` is \[48, 32\]; its config.json makes it"),
        ({"hidden_act": "no_such"}, "Transformers cannot build a model from config.json"),
    ],
)
def test_configs_that_do_not_fit_are_refused(pair: Pair, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """What a config says that cannot be, or is not supported, is named."""
    made = changed(pair, tmp_path, **config)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(str(made.instruct), str(made.thinking))


def test_endpoints_of_different_architecture_are_refused(pair: Pair, tmp_path: Path) -> None:
    """The comparison of `dami check` comes first, and its finding is the message."""
    other = make_live_pair(tmp_path, "llama")
    with pytest.raises(CheckpointError, match="architectures differ"):
        Engine.load(str(pair.instruct), str(other.thinking))
    with pytest.raises(DamiError, match="no such folder"):
        Engine.load(str(pair.instruct), "./nothing/here/at/all")


def test_no_code_of_a_checkpoint_is_run(pair: Pair, tmp_path: Path) -> None:
    """An auto_map that names Python files is passed over: the architecture is Transformers' own."""
    made = changed(pair, tmp_path, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    for side in made:
        (side / "evil.py").write_text("raise SystemExit('ran')")
    engine = Engine.load(str(made.instruct), str(made.thinking))
    assert engine.generate([[1, 2]], [0.5], max_new_tokens=2, ignore_eos=True)[0].finish_reason == "length"
