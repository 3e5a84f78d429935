"""A variant's config.json in two spellings: Transformers 4.51, which TGI pins, and 5 read the same model from it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.builds import build
from support.pairs import make_pair

from dami_merge.build.companions import readable_config
from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.config_comparison import differing_settings
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.verify.readability import unreadable

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "rope_theta": 1234567.0, "max_position_embeddings": 65536,
}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
GEMMA = TEXT | {
    "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 512,
    "sliding_window_pattern": 3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SECTIONS = {"type": "mrope", "mrope_section": [2, 1, 1]}
MISTRAL: dict[str, Any] = {"text_config": TEXT | {"model_type": "mistral"}, "vision_config": VISION}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": TEXT,
    "qwen3_moe": TEXT | {"num_experts": 4},
    "llama": TEXT | {"rope_scaling": LLAMA3},
    "phi3": TEXT | {"partial_rotary_factor": 0.5},
    "cohere2": TEXT | {"sliding_window_pattern": 3},
    "gemma3_text": GEMMA,
    "gemma3": {"text_config": GEMMA, "vision_config": VISION},
    "mistral3": MISTRAL | {"vision_config": VISION | {"model_type": "pixtral"}},
    "llava": MISTRAL | {"vision_config": VISION | {"model_type": "clip_vision_model"}},
    "llama4": {"text_config": TEXT, "vision_config": VISION},
    "qwen2_vl": TEXT | {"rope_scaling": SECTIONS},
    "qwen2_5_vl": TEXT | {"rope_scaling": SECTIONS},
}
OLD_FIELDS = [
    *TEXT,
    "rope_scaling",
    "rope_local_base_freq",
    "sliding_window_pattern",
    "partial_rotary_factor",
    "num_experts",
]
READER = """
import json, sys
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
made = json.load(open(sys.argv[1]))
config = CONFIG_MAPPING[made["model_type"]].from_dict(made)
text = getattr(config, "text_config", config)
text = config if isinstance(text, dict) else text
print(json.dumps({name: getattr(text, name, None) for name in sys.argv[2:]}))
"""


def saved(kind: str) -> dict[str, Any]:
    """The config.json that Transformers 5 writes."""
    made = transformers.CONFIG_MAPPING[kind].from_dict({"model_type": kind, **copy.deepcopy(CONFIGS[kind])}).to_dict()
    return json.loads(json.dumps(made)) | {"architectures": ["X"], "dtype": "float32"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_5_reads_the_same_model(kind: str) -> None:
    """What is added for old readers changes nothing for new ones, and comparing the two finds no difference."""
    made = readable_config(copy.deepcopy(saved(kind)), "bfloat16")
    assert differing_settings(saved(kind), made) == []


EXPECTED: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "rope_theta": 1234567.0, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {"rope_theta": 1234567.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
    "cohere2": {"sliding_window_pattern": 3},
    "qwen3_moe": {"num_experts": 4},
    "qwen2_5_vl": {"hidden_size": 32, "num_hidden_layers": 6, "rope_theta": 1234567.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_old_spellings_stand_where_old_readers_look(kind: str) -> None:
    """Rotary settings by layer type, partial rotation, sliding patterns, experts and flat text settings."""
    made = readable_config(copy.deepcopy(saved(kind)), "bfloat16")
    assert {key: made.get(key) for key in EXPECTED[kind]} == EXPECTED[kind]


def test_nested_configs_are_readable_too() -> None:
    """Gemma 3's text settings are spelt twice inside text_config; rope sections survive."""
    text = readable_config(copy.deepcopy(saved("gemma3")), "bfloat16")["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"], text["torch_dtype"]) == (1234567.0, 2e4, "bfloat16")
    made = readable_config(copy.deepcopy(saved("qwen2_vl")), "bfloat16")
    assert made["rope_scaling"]["mrope_section"] == [2, 1, 1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_verify_names_what_old_readers_would_miss(tmp_path: Path, kind: str) -> None:
    """A config as Transformers 5 saved it has problems; the one that a variant carries has none."""
    side = make_pair(tmp_path, "qwen3", layers=1).instruct
    for config, sound in ((saved(kind), False), (readable_config(saved(kind), "bfloat16"), True)):
        (side / "config.json").write_text(json.dumps(config))
        (side / "tokenizer_config.json").unlink(missing_ok=True)
        assert ([text for _, text in unreadable(open_checkpoint(ModelRef(str(side))))] == []) is sound


def test_a_resaved_mixture_is_built_readable(tmp_path: Path) -> None:
    """Transformers 5 saves Qwen3-MoE with another name for its number of experts; variants have both."""
    pair = make_pair(tmp_path, "qwen3_moe", layers=2)
    built = build(pair.recipe(0.5), tmp_path / "out")
    (variant,) = built.report.manifest.variants
    assert json.loads((built.out / variant.folder / "config.json").read_text())["num_experts"] == 4


@pytest.mark.tgi
@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_4_51_reads_the_same_settings(tmp_path: Path, kind: str) -> None:
    """4.51.3 itself finds every size and every rotary setting that the config was made with."""
    python = os.environ.get("DAMI_TGI_PYTHON")
    if not python:
        pytest.skip("needs an environment with Transformers 4.51.3: `make test-tgi`")
    (tmp_path / "config.json").write_text(json.dumps(readable_config(saved(kind), "bfloat16")))
    done = subprocess.run(
        [python, "-c", READER, tmp_path / "config.json", *OLD_FIELDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, source = json.loads(done.stdout), CONFIGS[kind].get("text_config", CONFIGS[kind])
    expected = {key: value for key, value in source.items() if key in OLD_FIELDS and key != "rope_scaling"}
    assert {key: found[key] for key in expected} == expected
    for key, value in (source.get("rope_scaling") or {}).items():
        assert key == "type" or found["rope_scaling"][key] == value
