"""Whether a row of the embeddings means the same token in both endpoints.

Distilled models often give the special tokens of their base other names at the same ids. Such
rows are special tokens on both sides and are interpolated; an ordinary token at another id is an
error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.findings import Finding, few
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.templates import template_of

__all__ = ["compare_rows", "compare_tokens"]

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class _Vocabulary:
    ids: Mapping[str, int]
    special: frozenset[str]

    @property
    def tokens(self) -> dict[int, str]:
        return {number: token for token, number in self.ids.items()}


def compare_tokens(instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    """Yield what differs between the two tokenizers."""
    if _same_file(instruct, thinking):
        return
    a, b = _read(instruct), _read(thinking)
    if a is None or b is None:
        side = instruct if a is None else thinking
        yield Finding("warning", "tokenizer", f"{side.ref} has no tokenizer.json; vocabularies were not compared")
        return
    both = a.ids.keys() & b.ids.keys()
    moved = sorted(t for t in both if a.ids[t] != b.ids[t] and not (t in a.special and t in b.special))
    if moved:
        yield Finding(
            "error", "vocabulary",
            f"different vocabularies: {len(moved)} tokens have different ids, such as {few(moved)}",
            "embeddings of different vocabularies cannot be interpolated row by row",
        )  # fmt: skip
        return
    yield from _renamed(a, b, thinking)


def compare_rows(rows: Sides[int], instruct: Checkpoint, thinking: Checkpoint) -> Finding:
    """Return what different numbers of rows mean: padding, or tokens that one side lacks."""
    told = f"the vocabulary matrices have {rows.instruct} rows in instruct, {rows.thinking} in thinking"
    sides = _read(instruct), _read(thinking)
    used = max((max(side.ids.values(), default=0) + 1 for side in sides if side), default=0)
    if None in sides or used > min(rows):
        return Finding(
            "error", "vocabulary_size",
            f"vocabularies of different size: {told}" + (f"; tokens use {used} of them" if used else ""),
            "mergekit can align them with `tokenizer: {source: base}`; the `dami` tools need the same tokens",
        )  # fmt: skip
    surplus = abs(rows.instruct - rows.thinking)
    kept = rows.instruct > rows.thinking
    rule = f"the last {surplus} are " + ("Instruct's own at every λ" if kept else "dropped")
    return Finding(
        "warning", "vocabulary_padding",
        f"{told}; tokens use {used}, the others are padding: variants have {rows.instruct} rows, {rule}",
        "`dami build` does this; mergekit-yaml cannot merge matrices of two sizes",
        tool="dami build",
    )  # fmt: skip


def _renamed(a: _Vocabulary, b: _Vocabulary, thinking: Checkpoint) -> Iterator[Finding]:
    ours, theirs = a.tokens, b.tokens
    changed = sorted(i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i])
    ordinary = [i for i in changed if not (ours[i] in a.special and theirs[i] in b.special)]
    if ordinary:
        shown = ", ".join(f"{i} is `{ours[i]}` in instruct, `{theirs[i]}` in thinking" for i in ordinary[:2])
        yield Finding(
            "error", "vocabulary",
            f"different vocabularies: {len(ordinary)} ids mean different tokens: {shown}",
            "embeddings of different vocabularies cannot be interpolated row by row",
        )  # fmt: skip
        return
    if changed:
        shown = ", ".join(f"{i} `{ours[i]}` → `{theirs[i]}`" for i in changed[:4]) + (", …" if len(changed) > 4 else "")
        yield Finding(
            "warning", "special_tokens",
            f"{len(changed)} special tokens have another name in thinking: {shown}; variants carry Instruct's"
            " tokenizer, and Instruct's chat template unless the recipe's `chat_template` says otherwise",
            _template_trap([theirs[i] for i in changed if theirs[i] not in a.ids], thinking),
        )  # fmt: skip
    elsewhere = sorted(t for t in a.ids.keys() & b.ids.keys() if a.ids[t] != b.ids[t])
    if elsewhere:
        shown = ", ".join(f"`{t}` is {a.ids[t]} in instruct, {b.ids[t]} in thinking" for t in elsewhere[:2])
        yield Finding(
            "warning", "special_tokens",
            f"{len(elsewhere)} special tokens have another id in thinking: {shown}; variants use Instruct's ids",
        )  # fmt: skip
    alone = sorted(t for t in a.ids.keys() ^ b.ids.keys() if (a.ids.get(t, b.ids.get(t))) not in changed)
    if alone:
        yield Finding(
            "warning", "vocabulary",
            f"different vocabularies: {len(alone)} tokens are in one only, such as {few(alone)}",
        )  # fmt: skip


def _template_trap(unknown: list[str], thinking: Checkpoint) -> str | None:
    template = json.dumps(template_of(thinking) or "", ensure_ascii=False)
    used = [token for token in unknown if token in template]
    if not used:
        return None
    return (
        f"keep `chat_template: instruct`: Thinking's template uses {few(used)}, which Instruct's tokenizer would"
        " split into pieces"
    )


def _same_file(instruct: Checkpoint, thinking: Checkpoint) -> bool:
    hashes = [(side.file_hashes or {}).get(_TOKENIZER) for side in (instruct, thinking)]
    if hashes[0] and hashes[0] == hashes[1]:
        return True
    texts = instruct.read_text(_TOKENIZER), thinking.read_text(_TOKENIZER)
    return texts[0] is not None and texts[0] == texts[1]


def _read(side: Checkpoint) -> _Vocabulary | None:
    data = side.read_json(_TOKENIZER)
    if data is None:
        return None
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        ids = {str(token): int(number) for token, number in vocabulary.items()}
    else:
        ids = {str(entry[0]): i for i, entry in enumerate(vocabulary or ())}
    added = {str(token.get("content")): int(token.get("id", -1)) for token in data.get("added_tokens") or ()}
    return _Vocabulary(ids | added, frozenset(added))
