"""What is shipped: the pair loads cleanly, answers as its rollouts say, and is copied with care."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dami_merge.commands.lab import lab
from dami_merge.interpolation.formula import interpolate
from dami_merge.lab import SHIPPED_PAIR, SHIPPED_ROLLOUTS, copy_pair, draw_queries, grade
from dami_merge.lab.rolling_out import roll_out
from dami_merge.lab.tiny_model import new_model, save_endpoint
from dami_merge.lab.tokenizer import encode
from dami_merge.lab.variants import load_variant
from dami_router.errors import FailureError, MisuseError
from dami_router.rollouts.records import Rollout, read_rollouts

ENDPOINTS = ("instruct", "thinking")


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """The shipped rollouts."""
    return list(read_rollouts(SHIPPED_ROLLOUTS))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_loads_with_no_missing_or_unexpected_key(endpoint: str) -> None:
    """Transformers finds every tensor it wants and nothing it does not, in bf16."""
    model, info = AutoModelForCausalLM.from_pretrained(SHIPPED_PAIR / endpoint, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_files_are_in_the_layout_that_old_servers_read(endpoint: str) -> None:
    """Transformers 4.51 finds rope_theta and the dtype where it looks, and greedy settings."""
    config = json.loads((SHIPPED_PAIR / endpoint / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert "rope_parameters" not in config
    generation = json.loads((SHIPPED_PAIR / endpoint / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["eos_token_id"], generation["pad_token_id"]) == (False, 2, 2)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_shipped_text_files_are_what_training_would_write(endpoint: str, tmp_path: Path) -> None:
    """Configuration and tokenizer have not drifted from the code that writes them."""
    save_endpoint(new_model(0).state_dict(), tmp_path / endpoint)
    written, shipped = _content(tmp_path / endpoint), _content(SHIPPED_PAIR / endpoint)
    assert written.keys() == shipped.keys()
    assert {k: v for k, v in written.items() if k.endswith(".json")} == {
        k: v for k, v in shipped.items() if k.endswith(".json")
    }


def test_endpoints_are_distinct_finite_bf16() -> None:
    """Both files hold the same 45 tensors, finite, in bf16, with other values."""
    opened = [safe_open(SHIPPED_PAIR / e / "model.safetensors", "pt") for e in ENDPOINTS]
    names = [sorted(f.keys()) for f in opened]
    assert names[0] == names[1]
    for name in names[0]:
        instruct, thinking = (f.get_tensor(name) for f in opened)
        assert instruct.dtype == thinking.dtype == torch.bfloat16
        assert instruct.isfinite().all()
        assert thinking.isfinite().all()
        assert not torch.equal(instruct, thinking)


def test_rollouts_are_complete_and_graded_by_the_grader(rollouts: list[Rollout]) -> None:
    """Every dev and test query once at each of 11 λ, and every grade is what the grader says of the answer."""
    queries = {q.id: q for split in ("dev", "test") for q in draw_queries(split)}  # type: ignore[arg-type]
    assert {(r.query_id, r.lambda_) for r in rollouts} == {(i, n / 10) for i in queries for n in range(11)}
    assert len(rollouts) == 22_000
    for r in rollouts:
        query = queries[r.query_id]
        assert (r.query, r.expected) == (query.text, query.expected)
        assert r.answer is not None
        assert r.correct == grade(r.answer, query.expected, finished=r.finish_reason == "stop")
        assert r.think == ("<think>" in r.answer or "</think>" in r.answer)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_shipped_pair_answers_as_its_rollouts_say(lambda_: float, rollouts: list[Rollout]) -> None:
    """Fifty test queries give the shipped answers, tokens and grades again; another processor may tip a near tie."""
    queries = draw_queries("test")[:50]
    shipped = {r.query_id: r for r in rollouts if r.lambda_ == lambda_}
    again = roll_out(load_variant(SHIPPED_PAIR, lambda_), queries, lambda_, str(shipped[queries[0].id].model))
    assert sum(a == shipped[a.query_id] for a in again) >= 48


def test_shipped_pair_behaves_like_an_instruct_thinking_pair(rollouts: list[Rollout]) -> None:
    """On the test queries tokens grow with λ, accuracy has no collapse between, and choosing per query would pay."""
    by_lambda = {n / 10: [r for r in rollouts if r.lambda_ == n / 10 and r.query_id.startswith("test")]
                 for n in range(11)}  # fmt: skip
    accuracy = [sum(r.correct for r in by_lambda[n / 10]) / 1000 for n in range(11)]
    tokens = [sum(r.tokens for r in by_lambda[n / 10]) / 1000 for n in range(11)]
    assert tokens == sorted(tokens)
    assert tokens[10] > 8 * tokens[0]
    assert accuracy[10] > accuracy[0] + 0.1
    assert min(accuracy) > accuracy[0] - 0.03
    solved = {r.query_id for rs in by_lambda.values() for r in rs if r.correct}
    assert len(solved) / 1000 > max(accuracy) + 0.05


def _content(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def test_copying_twice_does_no_harm(tmp_path: Path) -> None:
    """The copy has the shipped bytes and nothing else; the second copy changes nothing, and mends what is missing."""
    copied = copy_pair(tmp_path / "new" / "lab")
    assert copied == (tmp_path / "new" / "lab" / "instruct", tmp_path / "new" / "lab" / "thinking")
    assert _content(tmp_path / "new" / "lab") == _content(SHIPPED_PAIR)
    (copied[1] / "config.json").unlink()
    copy_pair(tmp_path / "new" / "lab")
    assert _content(tmp_path / "new" / "lab") == _content(SHIPPED_PAIR)


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    """A recipe beside the two endpoints is none of our business."""
    (tmp_path / "recipe.yml").write_text("mine")
    copy_pair(tmp_path)
    assert (tmp_path / "recipe.yml").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adapter_config.json"])
def test_copying_over_another_model_is_refused(tmp_path: Path, name: str) -> None:
    """A file that differs or is not ours stops the copy before anything is written."""
    (tmp_path / "instruct").mkdir()
    (tmp_path / "instruct" / name).write_text("someone's work")
    with pytest.raises(FailureError, match=name):
        copy_pair(tmp_path)
    assert _content(tmp_path) == {f"instruct/{name}": b"someone's work"}


def test_copying_onto_a_file_is_refused(tmp_path: Path) -> None:
    """A file where a directory belongs is named in the error."""
    (tmp_path / "lab").write_text("a file")
    with pytest.raises(FailureError, match="is a file"):
        copy_pair(tmp_path / "lab")


def test_importing_the_lab_is_light() -> None:
    """Neither torch nor transformers is imported with the package and its light modules."""
    code = (
        "import sys, dami_merge.lab, dami_merge.lab.training_pair, dami_merge.lab.rolling_out, dami_merge.lab.variants;"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("head_size", [32, 64])
def test_wider_heads_compute_the_same_at_every_lambda(tmp_path: Path, head_size: int) -> None:
    """Merges of the wider pair have the logits of merges of the shipped one, up to rounding; twice is harmless."""
    copy_pair(tmp_path, head_size=head_size)
    before = _content(tmp_path)
    copy_pair(tmp_path, head_size=head_size)
    assert _content(tmp_path) == before
    ids = torch.tensor([encode("<bos>3+7-2>5=<think>3+7=0")])
    for lambda_ in (0.0, 0.45, 1.0):
        logits = []
        for pair in (SHIPPED_PAIR, tmp_path):
            model = AutoModelForCausalLM.from_pretrained(pair / "instruct", dtype=torch.float32)
            ends = [load_file(pair / side / "model.safetensors") for side in ("instruct", "thinking")]
            merged = {name: interpolate(a.float(), ends[1][name].float(), lambda_) for name, a in ends[0].items()}
            model.load_state_dict(merged | {"lm_head.weight": merged["model.embed_tokens.weight"]})
            with torch.inference_mode():
                logits.append(model(ids).logits)
        assert model.config.head_dim == head_size
        assert (logits[0] - logits[1]).abs().max() < 1e-3
        assert logits[0].abs().max() > 1


def test_the_command_writes_wider_heads(tmp_path: Path) -> None:
    """`--head-size 32` writes that pair and names `dami live` next; the shipped pair beside it is in the way."""
    result = CliRunner().invoke(lab, [str(tmp_path / "wide"), "--head-size", "32"])
    assert (result.exit_code, "dami live" in result.output) == (0, True)
    assert json.loads((tmp_path / "wide" / "thinking" / "config.json").read_text())["head_dim"] == 32
    refused = CliRunner().invoke(lab, [str(tmp_path / "wide")], standalone_mode=False)
    assert isinstance(refused.exception, FailureError)
    refused = CliRunner().invoke(lab, [str(tmp_path / "x"), "--train", "--head-size", "32"], standalone_mode=False)
    assert isinstance(refused.exception, MisuseError)
