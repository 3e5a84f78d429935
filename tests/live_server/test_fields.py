"""Which fields of a request are used, harmless or refused by name, and what clients send by default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.world import Client
from huggingface_hub import InferenceClient
from openai import OpenAI
from support.live_servers import served

from dami_merge.lab import copy_pair
from dami_merge.live import Engine, Generation
from dami_merge.live_server import known_fields
from dami_merge.live_server.fields import Fields
from dami_merge.live_server.launch import configure
from dami_router.config.router_yml import load_section

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "dami:0.4", "messages": [{"role": "user", "content": "1+1="}], "max_tokens": 2},
    TEXT: {"model": "dami:0.4", "prompt": "<bos>1+1=", "max_tokens": 2},
    "/generate": {"model": "dami:0.4", "inputs": "<bos>1+1=", "parameters": {"max_new_tokens": 2}},
}
# What changes an answer in vLLM, TGI, SGLang, llama.cpp or OpenAI itself, and is not done here.
REFUSED: dict[str, Any] = {
    "adapter_id": "mine", "allowed_token_ids": [3], "audio": {"voice": "x"}, "bad_words": ["a"], "best_of": 2,
    "chat_template": "x", "documents": [{"text": "x"}], "do_sample": True, "early_stopping": True,
    "enable_thinking": False, "eta_cutoff": 0.1, "function_call": {"name": "f"}, "functions": [{"name": "f"}],
    "grammar": "root ::= x", "guided_choice": ["a"], "guided_json": {}, "guided_regex": "a+",
    "include_reasoning": False, "include_stop_str_in_output": True, "json_schema": {"type": "object"},
    "kv_transfer_params": {"a": 1}, "lambda": 0.5, "length_penalty": 2.0, "logit_bias": {"5": 3},
    "logits_processors": ["a.b"], "lora_path": "x", "max_token": 3, "max_tokens_to_sample": 3, "min_tokens": 5,
    "mirostat": 2, "modalities": ["text", "audio"], "no_repeat_ngram_size": 2, "num_beams": 4, "regex": "a+",
    "repetition_detection": {"max": 3}, "response_format": {"type": "json_object"}, "return_token_ids": True,
    "return_tokens_as_token_ids": True, "stop_token_ids": [4], "structured_outputs": {"regex": "a"},
    "thinking": {"type": "enabled"}, "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}], "truncate_prompt_tokens": 3, "typo": 1,
    "use_beam_search": True, "verbosity": "low", "vllm_xargs": {"lambda": 0.5}, "web_search_options": {},
}  # fmt: skip
NEUTRAL: dict[str, Any] = {
    "bad_words": [], "best_of": 1, "cache_salt": "x", "frequency_penalty": 0, "include_stop_str_in_output": False,
    "length_penalty": 1.0, "logit_bias": {}, "metadata": {"a": "b"}, "min_p": 0, "min_tokens": 0, "n": 1,
    "presence_penalty": 0.0, "priority": 3, "reasoning_effort": "low", "repetition_penalty": 1, "request_id": "r",
    "response_format": {"type": "text"}, "safety_identifier": "x", "seed": 3, "service_tier": "auto",
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "stop": [], "stop_token_ids": [],
    "store": False, "structured_outputs": None, "suffix": None, "tools": None, "top_k": -1, "top_p": 1,
    "typical_p": 1.0, "use_beam_search": False, "user": "me",
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_an_answer_is_refused_by_name(server: Client, path: str, name: str) -> None:
    """400, and the message names the field: nothing that a client asks for is dropped without a word."""
    answer = server.post(path, {**BODIES[path], name: REFUSED[name]})
    assert answer.status == 400, answer.body
    assert f"`{name}`" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [(CHAT, "echo", True), (CHAT, "add_special_tokens", True), (CHAT, "prompt", "1"), (TEXT, "suffix", "x"),
     (TEXT, "messages", []), (TEXT, "max_completion_tokens", 3)],
)  # fmt: skip
def test_a_field_of_the_other_route_is_refused(server: Client, path: str, name: str, value: object) -> None:
    """A field that only the other route knows would be ignored, so it is refused."""
    assert f"`{name}`" in server.post(path, {**BODIES[path], name: value}).json["error"]["message"]


@pytest.mark.parametrize("name", [*REFUSED, "best_of", "watermark", "num_return_sequences", "stop_sequences"])
def test_tgi_s_routes_refuse_by_name_too(server: Client, name: str) -> None:
    """In `parameters` and beside them: 422, in TGI's own form. Only `do_sample` is a parameter there."""
    value = {**REFUSED, "watermark": True, "num_return_sequences": 2, "stop_sequences": ["a"]}[name]
    for fields in ({"parameters": {name: value}}, {name: value}):
        if fields != {"parameters": {"do_sample": True}}:
            answer = server.post("/generate", {**BODIES["/generate"], **fields})
            assert (answer.status, f"`{name}`" in answer.json["error"]) == (422, True), answer.body


def test_a_near_miss_is_suggested(server: Client) -> None:
    """A mistyped name is told with the one that was meant."""
    message = server.post(CHAT, {**BODIES[CHAT], "temprature": 1}).json["error"]["message"]
    assert message == "`temprature` is not a field of this API; did you mean `temperature`?"


def test_a_lambda_in_the_body_is_told_to_go_into_the_model_s_name(server: Client) -> None:
    """A field `lambda` is refused with the way that λ is asked for."""
    message = server.post(CHAT, {**BODIES[CHAT], "lambda": 0.3}).json["error"]["message"]
    assert message == "`lambda` is not a field of this API; pin λ with the model's name instead, as in `dami:0.37`"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_asks_for_nothing_changes_nothing(server: Client, path: str) -> None:
    """Accounting fields, and supported or unsupported ones at their neutral values, leave the answer as it is."""
    plain = server.post(path, BODIES[path]).json["choices"]
    assert server.post(path, {**BODIES[path], **NEUTRAL}).json["choices"] == plain


def test_no_field_is_in_two_tables() -> None:
    """Each known field has one meaning on its route."""
    tables = [known_fields.CHAT, known_fields.COMPLETION, known_fields.TGI_BODY, known_fields.TGI_PARAMETERS,
              known_fields.TOKENIZE, known_fields.STREAM_OPTIONS]  # fmt: skip
    for known in tables:
        assert len(known.used | known.harmless | set(known.neutral)) == sum(
            map(len, (known.used, known.harmless, known.neutral))
        )


def test_true_is_not_one() -> None:
    """A neutral value is compared with its type: `best_of: true` is a mistake, `best_of: 1.0` is none."""
    Fields({"best_of": 1.0}).accept(known_fields.CHAT)
    with pytest.raises(Exception, match="`best_of`"):
        Fields({"best_of": True}).accept(known_fields.CHAT)


# What these clients put into a request without being told to (LangChain 1, LiteLLM 1.9x, text-generation 0.7).
CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "langchain ChatOpenAI": (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
    "langchain OpenAI": (TEXT, {"prompt": ["<bos>1+1="], "temperature": 0.7, "n": 1, "top_p": 1, "max_tokens": 8,
                                "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "seed": None}),
    "litellm chat": (CHAT, {"stream": False, "temperature": 0.2, "user": "key", "metadata": {"a": "b"}}),
    "litellm tgi": ("/", {"inputs": "<bos>1+1=", "parameters": {"details": True, "return_full_text": False},
                          "stream": False}),
    "openwebui": (CHAT, {"stream": True, "stream_options": {"include_usage": True}, "tool_choice": None}),
    "text-generation": ("/", {"inputs": "<bos>1+1=", "stream": False, "parameters": {
        "do_sample": False, "max_new_tokens": 8, "repetition_penalty": None, "frequency_penalty": None,
        "return_full_text": False, "stop": [], "seed": None, "temperature": None, "top_k": None, "top_p": None,
        "truncate": None, "typical_p": None, "best_of": None, "watermark": False, "details": True,
        "decoder_input_details": False, "top_n_tokens": None, "grammar": None}}),
    "tgi chat": (CHAT, {"frequency_penalty": None, "logit_bias": None, "logprobs": False, "n": 1, "tool_prompt": "…",
                        "tool_choice": "auto", "tools": None, "seed": 2, "stop": None, "presence_penalty": None}),
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_work_with_what_they_send_by_default(server: Client, client: str) -> None:
    """The fields that common clients add by themselves are understood."""
    path, fields = CLIENTS[client]
    answer = server.post(path, {**BODIES.get(path, {}), **fields})
    assert answer.status == 200, answer.body


def test_huggingface_hub_with_langchain_s_settings(server: Client) -> None:
    """LangChain's HuggingFaceEndpoint sets typical_p, top_p and more on each call: all of them are done."""
    text = InferenceClient(server.url).text_generation(
        "<bos>1+1=", max_new_tokens=8, top_k=10, top_p=0.95, typical_p=0.95, temperature=0.8, return_full_text=False,
        stop=[], seed=1, do_sample=False, watermark=False, repetition_penalty=1.03,
    )  # fmt: skip
    assert isinstance(text, str)


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0}, {"temperature": 2.0, "frequency_penalty": 2.0}, {"temperature": 2.0, "min_p": 0.01},
    {"temperature": 2.0, "typical_p": 0.5}, {"temperature": 2.0, "presence_penalty": 2.0, "top_k": 9},
]  # fmt: skip


@pytest.mark.parametrize("asked", SETTINGS, ids=lambda asked: "+".join(asked))
def test_settings_reach_the_engine_in_every_form(server: Client, alone: Engine, asked: dict[str, Any]) -> None:
    """By the openai client, as vLLM's fields and as TGI's parameters: the engine's answer with the same settings."""
    prompt = alone._tokens("<bos>3+7-2>5=")
    (wanted,) = alone.complete([Generation(prompt, 0.6, max_new_tokens=24, seed=3, **asked)])
    (plain,) = alone.complete(
        [Generation(prompt, 0.6, max_new_tokens=24, seed=3, temperature=asked.get("temperature", 0.0))]
    )
    assert wanted.tokens != plain.tokens
    fields = {"model": "dami:0.6", "max_tokens": 24, "seed": 3}
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        done = client.completions.create(**fields, prompt="<bos>3+7-2>5=", extra_body=asked)  # type: ignore[call-overload]
    assert done.choices[0].text == wanted.text
    chat = server.post(CHAT, {**fields, **asked, "messages": [{"role": "user", "content": "3+7-2>5="}]})
    assert chat.json["choices"][0]["message"]["content"] == wanted.text
    parameters = {"max_new_tokens": 24, "seed": 3, **asked}
    tgi = server.post("/generate", {"inputs": "<bos>3+7-2>5=", "model": "dami:0.6", "parameters": parameters})
    assert tgi.json["generated_text"] == wanted.text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("repetition_penalty", 0, "must be above 0"), ("repetition_penalty", -1, "must be from 0 to 100, found -1"),
        ("repetition_penalty", "x", "must be a number"), ("presence_penalty", 3, "must be from -2 to 2, found 3"),
        ("frequency_penalty", -2.5, "must be from -2 to 2, found -2.5"),
        ("min_p", 1.5, "must be from 0 to 1, found 1.5"),
        ("typical_p", True, "must be a number"),
    ],
)  # fmt: skip
def test_settings_have_bounds(server: Client, name: str, value: object, message: str) -> None:
    """A value outside them is refused on every route, with the field, both bounds and what was found."""
    for path in (CHAT, TEXT):
        refused = server.post(path, {**BODIES[path], name: value})
        assert (refused.status, f"`{name}` {message}" in refused.json["error"]["message"]) == (400, True)
    refused = server.post("/generate", {**BODIES["/generate"], "parameters": {name: value}})
    assert (refused.status, f"`{name}` {message}" in refused.json["error"]) == (422, True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 1e12}, "`max_tokens` must be from 1 to 1073741824, found 1000000000000.0"),
        ({"max_tokens": 0}, "`max_tokens` must be from 1 to 1073741824, found 0"),
        ({"n": 129}, "`n` must be from 1 to 128, found 129"),
        ({"n": 0}, "`n` must be from 1 to 128, found 0"),
        ({"temperature": 101}, "`temperature` must be from 0 to 100, found 101"),
        ({"top_p": 1.0000001}, "`top_p` must be from 0 to 1, found 1.0000001"),
        ({"top_k": -2}, "`top_k` must be from -1 to 1073741824, found -2"),
        ({"stream_options": {"continuous_usage_stats": True}}, "`continuous_usage_stats` is not supported here"),
        ({"stream_options": [1]}, "`stream_options` must be an object"),
    ],
)
def test_bounds_are_told_with_both_ends(server: Client, fields: dict[str, Any], message: str) -> None:
    """Plain numbers, what was found, and no rounding that hides the mistake."""
    assert message in server.post(CHAT, {**BODIES[CHAT], **fields}).json["error"]["message"]


TOOLS = """{%- for m in messages -%}{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}
{{ c.function.arguments.items() | list | length }}+{{ c.function.arguments.a or 0 }}=
{%- endfor -%}{%- endif -%}{%- endfor -%}"""


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A pair with settings in generation_config.json, and a template that reads tool calls."""
    folder = tmp_path_factory.mktemp("settled")
    copy_pair(folder)
    sides = {"instruct": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "min_p": 0.3, "num_beams": 1},
             "thinking": {"do_sample": True, "temperature": 2.0, "min_p": 1.0, "top_k": -1, "top_p": 7,
                          "repetition_penalty": 1.0, "strange": 5, "max_length": 20}}  # fmt: skip
    for side, values in sides.items():
        (folder / side / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **values}))
    (folder / "instruct" / "chat_template.jinja").write_text(TOOLS)
    return Engine.load(str(folder / "instruct"), str(folder / "thinking"), mode="mixed", max_rows=8)


@pytest.fixture(scope="module")
def other(loop: Loop, settled: Engine) -> Iterator[Client]:
    """A server of that pair."""
    with served(loop, settled, configure(settled, load_section(None))) as client:
        yield client


def test_what_is_left_out_of_generation_config_is_told_at_start(settled: Engine) -> None:
    """Unsupported settings and impossible values are warnings, each with the file's side and the setting's name."""
    told = "\n".join(settled.warnings)
    assert "generation_config.json sets `no_repeat_ngram_size`, which `dami live` does not support and ignores" in told
    assert "sets `strange`, which" in told
    assert "top_p: expected a number above 0 and at most 1, found 7; the setting is ignored" in told
    assert "num_beams" not in told
    assert "max_length" not in told


def test_settings_of_generation_config_are_used(other: Client, alone: Engine) -> None:
    """The penalty of a greedy side, and min_p of a sampling one, hold where a request does not say otherwise."""
    prompt = alone._tokens("<bos>3+7-2>5=")
    penalised, plain = alone.complete(
        [Generation(prompt, 0.0, max_new_tokens=24, repetition_penalty=p, ignore_eos=True) for p in (1.5, 1.0)]
    )
    body = {"model": "dami:0", "prompt": "<bos>3+7-2>5=", "max_tokens": 24, "ignore_eos": True}
    assert penalised.tokens != plain.tokens
    assert other.post(TEXT, body).json["choices"][0]["text"] == penalised.text
    assert other.post(TEXT, {**body, "repetition_penalty": 1}).json["choices"][0]["text"] == plain.text
    tgi = {"inputs": "<bos>3+7-2>5=", "model": "dami:0", "parameters": {"max_new_tokens": 24}}
    short = alone.complete([Generation(prompt, 0.0, max_new_tokens=24, repetition_penalty=1.5)])[0]
    assert other.post("/generate", tgi).json["generated_text"] == short.text
    # At temperature 2, min_p 1 leaves the likeliest token only.
    greedy = alone.complete([Generation(prompt, 1.0, max_new_tokens=24)])[0].text
    thinking = {"model": "dami:1", "prompt": "<bos>3+7-2>5=", "max_tokens": 24}
    assert [other.post(TEXT, thinking).json["choices"][0]["text"] for _ in range(3)] == [greedy] * 3


def test_tool_calls_of_the_history_reach_the_template_as_objects(other: Client) -> None:
    """Clients send `arguments` as text; templates read an object. What is no object is refused."""

    def tokens(arguments: object) -> Any:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "1+1="},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "2"},
        ]
        body = {"model": "dami:0", "messages": messages, "return_token_strs": True}
        return other.post("/tokenize", body)

    for arguments, text in ((json.dumps({"a": 7, "b": "2"}), "2+7="), ({"a": 7}, "1+7="), ("", "0+0="), (None, "0+0=")):
        assert "".join(tokens(arguments).json["token_strs"]) == text
    for bad in ("{", "[1]", "3", 5, ["a"]):
        assert "`arguments` of a tool call" in tokens(bad).json["error"]["message"]
    for calls in ("x", [1], [{"function": "f"}]):
        messages = [{"role": "assistant", "tool_calls": calls}]
        assert "`tool_calls`" in other.post(CHAT, {"model": "dami:0", "messages": messages}).json["error"]["message"]
