"""`/v1/embeddings` of `dami live`: a prompt's last hidden state, at one λ and for one prefill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes.world import Client
from transformers import AutoModel

from dami_merge.lab import draw_queries
from dami_merge.lab.tokenizer import BOS, encode
from dami_merge.live import Engine, Generation
from dami_router.errors import MisuseError

CHAIN = "3+7-2>5="


def state(client: Client, **body: object) -> np.ndarray:
    reply = client.post("/v1/embeddings", {"messages": [{"role": "user", "content": CHAIN}], **body})
    assert reply.status == 200, reply.json
    (found,) = reply.json["data"]
    assert (reply.json["object"], found["object"], found["index"]) == ("list", "embedding", 0)
    return np.array(found["embedding"])


def test_the_state_is_that_of_transformers(pair: tuple[str, str], alone: Engine) -> None:
    """At λ = 0 and 1, the engine gives what Transformers computes for the last token of the prompt."""
    ids = encode(BOS + CHAIN)
    for lambda_, folder in zip((0.0, 1.0), pair, strict=True):
        (found,) = alone.complete([Generation(ids, lambda_, max_new_tokens=1, hidden_state=True)])
        with torch.inference_mode():
            model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
            expected = model(torch.tensor([ids])).last_hidden_state[0, -1].float().numpy()
        assert np.array(found.hidden_state) == pytest.approx(expected, abs=0.15, rel=0.05)


def test_a_state_does_not_depend_on_the_batch(pair: tuple[str, str]) -> None:
    """Read alone, among others, or in several steps, a prompt has one state; the answers beside it do not change."""
    engine = Engine.load(*pair, dtype="float32", mode="mixed", prefill=7)
    prompts = [encode(BOS + query.text) for query in draw_queries("test", 6)]
    wanted = [Generation(prompt, 0.0, max_new_tokens=1, hidden_state=True) for prompt in prompts]
    plain = [Generation(prompt, 0.5, max_new_tokens=8) for prompt in prompts]
    together = engine.complete([*wanted, *plain])
    for generation, answer in zip([*wanted, *plain], together, strict=True):
        (own,) = engine.complete([generation])
        assert answer.text == own.text
        assert (answer.hidden_state is None) == (not generation.hidden_state)
        if own.hidden_state:
            assert np.array(answer.hidden_state) == pytest.approx(np.array(own.hidden_state), abs=1e-3)


def test_a_conversation_and_its_text_have_one_state(server: Client) -> None:
    """`messages` go through the template; λ is pinned as for answers, 0 without a pin; the vector has unit length."""
    own = state(server, model="dami:0")
    assert np.linalg.norm(own) == pytest.approx(1.0)
    assert state(server, model="dami") == pytest.approx(own)
    assert np.abs(state(server, model="dami:1") - own).max() > 0.01
    ids = encode(BOS + CHAIN)
    reply = server.post("/v1/embeddings", {"model": "dami:0", "input": [ids, ids[:-1]]}).json
    assert [one["index"] for one in reply["data"]] == [0, 1]
    assert np.array(reply["data"][0]["embedding"]) == pytest.approx(own, abs=0.02)
    assert reply["usage"] == {"prompt_tokens": 2 * len(ids) - 1, "total_tokens": 2 * len(ids) - 1}
    assert server.get("/info").json["live"]["capabilities"]["hidden_states"] is True


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "`input` must be"),
        ({"input": []}, "`input` must be"),
        ({"input": ["x"] * 200}, "at most 128 inputs"),
        ({"input": "x", "model": "thinking"}, "`model` must be `dami:0`"),
        ({"input": "x", "dimensions": 8}, "`dimensions`"),
        ({"input": "x", "encoding_format": "base64"}, "`encoding_format` is not supported"),
        ({"messages": []}, "`messages` must be"),
        ({"input": [10**9]}, "token ids outside"),
        ([], "not a JSON object"),
    ],
)
def test_bad_requests_are_refused(server: Client, body: object, says: str) -> None:
    """Unknown fields, other models and empty inputs are a 400 with the reason."""
    reply = server.post("/v1/embeddings", body)
    assert reply.status == 400
    assert says in reply.json["error"]["message"]


def test_a_flag_is_a_flag() -> None:
    """Anything but True or False is refused."""
    with pytest.raises(MisuseError, match="hidden_state"):
        Generation([1], hidden_state=1)  # type: ignore[arg-type]
