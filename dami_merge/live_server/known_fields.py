"""The fields that a request may hold: used, harmless, or accepted only at a value that has no effect.

A field in none of these tables is refused by name, because it might change the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CHAT",
    "COMPLETION",
    "EMBEDDINGS",
    "STREAM_OPTIONS",
    "TGI_BODY",
    "TGI_PARAMETERS",
    "TOKENIZE",
    "KnownFields",
]


@dataclass(frozen=True)
class KnownFields:
    """The fields of one kind of request. `neutral`: unsupported fields, with the values that have no effect."""

    used: frozenset[str]
    harmless: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]


_SAMPLING = frozenset({
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop",
})  # fmt: skip
_OPENAI = _SAMPLING | {
    "model", "max_tokens", "n", "stream", "stream_options", "logprobs", "prompt_logprobs", "ignore_eos",
    "skip_special_tokens", "thinking_token_budget",
}  # fmt: skip
_TEMPLATE = frozenset({"messages", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"})
# The user, accounting, scheduling, and the router's own fields, which it has used by now.
_HARMLESS = frozenset({
    "cache_salt", "metadata", "prediction", "priority", "prompt_cache_key", "prompt_cache_retention", "reasoning",
    "reasoning_effort", "request_id", "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": (), "bad_words": ([],), "best_of": (1,), "early_stopping": (False,),
    "include_stop_str_in_output": (False,), "length_penalty": (1,), "logit_bias": ({}, []),
    "logits_processors": ([],), "min_tokens": (0,), "num_beams": (1,), "response_format": ({"type": "text"},),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],), "use_beam_search": (False,), "vllm_xargs": ({},),
}  # fmt: skip
_NO_TOOLS: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "chat_template": (), "documents": ([],), "function_call": ("none", "auto"), "functions": ([],),
    "include_reasoning": (True,), "mm_processor_kwargs": ({},), "modalities": (["text"],),
    "parallel_tool_calls": (True, False), "tool_choice": ("none", "auto"), "tools": ([],),
}  # fmt: skip

CHAT = KnownFields(
    _OPENAI | _TEMPLATE | {"max_completion_tokens", "top_logprobs"},
    # TGI's clients send their default tool prompt even without tools.
    _HARMLESS | {"tool_prompt"},
    {**_NEUTRAL, **_NO_TOOLS, "add_special_tokens": (False,), "echo": (False,)},
)
"""`/v1/chat/completions`."""

COMPLETION = KnownFields(
    _OPENAI | {"prompt", "echo", "add_special_tokens"}, _HARMLESS, {**_NEUTRAL, "suffix": ("",)}
)  # fmt: skip
"""`/v1/completions`."""

STREAM_OPTIONS = KnownFields(
    frozenset({"include_usage"}), frozenset({"include_obfuscation"}), {"continuous_usage_stats": (False,)}
)
"""`stream_options` of OpenAI's routes."""

TGI_BODY = KnownFields(frozenset({"inputs", "parameters", "stream", "model"}), frozenset({"options"}), {})
"""TGI's routes: the request itself. `options` comes from Hugging Face's former Inference API."""

TGI_PARAMETERS = KnownFields(
    _SAMPLING
    | {
        "decoder_input_details", "details", "do_sample", "max_new_tokens", "return_full_text", "top_n_tokens",
        "truncate",
    },
    frozenset({"use_cache"}),
    {"adapter_id": (), "best_of": (1,), "grammar": (), "num_return_sequences": (1,), "watermark": (False,)},
)  # fmt: skip
"""TGI's routes: `parameters`."""

EMBEDDINGS = KnownFields(
    _TEMPLATE | {"input", "add_special_tokens", "model"}, frozenset({"user", "request_id"}),
    {"encoding_format": ("float",), "chat_template": (), "mm_processor_kwargs": ({},)},
)  # fmt: skip
"""`/v1/embeddings`."""

TOKENIZE = KnownFields(
    _TEMPLATE | {"prompt", "add_special_tokens", "return_token_strs", "model"}, frozenset({"user", "request_id"}),
    {"chat_template": (), "documents": ([],), "mm_processor_kwargs": ({},), "tools": ([],)},
)  # fmt: skip
"""`/tokenize`."""
