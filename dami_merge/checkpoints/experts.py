"""Experts of a mixture, stored one by one or in one tensor: both are the same numbers in the same order.

One tensor of a layer, `experts.gate_up_proj` of (experts, 2·inner, hidden), holds each expert's gate and
up projection one after the other; `experts.down_proj` of (experts, hidden, inner) its down projections.
Some models store the two transposed; those are left as they are, and the shapes do not match then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dami_merge.checkpoints.tensor_view import TensorView

__all__ = ["stored_as"]

_EXPERT = re.compile(r"^(.*\.)(?:mlp|block_sparse_moe|feed_forward)\.experts\.(\d+)\.([a-z0-9_]+)\.weight$")
_PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_FUSED = re.compile(r"^(.*\.)(?:mlp|block_sparse_moe|feed_forward)\.experts\.(gate_up_proj|down_proj)$")

_Experts = dict[int, dict[str, str]]


def stored_as(names: Iterable[str], views: Mapping[str, TensorView]) -> dict[str, TensorView]:
    """Return an endpoint's tensors with its experts cut, or joined, as the other endpoint's names have them."""
    found = dict(views)
    theirs, ours = _layers(names), _layers(views)
    for layer, fused in _fused(names).items():
        if layer in ours and layer not in _fused(views):
            _join(fused, ours[layer], found)
    for layer, fused in _fused(views).items():
        if layer in theirs and layer not in _fused(names):
            _cut(theirs[layer], fused, found)
    return found


def _layers(names: Iterable[str]) -> dict[str, _Experts]:
    """Return the names of experts that are stored one by one: layer → expert → part → name."""
    found: dict[str, _Experts] = {}
    for name in names:
        match = _EXPERT.match(name)
        if match and match[3] in _PARTS:
            found.setdefault(match[1], {}).setdefault(int(match[2]), {})[_PARTS[match[3]]] = name
    return found


def _fused(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of joined experts: layer → gate_up_proj and down_proj → name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _FUSED.match(name):
            found.setdefault(match[1], {})[match[2]] = name
    return {layer: parts for layer, parts in found.items() if len(parts) == 2}


def _join(fused: Mapping[str, str], experts: _Experts, views: dict[str, TensorView]) -> None:
    count = len(experts)
    if set(experts) != set(range(count)) or any(len(parts) != 3 for parts in experts.values()):
        return
    for target, order in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        members = [views[experts[i][part]] for i in range(count) for part in order]
        shapes = {view.shape for view in members}
        if len(shapes) != 1 or len({view.dtype for view in members}) != 1:
            return
        rows, columns = shapes.pop()
        size = rows * columns
        pieces = [piece.moved(i * size) for i, view in enumerate(members) for piece in view.pieces]
        views[fused[target]] = TensorView((count, len(order) * rows, columns), members[0].dtype, tuple(pieces))
    for parts in experts.values():
        for name in parts.values():
            del views[name]


def _cut(experts: _Experts, fused: Mapping[str, str], views: dict[str, TensorView]) -> None:
    both, down = views[fused["gate_up_proj"]], views[fused["down_proj"]]
    if len(both.shape) != 3 or len(down.shape) != 3:
        return
    count, twice, hidden = both.shape
    inner = twice // 2
    if twice % 2 or down.shape != (count, hidden, inner) or set(experts) != set(range(count)):
        return
    size = inner * hidden
    for i, parts in experts.items():
        for part, name in parts.items():
            source = down if part == "down" else both
            first = i * size if part == "down" else (2 * i + (part == "up")) * size
            shape = (hidden, inner) if part == "down" else (inner, hidden)
            pieces = tuple(piece.moved(-first) for piece in source.parts(first, size))
            views[name] = TensorView(shape, source.dtype, pieces)
    for name in fused.values():
        del views[name]
