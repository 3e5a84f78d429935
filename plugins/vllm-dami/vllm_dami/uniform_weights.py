"""Interpolated weights for vLLM's loaders: bit for bit those of `dami build`, one tensor at a time.

Both endpoints stay in their files, so a server at one λ needs the memory of one model, and setting another λ reads both
checkpoints again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.endpoints import download, open_pair
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.live.spread import Spread
from dami_router.errors import CheckpointError
from vllm_dami.pair_settings import PairSettings

__all__ = ["UniformWeights"]


class UniformWeights:
    """A pair's tensors at any λ; `device` is where they are interpolated."""

    def __init__(self, instruct: ModelRef, settings: PairSettings, device: torch.device) -> None:
        pair = open_pair(instruct, settings.thinking, None, download)
        self._sides = (pair.instruct, pair.thinking)
        self._device, self._default = device, settings.default
        _check(*self._sides)
        names = list(pair.instruct.tensors)
        anatomy = Anatomy.of(names, pair.instruct.config)
        self._spread = Spread({name: [name] for name in names}, anatomy, settings.family.path, settings.recipe)

    def at(self, lambda_: float | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor's name and value at λ (None: the default); raises MisuseError if λ is not in [0, 1]."""
        vector = self._spread.vector(self._default if lambda_ is None else lambda_)
        with ExitStack() as stack:
            files: dict[tuple[int, str], Any] = {}
            for name in self._sides[0].tensors:
                instruct, thinking = (_read(side, name, files, stack).to(self._device) for side in self._sides)
                yield name, interpolate(instruct, thinking, vector[self._spread.groups[name]])


def _read(side: Checkpoint, name: str, files: dict[tuple[int, str], Any], stack: ExitStack) -> torch.Tensor:
    from safetensors import safe_open

    assert side.folder is not None
    key = (id(side), side.tensors[name].file)
    if key not in files:
        files[key] = stack.enter_context(safe_open(side.folder / key[1], framework="pt"))
    found: torch.Tensor = files[key].get_tensor(name)
    return found


def _check(instruct: Checkpoint, thinking: Checkpoint) -> None:
    """Refuse a pair whose files do not hold the same tensors; `dami build` knows more of them."""
    ours, theirs = _described(instruct), _described(thinking)
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"`{name}` is {ours.get(name, 'missing')} in {instruct.ref} and {theirs.get(name, 'missing')} in"
                f" {thinking.ref}",
                hint="`dami build` makes variants of pairs that are stored differently",
            )


def _described(side: Checkpoint) -> Mapping[str, str]:
    return {name: f"{info.dtype} {list(info.shape)}" for name, info in side.tensors.items()}
