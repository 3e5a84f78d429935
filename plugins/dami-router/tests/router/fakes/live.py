"""A live server as the router sees it: `/info` describes the pair, and any `dami:λ` is answered."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes.upstream import Call, Script, Upstream, chat, send


class FakeLive(Upstream):
    """Answers chats, and TGI's own routes, with the model that it was asked for as text."""

    def __init__(self, script: Script | None = None, **described: Any) -> None:
        super().__init__(script or _echo)
        self.described = {
            "instruct": {"name": "org/Instruct"}, "thinking": {"name": "org/Thinking"}, "path": "uniform",
            "opens_think_from": None, "capabilities": {"log_probs": True, "prompt_log_probs": True}, **described,
        }  # fmt: skip

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if call.path == "/info":
            info = {"model_id": "org/Instruct + org/Thinking", "max_total_tokens": 512, "live": self.described}
            await send(writer, 200, info)
        else:
            await super().get(call, writer)


async def _echo(call: Call, writer: asyncio.StreamWriter) -> None:
    model = call.json["model"]
    await send(writer, 200, chat(model) if call.path.startswith("/v1/") else {"generated_text": model})
