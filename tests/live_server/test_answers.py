"""What the server answers: the engine's own answers, at each request's λ, in every form that clients know."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes.world import Client
from huggingface_hub import InferenceClient
from openai import BadRequestError, NotFoundError, OpenAI

from dami_merge.live import Engine, Generation

CHAIN = "3+7-2>5="
PRESETS = [f"dami:{effort}" for effort in ("none", "minimal", "low", "medium", "high")]
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
    assert [model.id for model in openai.models.list()] == ["dami", *PRESETS, "instruct", "thinking"]
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


def test_log_probs_are_the_engine_s(openai: OpenAI, alone: Engine) -> None:
    """A chat's `logprobs` have every token, the end of text included, with its likeliest alternatives."""
    assert alone.texts is not None
    ids = alone.texts.encode_chat(user(CHAIN), 0.3)
    (wanted,) = alone.complete([Generation(ids, 0.3, max_new_tokens=9, log_probs=True, top_log_probs=3)])
    done = openai.chat.completions.create(
        model="dami:0.3", messages=user(CHAIN), max_tokens=9, logprobs=True, top_logprobs=3
    )
    assert done.choices[0].logprobs is not None
    found = done.choices[0].logprobs.content or []
    assert [entry.logprob for entry in found] == pytest.approx(wanted.log_probs, abs=1e-4)
    assert [[top.logprob for top in entry.top_logprobs] for entry in found] == [
        pytest.approx([p for _, p in tops], abs=1e-4) for tops in wanted.top
    ]
    assert "".join(bytes(entry.bytes or []).decode() for entry in found).removesuffix("<eos>") == wanted.text


def test_streamed_log_probs_usage_and_finish(openai: OpenAI) -> None:
    """A stream tells the role, each token's log-probability, a finish reason, and its usage where asked."""
    fields = {"model": "dami:0.6", "messages": user(CHAIN), "logprobs": True, "max_tokens": 7}
    whole = openai.chat.completions.create(**fields)  # type: ignore[call-overload]
    *events, last = openai.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    assert [e.choices[0].delta.role for e in events] == ["assistant"] + [None] * (len(events) - 1)
    assert "".join(e.choices[0].delta.content or "" for e in events) == whole.choices[0].message.content
    told = [entry.logprob for e in events if e.choices[0].logprobs for entry in e.choices[0].logprobs.content]
    assert told == pytest.approx([entry.logprob for entry in whole.choices[0].logprobs.content], abs=1e-4)
    assert [e.choices[0].finish_reason for e in events][-1] == "length"
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_prompt_s_log_probs_in_both_of_vllm_s_forms(server: Client, openai: OpenAI, alone: Engine) -> None:
    """`prompt_logprobs: N`, and `echo` with `max_tokens: 0`: what the engine gives the prompt's own tokens."""
    ids = [1, 8, 15, 12, 19, 5, 2]
    (wanted,) = alone.complete([Generation(ids, 0.7, max_new_tokens=1, prompt_log_probs=2)])
    scores = [p.log_prob for p in wanted.prompt_log_probs or ()]
    body = {"model": "dami:0.7", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 2}
    (choice,) = server.post("/v1/completions", body).json["choices"]
    assert choice["prompt_logprobs"][0] is None
    found = choice["prompt_logprobs"][1:]
    assert [e[str(i)]["logprob"] for i, e in zip(ids[1:], found, strict=True)] == pytest.approx(scores[1:], abs=1e-4)
    assert all(sorted(v["rank"] for v in entry.values() if v["rank"]) == [1, 2] for entry in found)
    echoed = openai.completions.create(model="dami:0.7", prompt=ids, echo=True, max_tokens=0, logprobs=0)
    assert echoed.choices[0].logprobs is not None
    assert echoed.choices[0].logprobs.token_logprobs == [None, *(pytest.approx(s, abs=1e-4) for s in scores[1:])]
    assert echoed.choices[0].text == "<bos>3+7=0<eos>"
    assert echoed.choices[0].logprobs.text_offset == [0, 5, 6, 7, 8, 9, 10]
    assert echoed.usage is not None
    assert echoed.usage.completion_tokens == 0
    chat = server.post("/v1/chat/completions", {"model": "dami:0", "messages": user("1+1="), "prompt_logprobs": 0}).json
    assert [list(entry) for entry in chat["prompt_logprobs"][1:]] == [["6"], ["15"], ["6"], ["19"]]


def test_several_prompts_and_several_answers(openai: OpenAI, alone: Engine) -> None:
    """Choices come in the order of the prompts, `n` each; usage counts a prompt once; seeded draws repeat."""
    prompts = ["<bos>" + chain for chain in CHAINS[:3]]
    fields: Message = {"model": "dami:0.5", "prompt": prompts, "n": 2, "max_tokens": 30}
    done = openai.completions.create(**fields)
    wanted = [expected(alone, chain, 0.5, 30) for chain in CHAINS[:3] for _ in range(2)]
    assert [choice.text for choice in done.choices] == [text for text, _ in wanted]
    assert [choice.index for choice in done.choices] == list(range(6))
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3 * 9, sum(n for _, n in wanted))
    drawn = [[c.text for c in openai.completions.create(**fields, temperature=2, seed=7).choices] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_stop_texts_end_an_answer_before_them(openai: OpenAI, alone: Engine) -> None:
    """A stop text and what follows it are not shown, in a stream neither, and the reason is `stop`."""
    text, _ = expected(alone, CHAIN, 0.6)
    before = text.partition(";")[0]
    fields: Message = {"model": "dami:0.6", "messages": user(CHAIN), "stop": [";", "never"]}
    done = openai.chat.completions.create(**fields)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (before, "stop")
    events = openai.chat.completions.create(**fields, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events) == before


def test_tgi_s_client_gets_details_and_streams(server: Client, alone: Engine) -> None:
    """huggingface_hub's text_generation works against the server's root, with details, prefill and streaming."""
    hub = InferenceClient(server.url)
    (wanted,) = alone.complete([Generation([1, 8, 15, 12, 19], 0.5, prompt_log_probs=0, log_probs=True)])
    done = hub.text_generation(
        "<bos>3+7=", details=True, decoder_input_details=True, max_new_tokens=100, top_n_tokens=2
    )
    assert (done.generated_text, done.details.finish_reason) == (wanted.text, "eos_token")
    assert [token.logprob for token in done.details.tokens] == pytest.approx(list(wanted.log_probs), abs=1e-4)
    assert [token.logprob for token in done.details.prefill[1:]] == pytest.approx(
        [p.log_prob for p in (wanted.prompt_log_probs or ())[1:]], abs=1e-4
    )
    assert len(done.details.top_tokens or []) == len(wanted.tokens)
    events = list(hub.text_generation("<bos>3+7=", stream=True, details=True, max_new_tokens=100))
    assert "".join(event.token.text for event in events if not event.token.special) == wanted.text
    assert (events[-1].generated_text, events[-1].token.special) == (wanted.text, True)
    chat = hub.chat_completion([{"role": "user", "content": CHAIN}], model="dami:1")
    assert chat.choices[0].message.content == expected(alone, CHAIN, 1.0)[0]


def test_tgi_s_own_rules(server: Client) -> None:
    """`model` pins λ, `truncate` keeps the end, `return_full_text` and lists at `/` are TGI's; a stop text is cut."""
    wanted = server.post("/generate", {"inputs": "<bos>3+7=", "model": "dami:0", "parameters": {}})
    assert wanted.variant == "dami:0"
    text = wanted.json["generated_text"]
    parameters = {"truncate": 5, "return_full_text": True}
    cut = server.post("/", {"inputs": "9-9<bos>3+7=", "model": "dami:0", "parameters": parameters}).json
    assert cut == [{"generated_text": "9-9<bos>3+7=" + text}]
    stopped = {"inputs": "<bos>" + CHAIN, "model": "dami:1", "parameters": {"stop": [";"], "details": True}}
    done = server.post("/generate", stopped).json
    assert ";" not in done["generated_text"]
    assert done["details"]["finish_reason"] == "stop_sequence"
    events = server.post("/generate_stream", stopped).body.decode().split("\n\n")
    told = [json.loads(event.removeprefix("data:")) for event in events if event]
    assert "".join(t["token"]["text"] for t in told if not t["token"]["special"]) == done["generated_text"]
    assert told[-1]["generated_text"] == done["generated_text"]
    drawn: list[str] = []
    while len(drawn) < 500 and len(set(drawn)) < 2:
        sampled = server.post("/generate", {"inputs": "<bos>9-1<6+4=", "model": "dami:0"})
        drawn.append(sampled.json["generated_text"])
    assert len(set(drawn)) == 2


def test_tokenize_says_what_a_prompt_is(server: Client) -> None:
    """A text's tokens, and a conversation's as the chat template has them, in vLLM's form."""
    text = server.post("/tokenize", {"prompt": "<bos>3+7=", "return_token_strs": True}).json
    assert text == {"count": 5, "max_model_len": 256, "tokens": [1, 8, 15, 12, 19],
                    "token_strs": ["<bos>", "3", "+", "7", "="]}  # fmt: skip
    assert server.post("/tokenize", {"messages": user("3+7=")}).json["tokens"] == text["tokens"]
    assert server.post("/tokenize", b"[").status == 400


def test_refusals_are_openai_s_own_errors(openai: OpenAI) -> None:
    """What would change the answer and cannot be done is named; the client raises its own BadRequestError."""
    refused: list[Message] = [
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 3}}, {"presence_penalty": 2.5}, {"n": 1000}, {"temperature": -1}, {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 99}, {"stop": [""]}, {"max_tokens": 0}, {"max_tokens": True},
    ]  # fmt: skip
    for fields in refused:
        with pytest.raises(BadRequestError) as caught:
            openai.chat.completions.create(model="dami", messages=user(CHAIN), **fields)
        assert any(name in caught.value.message for name in (*fields, "answers")), fields
    neutral: Message = {"tools": [], "response_format": {"type": "text"}, "presence_penalty": 0, "user": "me", "n": 1}
    assert openai.chat.completions.create(model="dami:0", messages=user("1+1="), **neutral).choices


def test_whatever_is_said_about_lambda_is_told(server: Client) -> None:
    """Headers, /v1/route, /info and /metrics tell λ, the pair and the engine; labels stay bounded."""
    answer = server.chat("1+1=", model="dami:0.123456")
    assert (answer.headers["x-dami-lambda"], answer.variant) == ("0.123456", "dami:0.123456")
    assert server.post("/v1/route", {"messages": user("1"), "reasoning_effort": "low"}).json["variant"] == "dami:0.3"
    info = server.get("/info").json
    assert [info["live"][side]["name"] for side in ("instruct", "thinking")] == ["instruct", "thinking"]
    assert len(info["live"]["thinking"]["files"]["model.safetensors"]) == 64
    assert info["max_total_tokens"] == 256
    assert server.metric("dami_live_rows") == 0
    assert math.isclose(server.metric('dami_up{url="in-process",variant="live"}'), 1.0)
