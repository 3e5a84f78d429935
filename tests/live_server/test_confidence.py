"""The estimator `confidence` on a live pair, over HTTP and inside `dami live` itself, and `dami calibrate` on it."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.world import Client, World
from support.live_servers import section, served

from dami_merge.lab import draw_queries
from dami_merge.lab.tokenizer import BOS, encode
from dami_merge.live import Engine, Generation
from dami_router.cli import main
from dami_router.estimators.calibrated import CalibratedMap

CHAIN = "3+7-2>5="


def asked(client: Client, text: str = CHAIN) -> dict[str, Any]:
    """Return a decision that `confidence` made."""
    decision = client.post("/v1/route", {"messages": [{"role": "user", "content": text}]}).json
    assert decision["estimator"] == "confidence", decision
    return dict(decision)


@pytest.mark.parametrize("form", ["instruct", "discrepancy", "entropy"])
def test_every_form_on_a_live_pair(server: Client, alone: Engine, loop: Loop, form: str) -> None:
    """A router in front of `dami live` asks it at λ = 0 and 1, and measures what the engine itself gives."""
    world = World(loop)
    try:
        client = world.proxy(
            f'backends: [{{url: "{server.url}", protocol: live}}]\n'
            f"estimator: {{chain: [{{confidence: {{form: {form}, timeout: 20}}}}]}}\n"
        )
        evidence = asked(client)["evidence"]
    finally:
        world.close()
    ids = encode(BOS + CHAIN)
    (own,) = alone.complete([Generation(ids, 0.0, max_new_tokens=16, log_probs=True)])
    assert evidence["form"] == form
    assert evidence["confidence"] == pytest.approx(math.exp(math.fsum(own.log_probs) / len(own.log_probs)), abs=1e-3)
    if form == "discrepancy":
        answer = encode(own.text)
        (other,) = alone.complete([Generation([*ids, *answer], 1.0, max_new_tokens=1, prompt_log_probs=0)])
        scored = [p.log_prob or 0.0 for p in (other.prompt_log_probs or ())[len(ids) :]]
        expected = math.fsum(own.log_probs[: len(answer)]) - math.fsum(scored)
        assert evidence["discrepancy"] == pytest.approx(expected / len(answer), abs=1e-2)


def test_dami_live_estimates_by_itself(pair: tuple[str, str], loop: Loop, tmp_path: Path) -> None:
    """With the estimator in its own section, `dami live` asks its engine, without HTTP, and answers at that λ."""
    engine = Engine.load(*pair, mode="mixed", max_rows=8)
    config = section(tmp_path, "estimator: {chain: [{confidence: {form: auto, timeout: 20}}]}\n", engine)
    with served(loop, engine, config) as client:
        decision = asked(client)
        assert decision["evidence"]["form"] == "discrepancy"
        body = {"model": "dami", "messages": [{"role": "user", "content": CHAIN}], "max_tokens": 8}
        answer = client.post("/v1/chat/completions", body)
        assert float(answer.headers["x-dami-lambda"]) == pytest.approx(decision["lambda"], abs=1e-3)


def test_calibrating_on_a_live_pair(server: Client, tmp_path: Path) -> None:
    """λ(q) is what a live server answers at, so the wanted mean is λ(q)'s own; the map ends at its largest λ."""
    config = tmp_path / "router.yml"
    config.write_text(f'backends: [{{url: "{server.url}", protocol: live}}]\n')
    rows = [{"id": q.id, "question": q.text} for q in draw_queries("dev", 80)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = io.StringIO()
    wish = ["--mean-lambda", "0.3", "--max-lambda", "0.6", "--tokens", "4", "--json"]
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main(["calibrate", str(config), "--queries", str(tmp_path / "q.jsonl"), *wish])
    assert not stopped.value.code
    (result,) = json.loads(out.getvalue())["results"]
    assert result["fitted"] == pytest.approx(0.3, abs=0.02)
    assert result["mean"] == pytest.approx(0.3, abs=0.2)
    made = CalibratedMap.load(tmp_path / "confidence.json")
    assert made("instruct", 0.0) == pytest.approx(0.6)
    assert made("instruct", 1.0) < 0.1
