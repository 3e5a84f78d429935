"""Where a tensor sits in a model: depth x = l/(L−1) in its stack of layers.

Embeddings have x = 0, the final norm and the head x = 1. A model may hold several stacks
(a vision tower beside the language model); each has its own L and x. Where layers are counted, the
language model's are: what feeds it (vision, audio, an encoder) goes with its first layer, draft
layers for multi-token prediction, which follow it, with its last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

__all__ = ["Anatomy", "Place", "declared_layers"]

_LAYER = re.compile(r"(?:^|(?<=\.))(layers|layer|h|blocks|block|deepstack_merger_list)\.(\d+)(?=\.|$)")
# `embed_out` is GPT-NeoX's head, `embedding_norm` LFM2's final norm.
_EMBEDDING = re.compile(
    r"embed(?!_out\b|ding_norm\b)|\bw[tp]e\b|\bconv[12]\.|^shared\.|rotary|relative_pe|patch_conv|_pre\b"
)
_SIDE_STACK = re.compile(r"visual|vision|audio|encoder|merger|projector")
_DRAFT = re.compile(r"(?:^|\.)mtp(?:_|\.|$)")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Place:
    """The place of one tensor: layer `index` of `layers`, or before (None, x=0) or after (None, x=1) them.

    `layers` is 0 where a tensor belongs to no stack of layers. A tensor beside the language model
    has that model's layer count as `model_layers`, and `goes_with` is its first or last layer.
    """

    index: int | None
    layers: int
    x: float
    goes_with: int | None = None
    model_layers: int | None = None

    @property
    def counted_layers(self) -> int:
        """How many layers schedules over layers count."""
        return self.layers if self.model_layers is None else self.model_layers

    @property
    def nearest_layer(self) -> int:
        """The layer index that schedules over layers use: embeddings act as the first, the head as the last."""
        if self.goes_with is not None:
            return self.goes_with
        if self.index is not None:
            return self.index
        return 0 if self.x == 0.0 else max(self.layers - 1, 0)


@dataclass(frozen=True)
class Anatomy:
    """How many layers each stack of a model has, by the stack's name prefix (`model.layers`)."""

    stacks: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str], config: Mapping[str, Any] | None = None) -> Anatomy:
        """Read the stacks from tensor names; the config's layer count settles the main stack.

        A checkpoint may carry layers that the config does not count (multi-token prediction
        heads), which therefore do not stretch the depth of the others.
        """
        seen: dict[str, int] = {}
        for name in names:
            if found := _LAYER.search(name):
                stack = name[: found.end(1)]
                seen[stack] = max(seen.get(stack, 0), int(found[2]) + 1)
        declared = declared_layers(config or {})
        main = [stack for stack in seen if not _beside(stack)]
        if declared and len(main) == 1:
            seen[main[0]] = declared
        return cls(stacks=seen)

    @property
    def layers(self) -> int:
        """L of the main stack: the longest that belongs to no tower beside the language model."""
        return max((self._main or self.stacks).values(), default=0)

    @cached_property
    def _main(self) -> dict[str, int]:
        return {stack: layers for stack, layers in self.stacks.items() if not _beside(stack)}

    def place(self, name: str) -> Place:
        """Return the place of a tensor, whatever prefix the tool at hand gives its name."""
        found = _LAYER.search(name)
        draft = bool(_DRAFT.search(name))
        if not found:
            place = Place(None, self.layers, 0.0 if _EMBEDDING.search(name) and not draft else 1.0)
        else:
            index = int(found[2])
            layers = self._stack_length(name[: found.end(1)])
            place = Place(index, layers, min(index / (layers - 1), 1.0) if layers > 1 else 1.0)
            # DeepSeek's and GLM's draft layers are numbered on from the model's own.
            draft = draft or index >= layers == self.layers
        if self._main and (draft or _SIDE_STACK.search(name)):
            return replace(place, goes_with=self.layers - 1 if draft else 0, model_layers=self.layers)
        return place

    def part_of(self, name: str) -> str:
        """Return the part beside the language model that a tensor belongs to (`model.visual`); empty in the model."""
        found = (_DRAFT.search(name) or _SIDE_STACK.search(name)) if self._main else None
        if not found:
            return ""
        end = name.find(".", found.start() + 1)
        return name[:end] if end > 0 else name

    def stack_of(self, name: str) -> str:
        """Return the prefix of the stack that a tensor belongs to; empty outside the layers."""
        found = _LAYER.search(name)
        return name[: found.end(1)] if found else ""

    def _stack_length(self, stack: str) -> int:
        if stack in self.stacks:
            return self.stacks[stack]
        # The same stack under another prefix: `model.layers` on disk, `model.language_model.layers` in memory.
        alike = [n for s, n in self.stacks.items() if _beside(s) == _beside(stack)]
        return max(alike, default=self.layers)


def _beside(name: str) -> str:
    """Return what kind of part beside the language model a name belongs to; empty for the model itself."""
    return "draft" if _DRAFT.search(name) else "side" if _SIDE_STACK.search(name) else ""


def declared_layers(config: Mapping[str, Any]) -> int | None:
    """Return the language model's layer count from a config.json, or None where it has none."""
    for part in (config.get("text_config"), config):
        if isinstance(part, Mapping):
            for key in _LAYER_KEYS:
                if isinstance(part.get(key), int) and part[key] > 0:
                    return int(part[key])
    return None
