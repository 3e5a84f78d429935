"""What the server answers: the engine's own answers, at each request's λ, in every form that clients know."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes.world import Client
from openai import NotFoundError, OpenAI

from dami_merge.live import Engine, Generation

CHAIN = "3+7-2>5="
CHAINS = [
    f"{a}+{b}-{c}>{d}=" for a, b, c, d in zip("1234567890", "9753124680", "1122334455", "9080706050", strict=True)
]
Message = dict[str, Any]


@pytest.fixture(scope="module")
def openai(server: Client) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def expected(engine: Engine, text: str, lambda_: float, tokens: int = 160) -> tuple[str, int]:
    assert engine.texts is not None
    ids = engine.texts.encode_chat(user(text), lambda_)
    (done,) = engine.complete([Generation(ids, lambda_, max_new_tokens=tokens)])
    return done.text, len(done.tokens)


@pytest.mark.parametrize("lambda_", [0.0, 0.37, 0.6, 1.0])
def test_an_unchanged_openai_client_gets_the_engine_s_answer(openai: OpenAI, alone: Engine, lambda_: float) -> None:
    """`dami:λ` is answered as the engine alone answers at λ, with usage and finish reason."""
    text, count = expected(alone, CHAIN, lambda_)
    done = openai.chat.completions.create(model=f"dami:{lambda_:g}", messages=user(CHAIN))
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (text, "stop")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(CHAIN) + 1, count)
    assert done.model == f"dami:{lambda_:g}"


def test_endpoints_go_by_their_names_and_effort_is_understood(openai: OpenAI, alone: Engine) -> None:
    """The checkpoints' names are λ=0 and λ=1, reasoning_effort chooses λ, and the list of models names them."""
    assert [model.id for model in openai.models.list()] == ["dami", "instruct", "thinking"]
    texts = {lambda_: expected(alone, CHAIN, lambda_)[0] for lambda_ in (0.0, 0.6, 1.0)}
    asked = [("instruct", {}, 0.0), ("thinking", {}, 1.0), ("dami", {"reasoning_effort": "medium"}, 0.6),
             ("dami", {"reasoning_effort": "none"}, 0.0)]  # fmt: skip
    for model, fields, lambda_ in asked:
        done = openai.chat.completions.create(model=model, messages=user(CHAIN), **fields)  # type: ignore[call-overload]
        assert done.choices[0].message.content == texts[lambda_], model
    with pytest.raises(NotFoundError):
        openai.chat.completions.create(model="gpt-4o", messages=user(CHAIN))


def test_many_streams_at_once_each_at_its_own_lambda(openai: OpenAI, alone: Engine) -> None:
    """Forty streams at forty λ share the engine's batch, and each says what the engine alone says."""
    cases = [(CHAINS[i % len(CHAINS)], round(i / 39, 6)) for i in range(40)]

    def stream(case: tuple[str, float]) -> str:
        events = openai.chat.completions.create(model=f"dami:{case[1]:.6f}", messages=user(case[0]), stream=True)
        return "".join(event.choices[0].delta.content or "" for event in events)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(stream, cases))
    wanted = [expected(alone, *case)[0] for case in cases]
    assert answers == wanted
    assert len(set(answers)) > 15
