"""Variants in Transformers: the one that the project is developed with, and the 4.51 that TGI pins."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.builds import build
from support.pairs import VOCABULARY, Pair, make_pair
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dami_merge.verify import verify_family

TEMPLATE = "{% for m in messages %}t1 {{ m.content }} {% endfor %}{% if add_generation_prompt %}t2OPEN{% endif %}"
FAMILY = {"name": "Fam", "lambdas": [0, 0.4, 1], "chat_template": "from(0.5)"}


def saved_by_transformers_5(folder: Path, kind: str, **more: Any) -> Pair:
    """A pair whose every file is as Transformers 5 writes it, with a rope_theta that is not the default."""
    pair = make_pair(folder, kind, **more)
    for side in pair:
        vocabulary = {f"t{i}": i for i in range(VOCABULARY - 2)} | {
            "<think>": VOCABULARY - 2,
            "</think>": VOCABULARY - 1,
        }
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="t0", eos_token="t3", additional_special_tokens=["<think>", "</think>"]
        )
        tokenizer.chat_template = TEMPLATE.replace("OPEN", " <think>" if side == pair.thinking else "")
        tokenizer.save_pretrained(side)
        config = json.loads((side / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 1_000_000.0
        (side / "config.json").write_text(json.dumps(config))
        generation = {"do_sample": True, "temperature": 0.6 if side == pair.thinking else 0.7, "eos_token_id": 3}
        (side / "generation_config.json").write_text(json.dumps(generation))
    return pair


def logits(folder: Path, ids: list[int]) -> tuple[Any, torch.Tensor, list[str]]:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    with torch.no_grad():
        return model, model.float()(torch.tensor([ids])).logits[0], problems


@pytest.mark.parametrize(
    ("kind", "more"),
    [("qwen3", {}), ("llama", {"tied": False, "dtype": torch.float16}), ("qwen3_moe", {"tied": False})],
)
def test_variants_load_whole(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    """Every variant loads with no missing or unexpected key, in shards too, and λ=0 answers as Instruct does."""
    pair = saved_by_transformers_5(tmp_path, kind, layers=2, **more)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out", max_shard_size=30_000)
    ids = [1, 5, 6, 7]
    for lambda_, side in ((0, pair.instruct), (0.4, None), (1, pair.thinking)):
        model, found, problems = logits(built.folder(lambda_), ids)
        assert problems == []
        assert model.config.rope_parameters["rope_theta"] == 1_000_000.0
        if side is not None:
            assert torch.equal(found, logits(side, ids)[1])
    assert verify_family(built.out, deep=True).all_problems == []


def test_templates_and_sampling_follow_the_recipe(tmp_path: Path) -> None:
    """Templates come from the side that the recipe says, sampling from Thinking above λ=0; the manifest says which."""
    pair = saved_by_transformers_5(tmp_path, "qwen3", layers=2)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    told = {v.lambda_: (v.chat_template.source, v.chat_template.opens_think, v.sampling.source, v.sampling.values)
            for v in built.report.manifest.variants}  # fmt: skip
    assert told == {
        0: ("instruct", False, "instruct", {"do_sample": True, "temperature": 0.7}),
        0.4: ("instruct", False, "thinking", {"do_sample": True, "temperature": 0.6}),
        1: ("thinking", True, "thinking", {"do_sample": True, "temperature": 0.6}),
    }
    for lambda_, end in ((0.4, "t2"), (1, "t2 <think>")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(built.folder(lambda_))
        text = tokenizer.apply_chat_template([{"content": "t9"}], tokenize=False, add_generation_prompt=True)
        assert text == f"t1 t9 {end}"
        generation = json.loads((built.folder(lambda_) / "generation_config.json").read_text())
        assert generation["temperature"] == 0.6


@pytest.mark.tgi
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_transformers_4_51_reads_the_same_model(tmp_path: Path, kind: str) -> None:
    """A variant of endpoints saved by Transformers 5 is, for exactly 4.51.3, the same model, tokenizer and template."""
    python = os.environ.get("DAMI_TGI_PYTHON")
    if not python:
        pytest.skip("needs an environment with Transformers 4.51.3: `make test-tgi`")
    pair = saved_by_transformers_5(tmp_path, kind, layers=2)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    reader = Path(__file__).parents[1] / "support" / "old_reader.py"
    done = subprocess.run([python, reader, built.folder(0.4)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    old = json.loads(done.stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(built.folder(0.4))
    _, expected, _ = logits(built.folder(0.4), old["ids"])
    assert old["version"] == "4.51.3"
    assert old["problems"] == []
    assert (old["rope_theta"], old["dtype"]) == (1_000_000.0, "torch.bfloat16")
    assert old["tokenizer"] == "PreTrainedTokenizerFast"
    assert old["prompt"] == tokenizer.apply_chat_template(
        [{"role": "user", "content": "t5 t6 <think> t7"}], tokenize=False
    )
    assert old["ids"] == tokenizer(old["prompt"])["input_ids"] == [1, 5, 6, VOCABULARY - 2, 7]
    assert old["special"] == sorted(tokenizer.all_special_tokens)
    assert torch.allclose(torch.tensor(old["logits"]), expected, rtol=0, atol=1e-6)
