"""Which tensor of one endpoint belongs to which of the other, as the loaded models have them.

Names alone do not tell: a tied model has a head that it does not store. `match` answers for a
whole pair; comparing, building and verifying all ask it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.checkpoints.experts import stored_as
from dami_merge.checkpoints.fp8 import views
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.checkpoints.tying import embeddings_of, heads

__all__ = ["Match", "Matching", "match", "shares_head"]

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Match:
    """A tensor that the variants store, and where both endpoints have it.

    `placed_as` is the tensor whose λ it takes: its own name, or for the stored head of a pair that ties
    head and embeddings, the embeddings'.
    """

    name: str
    instruct: TensorView
    thinking: TensorView
    placed_as: str


@dataclass(frozen=True)
class Matching:
    """A pair's tensors by the variants' names, in Instruct's order; and what one side lacks.

    `untied` says that the variants have a head of their own whatever Instruct's config says. `rows` are
    both sides' rows of the vocabulary matrices, where they differ; the matched tensors have Instruct's.
    `only_instruct` are the tensors that a recipe takes from Instruct alone.
    """

    tensors: Mapping[str, Match]
    instruct_lacks: tuple[str, ...]
    thinking_lacks: tuple[str, ...]
    untied: bool
    rows: Sides[int] | None
    only_instruct: tuple[str, ...]


def match(instruct: Checkpoint, thinking: Checkpoint, only_instruct: Sequence[str] = ()) -> Matching:
    """Match the tensors of two endpoints; shapes and dtypes are not compared here.

    Tensors that Thinking lacks and whose name contains a text of `only_instruct` are Instruct's alone.
    """
    ours, theirs = _Side(instruct), _Side(thinking)
    theirs.views = stored_as(ours.views, theirs.views)
    found_heads = heads(dict.fromkeys([*instruct.tensors, *thinking.tensors]))
    tied = {head for head in found_heads if ours.shares(head) and theirs.shares(head)}
    tensors: dict[str, Match] = {}
    instruct_lacks, thinking_lacks, alone = [], [], []
    for name in dict.fromkeys([*ours.views, *theirs.views]):
        source = name
        if name in tied:
            if name not in ours.views:
                continue
            source = embeddings_of(ours.views, name) or name
        a, b = (side.loaded(source, head=name in found_heads) for side in (ours, theirs))
        if a is not None and b is None and any(text in name for text in only_instruct):
            b = a.with_no_pieces()
            alone.append(name)
        if a is None:
            instruct_lacks.append(source)
        if b is None:
            thinking_lacks.append(source)
        if a is not None and b is not None:
            tensors[name] = Match(name, a, b, source)
    untied = any(head in tensors and head not in tied for head in found_heads)
    rows = _align_rows(tensors, found_heads)
    return Matching(tensors, tuple(sorted(instruct_lacks)), tuple(sorted(thinking_lacks)), untied, rows, tuple(alone))


def _align_rows(tensors: dict[str, Match], found_heads: list[str]) -> Sides[int] | None:
    """Give Thinking's vocabulary matrices Instruct's number of rows; return both numbers where they differ."""
    table = embeddings_of(tensors)
    if table is None:
        return None
    a, b = tensors[table].instruct.shape, tensors[table].thinking.shape
    rows = Sides(a[0] if a else 0, b[0] if b else 0)
    names = [table, *found_heads, *(head.removesuffix("weight") + "bias" for head in found_heads)]
    aligned = [name for name in dict.fromkeys(names) if name in tensors and _differ_in_rows(tensors[name], rows)]
    for name in aligned:
        found = tensors[name]
        view = found.thinking.with_rows(found.instruct.shape[0])
        tensors[name] = replace(found, thinking=view)
    return rows if aligned else None


def _differ_in_rows(found: Match, rows: Sides[int]) -> bool:
    a, b = found.instruct.shape, found.thinking.shape
    return bool(a and b) and a != b and a[1:] == b[1:] and (a[0], b[0]) == rows


def shares_head(side: Checkpoint, head: str) -> bool:
    """Tell whether the loaded model has one tensor for its embeddings and this head.

    As Transformers decides: where the config ties them and at most one is stored, or both are and hold
    the same bytes. Of a repository on the Hub, whose bytes are not here, the config is believed.
    """
    embeddings = embeddings_of(side.tensors, head)
    if embeddings is None or not side.tied:
        return False
    if head not in side.tensors or side.folder is None:
        return True
    return _same_bytes(side.folder, side.tensors[head], side.tensors[embeddings])


class _Side:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._shares: dict[str, bool] = {}
        self.views = views(checkpoint)

    def shares(self, head: str) -> bool:
        if head not in self._shares:
            self._shares[head] = shares_head(self._checkpoint, head)
        return self._shares[head]

    def loaded(self, name: str, *, head: bool) -> TensorView | None:
        """Return the tensor as the loaded model has it: a head that is not stored is the embeddings, where tied."""
        if name in self.views or not head or not self.shares(name):
            return self.views.get(name)
        embeddings = embeddings_of(self.views, name)
        return self.views[embeddings] if embeddings else None


def _same_bytes(folder: Path, one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    stamps = tuple((folder / info.file).stat().st_mtime_ns for info in (one, other))
    return _compared(folder, one, other, stamps)


@lru_cache(maxsize=64)
def _compared(folder: Path, one: TensorInfo, other: TensorInfo, stamps: tuple[int, ...]) -> bool:  # noqa: ARG001
    blocks = zip(_blocks(folder, one), _blocks(folder, other), strict=True)
    return all(first == second for first, second in blocks)


def _blocks(folder: Path, info: TensorInfo) -> Iterator[bytes]:
    with (folder / info.file).open("rb") as file:
        file.seek(info.start)
        for done in range(0, info.nbytes, _BLOCK):
            yield file.read(min(_BLOCK, info.nbytes - done))
