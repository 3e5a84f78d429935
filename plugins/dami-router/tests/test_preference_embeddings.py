"""An encoder behind an embeddings endpoint, against a real server on the loopback."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from dami_router.errors import MisuseError
from dami_router.estimators.embeddings import EndpointEncoder
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.query import Query
from dami_router.estimators.store import load, save
from dami_router.estimators.training import TrainingSettings, train
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout


class Server(HTTPServer):
    """Embeds a text by whether it is hard, how long it is, and a constant; answers in reverse order."""

    answer: object = None
    status = 200
    keys: list[str | None] = []  # noqa: RUF012


class Handler(BaseHTTPRequestHandler):
    """One request of the OpenAI form."""

    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.keys.append(self.headers.get("authorization"))
        rows = [
            {"index": i, "embedding": [2.0 * ("hard" in text), len(text) / 100, 1.0]}
            for i, text in enumerate(asked["input"])
        ]
        answer = self.server.answer or {"data": rows[::-1], "model": asked["model"]}
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in a thread, for one test."""
    made = Server(("127.0.0.1", 0), Handler)
    made.keys = []
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_training_and_estimating_on_embeddings(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on served embeddings, saved without the address, loaded with one, it finds what is hard."""
    monkeypatch.setenv("DAMI_EMBEDDINGS_KEY", "s3cret")
    rows = [
        Rollout(f"q{i}", f"{'hard' if i % 2 else 'easy'} {i}", x, float(x == 1 or not i % 2), int(5 + 50 * x))
        for i in range(80)
        for x in (0.0, 1.0)
    ]
    made = train(grid_of(rows), TrainingSettings(knots=2), encoder=EndpointEncoder(address(server), "tiny"))
    save(made, tmp_path / "est")
    assert "127.0.0.1" not in (tmp_path / "est" / "estimator.json").read_text()
    with pytest.raises(MisuseError, match="the address of that model's server is not set"):
        load(tmp_path / "est")
    again = load(tmp_path / "est", embeddings_url=address(server))
    assert asyncio.run(again.estimate(Query("hard one"))).lambda_ == 1.0
    assert asyncio.run(again.estimate(Query("easy one"))).lambda_ == 0.0
    assert set(server.keys) == {"Bearer s3cret"}


def test_vectors_come_in_the_order_of_the_texts(server: Server) -> None:
    """Whatever order the server answers in, rows belong to their texts and have unit length."""
    rows = EndpointEncoder(address(server), "tiny").encode(["hard", "easy"] * 70)
    assert rows.shape == (140, 3)
    assert (rows[::2, 0] > 0.5).all()
    assert (rows[1::2, 0] == 0).all()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(140))


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "no"},
        {"data": []},
        {"data": [{"index": 0, "embedding": "x"}]},
        {"data": [{"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 1, "embedding": [1.0, 2.0, 3.0]}]},
        {"data": [{"index": 0, "embedding": [1.0, 2.0, 1e999]}]},
        {"data": [{"index": 0, "embedding": [1.0, 2.0, 3.0]}, {"index": None, "embedding": []}]},
    ],
)
def test_a_wrong_answer_leaves_nothing_to_say(server: Server, answer: object) -> None:
    """An answer that is not one vector of the right length for each text is an EstimationError."""
    server.answer = answer
    with pytest.raises(EstimationError, match="embeddings"):
        EndpointEncoder(address(server), "tiny", 3).encode(["a"])


def test_a_failing_or_absent_server_leaves_nothing_to_say(server: Server) -> None:
    """HTTP 500 and a closed port are EstimationErrors, so that the next estimator in the chain is asked."""
    server.status = 500
    with pytest.raises(EstimationError, match="500"):
        EndpointEncoder(address(server), "tiny", 3).encode(["a"])
    with pytest.raises(EstimationError, match="failed: "):
        EndpointEncoder("http://127.0.0.1:1/v1", "tiny", 3).encode(["a"])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:80", ""])
def test_only_http_addresses_are_taken(url: str) -> None:
    """Any other scheme, or none, is refused before anything is read."""
    with pytest.raises(MisuseError, match="expected an address"):
        EndpointEncoder(url, "tiny")
