"""Whether two endpoints fit together: what `dami check` finds, from configs and headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.config_comparison import differing_settings
from dami_merge.checkpoints.custom_code import compare_code
from dami_merge.checkpoints.findings import Finding, few
from dami_merge.checkpoints.fp8 import is_fp8, unreadable_quantisation
from dami_merge.checkpoints.kinship import relative_distance
from dami_merge.checkpoints.matching import Matching, match, shares_head
from dami_merge.checkpoints.templates import opens_think, template_of
from dami_merge.checkpoints.tying import heads
from dami_merge.checkpoints.vocabulary import compare_rows, compare_tokens

__all__ = ["Finding", "compare"]

_UNRELATED = 0.9  # two independent initialisations lie near √2, fine-tunes of one base well below 0.5


def compare(
    instruct: Checkpoint, thinking: Checkpoint, *, dtype: str | None = None, only_instruct: Sequence[str] = ()
) -> list[Finding]:
    """Return everything that speaks against merging the two endpoints, errors first.

    `dtype` is the recipe's own, which settles endpoints of different dtypes; `only_instruct` are its
    filters for parts that Thinking lacks.
    """
    matching = match(instruct, thinking, only_instruct)
    found = [
        *_architecture(instruct, thinking),
        *_quantised(instruct),
        *_quantised(thinking),
        *_tensors(matching, dtype),
        *_alone(matching, only_instruct),
        *_head(matching, instruct, thinking),
        *_vocabulary(matching, instruct, thinking),
        *compare_code(instruct),
    ]
    if not found or all(f.severity == "warning" for f in found):
        found += [*_roles(instruct, thinking), *_kinship(instruct, thinking)]
    return sorted(found, key=lambda f: f.severity)


def _architecture(instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    for key in ("architectures", "model_type"):
        a, b = instruct.config.get(key), thinking.config.get(key)
        if a != b:
            yield Finding(
                "error", "architecture",
                f"{key} differ: instruct has {_short(a)}, thinking {_short(b)}; expected one architecture",
            )  # fmt: skip
            return
    for found in differing_settings(instruct.config, thinking.config):
        text = (
            f"config.json: {found.place} differs: {_short(found.instruct)} in instruct,"
            f" {_short(found.thinking)} in thinking"
        )
        if found.of_heads:
            yield Finding(
                "error", "heads", text, "the same rows are other heads there: take two fine-tunes of one base"
            )
        else:
            yield Finding(
                "warning", "config", text,
                "every variant gets Instruct's config, so Thinking's weights run with Instruct's value at λ = 1 too",
            )  # fmt: skip


def _quantised(side: Checkpoint) -> Iterator[Finding]:
    method = unreadable_quantisation(side)
    if method is not None:
        yield Finding(
            "error", "quantised",
            f"{side.ref} is quantised ({method}); quantised weights cannot be interpolated",
            "start from the unquantised checkpoint and quantise the variants afterwards",
        )  # fmt: skip
    elif is_fp8(side):
        yield Finding(
            "warning", "fp8",
            f"{side.ref} is stored in fp8: `dami build` reads it as bf16 with its scales; variants are unquantised",
            "mergekit-yaml would interpolate the fp8 numbers without their scales: use `dami build`",
            tool="dami build",
        )  # fmt: skip


def _tensors(matching: Matching, dtype: str | None) -> Iterator[Finding]:
    for side, missing in (("thinking", matching.thinking_lacks), ("instruct", matching.instruct_lacks)):
        if missing:
            yield Finding("error", "names", f"{side} lacks {len(missing)} tensors: {few(list(missing))}")
    both = list(matching.tensors)
    a = {name: found.instruct for name, found in matching.tensors.items()}
    b = {name: found.thinking for name, found in matching.tensors.items()}
    shapes = [n for n in both if a[n].shape != b[n].shape]
    if shapes:
        n = shapes[0]
        yield Finding(
            "error", "shapes",
            f"{len(shapes)} tensors differ in shape, first `{n}`: {list(a[n].shape)} in instruct,"
            f" {list(b[n].shape)} in thinking",
        )  # fmt: skip
    dtypes = [n for n in both if a[n].dtype != b[n].dtype]
    mixed = [n for n in dtypes if a[n].floating != b[n].floating]
    if mixed:
        n = mixed[0]
        yield Finding("error", "dtypes", f"`{n}` is {a[n].dtype} in instruct, {b[n].dtype} in thinking")
    elif dtypes and dtype is None:
        n = dtypes[0]
        yield Finding(
            "warning", "dtypes",
            f"{len(dtypes)} tensors differ in dtype, first `{n}`: {a[n].dtype} in instruct, {b[n].dtype} in thinking",
            "write `dtype: bfloat16` into the recipe, or the wider dtype is used",
        )  # fmt: skip


def _alone(matching: Matching, only_instruct: Sequence[str]) -> Iterator[Finding]:
    names = list(matching.only_instruct)
    if names:
        yield Finding(
            "warning", "only_instruct",
            f"{len(names)} tensors are Instruct's alone and the same at every λ, such as {few(names)}",
            "`only_instruct:` is for `dami build`; mergekit-yaml ignores it, and drops such tensors or stops at them",
            tool="dami build",
        )  # fmt: skip
    for text in only_instruct:
        if not any(text in name for name in names):
            yield Finding(
                "warning",
                "filter_unused",
                f"`only_instruct: {text}` names no tensor that Thinking lacks",
                "leave it out",
            )


def _head(matching: Matching, instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    for head in heads(matching.tensors):
        sides = {"instruct": instruct, "thinking": thinking}
        tied = [name for name, side in sides.items() if shares_head(side, head)]
        if len(tied) == 1:
            other = next(name for name in sides if name not in tied)
            yield Finding(
                "warning", "tied_embeddings",
                f"{tied[0]} ties its head to the embeddings, {other} does not: the variants store `{head}` and say"
                " tie_word_embeddings: false",
                "mergekit-yaml keeps Instruct's config; where that ties them, vLLM and Transformers before 5 would"
                " drop the merged head: use `dami build`",
            )  # fmt: skip


def _vocabulary(matching: Matching, instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    tokens = list(compare_tokens(instruct, thinking))
    yield from tokens
    if matching.rows and not any(finding.severity == "error" for finding in tokens):
        yield compare_rows(matching.rows, instruct, thinking)


def _roles(instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    if _thinks(instruct) and not _thinks(thinking):
        yield Finding(
            "warning", "swapped",
            "the endpoints look swapped: base_model is the one that thinks",
            "base_model is Instruct (λ = 0); the other one Thinking (λ = 1)",
        )  # fmt: skip


def _thinks(side: Checkpoint) -> bool:
    name = str(side.ref).rstrip("/").rsplit("/", 1)[-1].lower()
    if "instruct" in name or "thinking" in name:
        return "thinking" in name
    # The Thinking-2507 templates open the block in the prompt itself; a hybrid's opens and closes it on demand.
    return opens_think(template_of(side))


def _kinship(instruct: Checkpoint, thinking: Checkpoint) -> Iterator[Finding]:
    weights = {n: t.file for n, t in instruct.tensors.items() if t.floating}
    if _same_files(instruct, thinking):
        yield _identical()
        return
    distance = relative_distance(instruct, thinking, weights)
    if distance is None:
        return
    if distance == 0.0:
        yield _identical()
    elif distance > _UNRELATED:
        yield Finding(
            "warning", "unrelated",
            f"the endpoints hardly share an ancestor: their weights differ by {distance:.2f} of their own size",
            "interpolating unrelated models gives a broken one; two fine-tunes of one base differ far less",
        )  # fmt: skip


def _identical() -> Finding:
    return Finding(
        "error", "identical", "the endpoints have the same weights: every λ gives the same model",
        "name the Thinking checkpoint beside the Instruct one",
    )  # fmt: skip


def _same_files(instruct: Checkpoint, thinking: Checkpoint) -> bool:
    a, b = instruct.file_hashes or {}, thinking.file_hashes or {}
    files = {t.file for t in instruct.tensors.values()}
    return bool(a) and all(a.get(f) and a.get(f) == b.get(f) for f in files)


def _short(value: object) -> str:
    return "absent" if value is None else str(value)[:80]
