"""The hook of LiteLLM's proxy: the only module that imports LiteLLM."""

from __future__ import annotations

from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from litellm_dami.deciding import Decider, Source
from litellm_dami.rewriting import Rewriter

__all__ = ["DamiHook"]


class DamiHook(CustomLogger):  # type: ignore[misc]  # LiteLLM is not installed for type checks
    """Sends each request for `model` to the LiteLLM model with the name of the variant at its λ(q).

    `router` is a router.yml, as a path or already parsed. LiteLLM looks for hooks in an instance's own
    class and not in its bases: wrap this class instead of inheriting from it.
    """

    def __init__(self, router: Source, *, model: str = "dami") -> None:
        super().__init__()
        self._rewriter = Rewriter(Decider(router), model)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Rewrite `model` in the request's data before LiteLLM looks for a deployment."""
        await self._rewriter.before(data, call_type)
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, object] | None = None,
    ) -> dict[str, str] | None:
        """Return the decision as response headers."""
        hidden = getattr(response, "_hidden_params", None) or {}
        return self._rewriter.headers(data, (hidden.get("additional_headers") or {}).get("x-litellm-model-group"))

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Record the cost of an answer; LiteLLM calls this for whole replies and at the end of streams."""
        logged = kwargs.get("standard_logging_object") or {}
        tokens = getattr(getattr(response_obj, "usage", None), "completion_tokens", None)
        self._rewriter.after(str(kwargs.get("litellm_call_id")), logged.get("model_group"), tokens)
