"""The servers that run a variant: image, command line, routes. Versions are the ones that the flags were read at.

vLLM 0.32: `vllm serve --help`; it listens only once the weights are loaded, and answers /health from then on.
TGI 3.3.7: docs/source/reference/launcher.md; its router, and so /health, starts when every shard is ready.
"""

from __future__ import annotations

from typing import Final

from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.version import __version__

__all__ = [
    "CACHE", "HEALTH_PATH", "IMAGES", "LIVE_IMAGE", "PORT", "ROUTER_IMAGE", "VLLM_VERSION", "arguments",
    "reasoning_parser", "vllm_options",
]  # fmt: skip

VLLM_VERSION: Final = "0.32.0"
TGI_VERSION: Final = "3.3.7"
IMAGES: Final = {
    "vllm": f"vllm/vllm-openai:v{VLLM_VERSION}",
    "tgi": f"ghcr.io/huggingface/text-generation-inference:{TGI_VERSION}",
}
ROUTER_IMAGE: Final = f"dami-router:{__version__}"
LIVE_IMAGE: Final = f"dami-live:{__version__}"
CACHE: Final = {"vllm": "/root/.cache/huggingface", "tgi": "/data"}
"""Where an image keeps what it downloads."""
PORT: Final = 8000
HEALTH_PATH: Final = "/health"


def arguments(plan: FleetPlan, server: ServerPlan, fraction: float, *, prefill_log_probs: bool) -> list[str]:
    """Return the words after the image's own command that start a server of a variant."""
    if server.variant is None:
        return _live(plan, fraction)
    if plan.settings.engine == "tgi":
        return _tgi(plan, server, fraction, prefill_log_probs)
    revision = ["--revision", server.source.revision] if server.source.revision else []
    return [server.source.model, *revision, "--port", str(PORT), *vllm_options(plan, server, fraction)]


def vllm_options(plan: FleetPlan, server: ServerPlan, fraction: float, *, named: bool = True) -> list[str]:
    """Return vLLM's options for a variant; without `named`, all but its name, for charts that set it themselves."""
    options = ["--served-model-name", server.model] if named else []
    options += ["--max-model-len", str(plan.context), "--gpu-memory-utilization", f"{fraction:g}"]
    options += ["--tensor-parallel-size", str(plan.fit.gpus)] if plan.fit.gpus > 1 else []
    parser = reasoning_parser(plan, server)
    return [*options, *(["--reasoning-parser", parser] if parser else [])]


def reasoning_parser(plan: FleetPlan, server: ServerPlan) -> str | None:
    """Return vLLM's parser for a variant whose template opens `<think>`; None where the router separates thoughts.

    Without an open block a variant may or may not think, and these parsers take an answer without `</think>` for
    thoughts alone; `thinking: split` of router.yml handles both.
    """
    if not server.opens_think:
        return None
    return "qwen3" if plan.family.endpoints.thinking.architecture.startswith("Qwen3") else "deepseek_r1"


def _tgi(plan: FleetPlan, server: ServerPlan, fraction: float, prefill_log_probs: bool) -> list[str]:
    words = ["--model-id", server.source.model]
    words += ["--revision", server.source.revision] if server.source.revision else []
    words += ["--port", str(PORT), "--max-total-tokens", str(plan.context), "--num-shard", str(plan.fit.gpus)]
    words += ["--cuda-memory-fraction", f"{fraction:g}"]
    return [*words, *(["--enable-prefill-logprobs"] if prefill_log_probs else [])]


def _live(plan: FleetPlan, fraction: float) -> list[str]:
    """Return the words after `dami live`; what stands behind `--` is vLLM's."""
    ends, path = plan.family.endpoints, plan.family.path
    assert isinstance(path, str)
    pinned = [f"{end.source}@{end.commit}" if end.commit else end.source for end in (ends.instruct, ends.thinking)]
    own = ["--path", path, "--chat-template", _chat_template(plan), "--max-length", str(plan.context)]
    split = ["--tensor-parallel-size", str(plan.fit.gpus)] if plan.fit.gpus > 1 else []
    words = [*pinned, "--engine", "vllm", "--host", "0.0.0.0", "--port", str(PORT), *own]  # noqa: S104
    return [*words, "--", "--gpu-memory-utilization", f"{fraction:g}", *split]


def _chat_template(plan: FleetPlan) -> str:
    """Return whose template the family's variants have, as `dami live` takes it."""
    from_thinking = [v.lambda_ for v in plan.family.variants if v.chat_template.source == "thinking"]
    if len(from_thinking) in (0, len(plan.family.variants)):
        return "thinking" if from_thinking else "instruct"
    return f"from({min(from_thinking):g})"
