"""TGI and vLLM over the lab's real models: their routes, their refusals, and the model's own log-probabilities.

By TGI 3.3: `/chat_tokenize` takes no special tokens beyond the template's, `/tokenize` and `/generate` add the
tokenizer's own. By vLLM: `/tokenize` of a chat adds none, of a text unless told; `prompt_logprobs` has None for the
first token and one mapping by token id for each other.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_merge.lab.shipped import SHIPPED_PAIR
from dami_merge.lab.tiny_model import one_thread
from dami_merge.lab.tokenizer import BOS, EOS, TOKENS, encode
from dami_merge.lab.variants import load_variant
from fakes.tgi import FakeTgi
from fakes.upstream import Call, Upstream, send

END = encode(EOS)[0]


@dataclass(frozen=True)
class Written:
    """A greedy continuation: ids, the log-probability of each, and of all tokens at each place, likeliest first."""

    ids: list[int]
    logprobs: list[float]
    all: list[list[tuple[int, float]]]
    ended: bool

    @property
    def text(self) -> str:
        return "".join(TOKENS[i] for i in self.ids[: len(self.ids) - self.ended])


class LabModel:
    """One variant of a lab pair, asked for numbers."""

    def __init__(self, lambda_: float, pair: Path = SHIPPED_PAIR) -> None:
        self._model = load_variant(pair, lambda_)

    def logprobs(self, ids: list[int]) -> list[list[float]]:
        """Return, for each token, the log-probabilities of what follows it."""
        import torch

        with one_thread(), torch.inference_mode():
            out = self._model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
        found: list[list[float]] = out.tolist()
        return found

    def of_prompt(self, ids: list[int]) -> list[float | None]:
        """Return the log-probability of each token; nothing precedes the first."""
        rows = self.logprobs(ids)
        return [None, *(rows[i][token] for i, token in enumerate(ids[1:]))]

    def write(self, prompt: list[int], limit: int) -> Written:
        """Continue greedily."""
        ids: list[int] = []
        own: list[float] = []
        every: list[list[tuple[int, float]]] = []
        while len(ids) < limit and END not in ids:
            row = sorted(enumerate(self.logprobs(prompt + ids)[-1]), key=lambda pair: -pair[1])
            ids.append(row[0][0])
            own.append(row[0][1])
            every.append(row)
        return Written(ids, own, every, END in ids)


def templated(messages: list[dict[str, Any]], tail: str = "") -> str:
    """Return what the lab's chat template makes of messages; `tail` stands for a template that says more."""
    last = [m["content"] for m in messages if m["role"] == "user"]
    return BOS + (last[-1] if last else "") + tail


@dataclass
class Habits:
    """What a server was started with, and how it behaves."""

    log_probs: bool = True
    prompt_log_probs: bool = True
    top_n: bool = True
    delay: float = 0.0
    adds_bos: bool = False
    tail: str = ""


class LabTgi(FakeTgi):
    """TGI serving a lab model."""

    def __init__(self, model_id: str, model: LabModel, **habits: Any) -> None:
        super().__init__(model_id)
        self.model, self.habits = model, Habits(**habits)

    async def _generate(self, call: Call, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.habits.delay)
        if call.path == "/tokenize":
            await send(writer, 200, simple(self._ids(call.json["inputs"]), call.json["inputs"]))
        elif call.path == "/chat_tokenize":
            text = templated(call.json["messages"], self.habits.tail)
            await send(writer, 200, {"templated_text": text, "tokenize_response": simple(encode(text), text)})
        else:
            await super()._generate(call, writer)

    def _ids(self, text: str) -> list[int]:
        return encode(BOS + text if self.habits.adds_bos else text)

    async def _native(self, path: str, data: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        parameters = data.get("parameters")
        assert parameters is not None, "without parameters TGI samples"
        prompt = self._ids(data["inputs"])
        written = self.model.write(prompt, parameters.get("max_new_tokens", 100))
        reply: dict[str, Any] = {"generated_text": written.text}
        if parameters.get("details"):
            asked = parameters.get("decoder_input_details") and self.habits.prompt_log_probs
            pairs = zip(prompt, self.model.of_prompt(prompt), strict=True) if asked else []
            reply["details"] = {
                "finish_reason": "eos_token" if written.ended else "length",
                "generated_tokens": len(written.ids),
                "seed": None,
                "prefill": [{"id": i, "text": TOKENS[i], "logprob": p} for i, p in pairs],
                "tokens": [token(i, p) for i, p in zip(written.ids, written.logprobs, strict=True)],
            }
            if n := parameters.get("top_n_tokens"):
                reply["details"]["top_tokens"] = [[token(i, p) for i, p in row[:n]] for row in written.all]
        await send(writer, 200, reply)

    async def _chat(self, path: str, data: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        assert data.get("temperature") == 0 or not data.get("logprobs"), "otherwise TGI samples"
        assert data.get("model") in (None, "tgi"), "any other model is an adapter"
        prompt = encode(templated(data["messages"], self.habits.tail))
        written = self.model.write(prompt, data.get("max_tokens", 100))
        await send(writer, 200, completion(written, data, self.habits))


class LabVllm(Upstream):
    """vLLM serving a lab model under one name."""

    def __init__(self, name: str, model: LabModel, **habits: Any) -> None:
        super().__init__(self._answer_post, models={"object": "list", "data": [{"id": name, "object": "model"}]})
        self.name, self.model, self.habits = name, model, Habits(**habits)

    async def _answer_post(self, call: Call, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.habits.delay)
        data = call.json
        routes = {
            "/v1/chat/completions": self._chat, "/v1/completions": self._completions, "/tokenize": self._tokenize,
        }  # fmt: skip
        if data.get("model") != self.name or call.path not in routes:
            await send(writer, 404, {"error": {"message": "not found", "type": "NotFoundError", "code": 404}})
        elif not self.habits.log_probs and (data.get("logprobs") or "prompt_logprobs" in data):
            await send(writer, 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": "4"}}]})
        else:
            await send(writer, 200, routes[call.path](data))

    def _tokenize(self, data: dict[str, Any]) -> dict[str, Any]:
        if "messages" in data:
            text = templated(data["messages"], self.habits.tail)
        else:
            text = (BOS if self.habits.adds_bos and data.get("add_special_tokens", True) else "") + data["prompt"]
        ids = encode(text)
        return {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}

    def _chat(self, data: dict[str, Any]) -> dict[str, Any]:
        assert data.get("temperature") == 0
        written = self.model.write(encode(templated(data["messages"], self.habits.tail)), data["max_tokens"])
        return completion(written, data, self.habits)

    def _completions(self, data: dict[str, Any]) -> dict[str, Any]:
        prompt = data["prompt"] if isinstance(data["prompt"], list) else encode(data["prompt"])
        written = self.model.write(prompt, data["max_tokens"])
        ended = "stop" if written.ended else "length"
        choice: dict[str, Any] = {"index": 0, "text": written.text, "logprobs": None, "finish_reason": ended}
        if n := data.get("logprobs"):
            names = [TOKENS[i] for i in written.ids]
            top = [{TOKENS[i]: p for i, p in row[:n]} for row in written.all]
            choice["logprobs"] = {"tokens": names, "token_logprobs": written.logprobs, "top_logprobs": top}
        if data.get("prompt_logprobs") is not None and self.habits.prompt_log_probs:
            pairs = list(zip(prompt, self.model.of_prompt(prompt), strict=True))[1:]
            facts = [{str(i): {"logprob": p, "rank": 1, "decoded_token": TOKENS[i]}} for i, p in pairs]
            choice["prompt_logprobs"] = [None, *facts]
        return {"id": "c", "object": "text_completion", "choices": [choice]}


def completion(written: Written, data: dict[str, Any], habits: Habits) -> dict[str, Any]:
    """Return a chat completion as TGI and vLLM have it alike."""
    content = []
    for i, p, row in zip(written.ids, written.logprobs, written.all, strict=True):
        n = (data.get("top_logprobs") or 0) if habits.top_n else 0
        top = [{"token": TOKENS[j], "logprob": q} for j, q in row[:n]]
        content.append({"token": TOKENS[i], "logprob": p, "top_logprobs": top})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": written.text},
        "logprobs": {"content": content} if data.get("logprobs") and habits.log_probs else None,
        "finish_reason": "stop" if written.ended else "length",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": len(written.ids), "total_tokens": 1 + len(written.ids)}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": "x",
        "choices": [choice],
        "usage": usage,
    }


def simple(ids: list[int], text: str) -> list[dict[str, Any]]:
    """Return TGI's SimpleTokens."""
    out, at = [], 0
    for i in ids:
        # A token that the tokenizer added stands nowhere in the text.
        stop = (
            at + len(TOKENS[i]) if text.startswith(TOKENS[i], at) and len(out) >= len(ids) - len(encode(text)) else at
        )
        out.append({"id": i, "text": text[at:stop], "start": at, "stop": stop})
        at = stop
    return out


def token(id: int, logprob: float) -> dict[str, Any]:
    """Return one of TGI's tokens."""
    return {"id": id, "text": TOKENS[id], "logprob": logprob, "special": id == END}


def mean_exp(logprobs: list[float]) -> float:
    """Return exp of the mean."""
    return math.exp(math.fsum(logprobs) / len(logprobs))
