"""Tokenizer, chat templates and sampling defaults, as the variants of a family would have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.pair_templates import PairTemplates
from dami_merge.live.sampling_defaults import read_defaults
from dami_merge.live.thought_cap import ThinkTags
from dami_router.errors import CheckpointError, MisuseError
from dami_router.messages.thinking import CLOSE, OPEN

__all__ = ["Tokenizing"]


class Tokenizing:
    """The Instruct endpoint's tokenizer, both endpoints' templates and sampling defaults.

    `thinking_from`: rows with λ at or above it use Thinking's chat template. A side that lacks a template or a
    generation_config.json falls back to the other's. `tokenizer` is None where the checkpoint has none.
    """

    def __init__(self, instruct: Checkpoint, thinking: Checkpoint, thinking_from: float) -> None:
        self.tokenizer = _tokenizer(instruct)
        self.templates = PairTemplates(instruct, thinking, thinking_from)
        self._defaults = [read_defaults(side) for side in (instruct, thinking)]
        self.warnings = tuple(text for found in self._defaults if found for text in found.warnings)
        """Settings of the endpoints' generation_config.json that the engine ignores."""
        self.eos = _eos(self.tokenizer, instruct, thinking)
        """The ids of all tokens that end a text, at either endpoint."""

    def template(self, lambda_: float) -> str | None:
        """Return the chat template for rows at λ, or None if neither endpoint has one."""
        return self.templates.template(lambda_)

    @property
    def think_tags(self) -> ThinkTags | None:
        """The tokens of `<think>` and `</think>`; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return ThinkTags(*(tuple(self.encode(tag, special=False)) for tag in (OPEN, CLOSE)))

    def opens_think(self, lambda_: float) -> bool:
        """Tell whether the template at λ opens a `<think>` block in the prompt."""
        return self.templates.opens_think(lambda_)

    def sampling(self, lambda_: float) -> Mapping[str, float]:
        """Return the sampling defaults for rows at λ: Thinking's for λ > 0, Instruct's for λ = 0.

        Names and values are those of a `Generation`; empty, which means greedy, without a generation_config.json.
        """
        first, second = reversed(self._defaults) if lambda_ > 0.0 else self._defaults
        found = first if first is not None else second
        return found.values if found else {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return a text's token ids; `special`: with the tokens that the tokenizer adds around a text."""
        # No warning about the tokenizer's own limit: the engine's is the one that counts.
        ids: list[int] = self._needed().encode(text, add_special_tokens=special, verbose=False)
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], lambda_: float, **arguments: Any) -> list[int]:
        """Return the token ids of a conversation, ready for the answer; `arguments` are passed to the template.

        Raises MisuseError if there is no template, or if it rejects the conversation.
        """
        template = self.template(lambda_)
        if template is None:
            raise MisuseError("neither endpoint has a chat template", hint="send the prompt as text")
        try:
            ids: list[int] = self._needed().apply_chat_template(
                list(messages), chat_template=template, **{"add_generation_prompt": True, **arguments},
                tokenize=True, return_dict=False, tokenizer_kwargs={"verbose": False},
            )  # fmt: skip
        except Exception as error:  # a template is untrusted code in a sandbox: it can fail in any way
            raise MisuseError(f"the chat template refuses this conversation: {error}") from None
        return ids

    def _needed(self) -> Any:
        if self.tokenizer is None:
            raise MisuseError("the Instruct endpoint has no tokenizer", hint="send token ids")
        return self.tokenizer


def _tokenizer(side: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    assert side.folder is not None
    if not any((side.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(side.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer files are untrusted: Transformers may fail on them anywhere
        raise CheckpointError(f"{side.ref}: the tokenizer cannot be loaded: {error}") from None


def _eos(tokenizer: Any, *sides: Checkpoint) -> frozenset[int]:
    found: set[int] = set()
    for side in sides:
        for data in (side.config, side.read_json("generation_config.json") or {}):
            value = data.get("eos_token_id")
            found |= {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}
    own = getattr(tokenizer, "eos_token_id", None)
    return frozenset(found | ({own} if type(own) is int else set()))
