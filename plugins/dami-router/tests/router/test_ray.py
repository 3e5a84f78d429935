"""The files of `dami deploy --target ray` on a real Ray Serve, with small engines on the CPU: opt-in, `make test-ray`.

Ray Serve LLM needs vLLM and GPUs; `ray_fleet/small_engine.py` stands in its place behind the same arguments.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from deployments import COMMIT, deploy
from fakes.processes import free_port

from dami_router.cli import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        "DAMI_RAY_PYTHON" not in os.environ, reason="DAMI_RAY_PYTHON names no Python with Ray; `make test-ray` does"
    ),
]
TESTS = Path(__file__).parent.parent
ROOT = TESTS.parents[2]
LAMBDAS = (0.0, 0.6)


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Build the lab family, deploy it for Ray, and run it through one replica each, two each, and one killed."""
    place = tmp_path_factory.mktemp("ray")
    with redirect_stdout(io.StringIO()):
        run("lab", str(place / "lab"))
        recipe = (ROOT / "merge_configs" / "lab-family.yml").read_text()
        (place / "recipe.yml").write_text(recipe.replace("./lab", str(place / "lab")))
        run("build", str(place / "recipe.yml"), str(place / "family"), *(f"--only={x}" for x in LAMBDAS))
    manifest = json.loads((place / "family" / "dami_family.json").read_text())
    for variant in manifest["variants"]:
        variant["hub"] = {"repo": f"acme/{variant['id']}", "revision": COMMIT}
    (place / "family" / "dami_family.json").write_text(json.dumps(manifest))
    assert deploy(place / "out", place / "family", "ray", "--name", "lab-dami") == 0
    port = str(free_port())
    router = place / "out" / "router.yml"
    router.write_text(router.read_text().replace("http://127.0.0.1:8000/l", f"http://127.0.0.1:{port}/l"))
    path = os.pathsep.join([str(TESTS.parent), str(TESTS / "ray_fleet")])
    command = [os.environ["DAMI_RAY_PYTHON"], str(TESTS / "ray_fleet" / "drive.py"), str(place / "out")]
    done = subprocess.run(
        [*command, str(place / "family"), port],
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((place / "out" / "happened.json").read_text())
    return {**found, "family": place / "family"}


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code


VALIDATE = """
import sys, yaml
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.serve.schema import ServeDeploySchema
found = yaml.safe_load(open(sys.argv[1]))
ServeDeploySchema.model_validate(found)
for app in found["applications"]:
    for config in app["args"].get("llm_configs", ()):
        print(LLMConfig.model_validate(config).model_id)
"""


def test_ray_reads_the_configuration_of_its_own_llm_servers(happened: dict[str, Any]) -> None:
    """The generated file, before anything is put in its place, is valid for Ray Serve and for Ray Serve LLM."""
    path = happened["family"].parent / "out" / "serve.yml"
    done = subprocess.run(
        [os.environ["DAMI_RAY_PYTHON"], "-c", VALIDATE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["lab-dami-l000", "lab-dami-l060"]


def test_each_request_is_answered_at_its_own_lambda(happened: dict[str, Any]) -> None:
    """Through Ray's proxy, our router and Ray's proxy again, each λ gives what Transformers says for that variant."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answers = happened["answered"]["answers"] + happened["scaled"]["answers"]
    assert Counter((a["status"], a["whole"], a["attempts"]) for a in answers) == {(200, True, "1"): len(answers)}
    for lambda_ in LAMBDAS:
        variant = f"lab-dami-l{round(lambda_ * 100):03d}"
        folder = happened["family"] / variant
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        mine = [a for a in answers if a["lambda"] == lambda_]
        assert {a["variant"] for a in mine} == {variant}
        for task, said in {(a["task"], a["said"]) for a in mine}:
            chat = [{"role": "user", "content": task}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            out = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
            # The router has moved the thoughts out of their tags.
            assert said == re.sub("</?think>", "", tokenizer.decode(out, skip_special_tokens=True))


def test_a_variant_scales_from_one_replica_to_two(happened: dict[str, Any]) -> None:
    """After a second deployment of the same file with another number, two processes answer for each variant."""
    for part, replicas in (("answered", 1), ("scaled", 2)):
        for lambda_ in LAMBDAS:
            processes = {a["pid"] for a in happened[part]["answers"] if a["lambda"] == lambda_}
            assert len(processes) == replicas


def test_no_request_is_lost_when_a_replica_is_killed_under_load(happened: dict[str, Any]) -> None:
    """SIGKILL to one of two replicas with requests under way: all whole replies arrive, and every stream begins.

    A stream that had begun there may end early, with an error event; nothing else may differ.
    """
    part = happened["killed"]
    assert part["under_way"] >= 2
    answers = part["answers"]
    assert {a["status"] for a in answers} == {200}
    broken = [a for a in answers if not a["whole"]]
    assert all(a["stream"] and a["said"] and a["error"] for a in broken)
    assert len(broken) <= part["under_way"]
    assert {a["variant"] for a in answers if a["lambda"] == LAMBDAS[0]} == {"lab-dami-l000"}
    assert str(part["killed"]) not in {a["pid"] for a in answers[-2 * len(LAMBDAS) :]}
