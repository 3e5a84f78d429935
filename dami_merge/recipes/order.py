"""Which pair to load, and how: from two endpoints and options, or from a recipe."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.recipes.family_block import FamilyBlock, read_family
from dami_merge.recipes.recipe import Recipe, load_recipe
from dami_router.errors import MisuseError
from dami_router.shared import strict_yaml

__all__ = ["Order", "order_of", "order_of_endpoints", "order_of_recipe"]

_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._]+")
_SHORTEST_NAME = 3
_PAIR = 2


@dataclass(frozen=True)
class Order:
    """What to load. `recipe`, if given, sets λ for requests that do not.

    `path_text` and `template_text` are the family's path and chat template as they were written.
    """

    instruct: ModelRef
    thinking: ModelRef
    family: FamilyBlock
    path_text: Any
    template_text: Any
    dtype: str | None
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        """The pair's name."""
        return self.family.name


def order_of(
    names: Sequence[str], *, path: str | None, dtype: str | None, chat_template: str | None, name: str | None
) -> Order:
    """Read the command line: two endpoints, or one recipe, which has a path and a template of its own."""
    if len(names) == _PAIR:
        return order_of_endpoints(
            *names, path=path or "uniform", dtype=dtype, chat_template=chat_template or "instruct", name=name
        )
    if len(names) != 1 or not names[0].endswith((".yml", ".yaml")):
        raise MisuseError(
            f"expected INSTRUCT and THINKING, or one recipe (.yml), found {' '.join(names) or 'nothing'!s:.200}"
        )
    if path or chat_template:
        option = "--path" if path else "--chat-template"
        raise MisuseError(f"{option}: the recipe says it", hint="change the recipe's `family:`")
    found = order_of_recipe(load_recipe(Path(names[0])))
    family = replace(found.family, name=name) if name else found.family
    return replace(found, family=family, dtype=dtype or found.dtype)


def order_of_endpoints(
    instruct: str,
    thinking: str,
    *,
    path: str | Sequence[Mapping[str, Any]] = "uniform",
    dtype: str | None = None,
    chat_template: str = "instruct",
    name: str | None = None,
) -> Order:
    """Read the arguments about two endpoints as a recipe's; raises MisuseError for invalid ones."""
    refs = _ref(instruct), _ref(thinking)
    made = name or _common_name(instruct, thinking)
    return Order(*refs, _family(made, path, chat_template), path, chat_template, dtype)


def order_of_recipe(recipe: Recipe) -> Order:
    """Read an order from a recipe: its endpoints, its dtype, and its family's name, path and template."""
    raw = recipe.document.data.get("family") or {}
    path, template = raw.get("path", "uniform"), raw.get("chat_template", "instruct")
    family = recipe.family or _family(_common_name(recipe.instruct.path, recipe.thinking.path), path, template)
    return Order(recipe.instruct, recipe.thinking, family, path, template, recipe.dtype, recipe)


def _family(name: str, path: object, chat_template: object) -> FamilyBlock:
    raw = {"name": name, "lambdas": [0], "path": path, "chat_template": chat_template}
    # The reader of recipes checks them, so that both give the same messages.
    return read_family(strict_yaml.parse(json.dumps({"family": raw}), "<arguments>"), raw)


def _ref(text: str) -> ModelRef:
    if not isinstance(text, str) or not text:
        raise MisuseError(f"expected a local folder or a Hub id for each endpoint, found {text!r:.40}")
    # A folder may have an @ in its name; a Hub id cannot.
    if os.path.isdir(os.path.expanduser(text)):  # noqa: PTH111, PTH112
        return ModelRef(text)
    path, _, revision = text.partition("@")
    return ModelRef(path, revision or None)


def _common_name(instruct: str, thinking: str) -> str:
    """Return the common beginning of both endpoints' names, such as Qwen3-4B; `live` if it is shorter than 3."""
    ends = [
        _NOT_IN_NAME.sub("-", text.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]) for text in (instruct, thinking)
    ]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    common = "".join(pair[0] for pair in same).rsplit("-", 1)[0].strip("-._")
    return f"{common[:80]}-DAMI" if len(common) >= _SHORTEST_NAME else "live"
