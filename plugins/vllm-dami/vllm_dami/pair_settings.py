"""A server's settings: the entry `dami` of vLLM's `--additional-config`.

    {"dami": {"thinking": "Qwen/Qwen3-4B-Thinking-2507", "path": "late(0.5)", "lambda": 0.6}}

vLLM hashes `--additional-config` for its compile cache, so everything that shapes the model stands here and nothing in
a file beside it. `path`, `lambda` and `chat_template` are written as in a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.recipes.family_block import FamilyBlock
from dami_merge.recipes.recipe import Recipe, read_recipe
from dami_router.errors import MisuseError
from dami_router.shared.strict_yaml import parse

__all__ = ["DEFAULT_LAMBDA", "PREFIX", "UNIFORM", "PairSettings"]

PREFIX = "Dami"
"""Before an architecture's name: λ per request."""
UNIFORM = "DamiUniform"
"""Before an architecture's name: one λ at a time."""

DEFAULT_LAMBDA = 0.5

_KEYS = ("thinking", "thinking_revision", "path", "lambda", "chat_template", "name", "max_body")
_MAX_BODY = 32 << 20


@dataclass(frozen=True)
class PairSettings:
    """`family` is how λ spreads. A request without λ gets `default`, or None: what `recipe` says, tensor by tensor.

    `name` is the pair's public name; `max_body` limits what the middleware reads of a request, in bytes.
    """

    thinking: ModelRef
    default: float | None
    recipe: Recipe
    family: FamilyBlock
    path: Any
    name: str | None
    max_body: int

    @property
    def default_text(self) -> str:
        """Return the default λ in words."""
        return "the recipe's λ" if self.default is None else f"λ = {self.default:g}"

    @property
    def chooses_template(self) -> bool:
        """Whether the chat template depends on λ."""
        return 0.0 < self.family.thinking_template_from <= 1.0

    def thinks_at(self, lambda_: float | None) -> bool:
        """Tell whether a request at λ (None: the default) has Thinking's chat template."""
        if lambda_ is None and self.default is None:
            found = list(self.recipe.lambdas())
            lambda_ = found[0] if len(found) == 1 and isinstance(found[0], float) else 0.0
        return float(self.default or 0.0 if lambda_ is None else lambda_) >= self.family.thinking_template_from

    @classmethod
    def of(cls, additional_config: object) -> PairSettings:
        """Read them; raises MisuseError if they are missing or invalid."""
        raw = additional_config.get("dami") if isinstance(additional_config, Mapping) else None
        if not isinstance(raw, Mapping) or not isinstance(raw.get("thinking"), str) or not raw["thinking"]:
            raise MisuseError(
                'expected --additional-config \'{"dami": {"thinking": FOLDER OR HUB ID}}\', the checkpoint for λ = 1',
                hint="`dami live INSTRUCT THINKING --engine vllm --print` prints the whole command",
            )
        if unknown := sorted(set(raw) - set(_KEYS)):
            raise _wrong(f"unknown key {unknown[0]!r:.40}; known: {', '.join(_KEYS)}")
        revision, name, max_body = raw.get("thinking_revision"), raw.get("name"), raw.get("max_body", _MAX_BODY)
        if not isinstance(revision, str | None) or not isinstance(name, str | None):
            raise _wrong("`thinking_revision` and `name` must be text")
        if isinstance(max_body, bool) or not isinstance(max_body, int) or max_body < 1:
            raise _wrong(f"`max_body` must be a number of bytes, found {max_body!r:.40}")
        path = raw.get("path", "uniform")
        recipe = _recipe(path, raw.get("lambda", DEFAULT_LAMBDA), raw.get("chat_template", "instruct"))
        assert recipe.family is not None
        default = None if "lambda" in raw else DEFAULT_LAMBDA
        return cls(ModelRef(raw["thinking"], revision), default, recipe, recipe.family, path, name, max_body)


def _recipe(path: Any, lambda_: Any, chat_template: Any) -> Recipe:
    """Read these as a recipe's, so that they mean the same and errors sound the same."""
    family = {"name": "live", "lambdas": [0], "path": path, "chat_template": chat_template}
    content = {
        "merge_method": "dami", "base_model": "instruct", "models": [{"model": "thinking"}],
        "parameters": {"lambda": lambda_}, "family": family,
    }  # fmt: skip
    return read_recipe(parse(json.dumps(content), "--additional-config"))


def _wrong(message: str) -> MisuseError:
    return MisuseError(f"--additional-config: dami: {message}")
