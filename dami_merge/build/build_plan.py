"""What a build will make: the variants, λ for every tensor of each, and the shard files.

Everything here follows from the recipe and the endpoints' headers alone; `dami verify` makes
the same plan again from a manifest and compares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from dami_merge.build.layout import ITEMSIZE, Kind, Shard, plan_shards
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.matching import Matching, match
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.interpolation.depth import Anatomy
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import CheckpointError, MisuseError, RecipeError
from dami_router.manifest.family import LambdaGroup, PathChoice

__all__ = ["Plan", "TensorSource", "VariantPlan", "make_plan", "variant_id"]

_SPELLING = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_EXPERT = re.compile(r"^(.*)\.experts\.\d+\.(gate_proj|up_proj|down_proj|w[123])\.weight$")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor's elements lie in both endpoints, and the tensor whose λ it takes.

    `compute` is the dtype to compute in, None for a buffer that is copied.
    """

    instruct: TensorView
    thinking: TensorView
    compute: str | None
    placed_as: str

    @property
    def views(self) -> Sides[TensorView]:
        """Both endpoints' views of it."""
        return Sides(self.instruct, self.thinking)


@dataclass(frozen=True)
class VariantPlan:
    """One variant: its scalar λ, and λ for every tensor that it stores."""

    id: str
    lambda_: float
    tensors: Mapping[str, float]
    resolved: tuple[LambdaGroup, ...]
    thinking_template: bool


@dataclass(frozen=True)
class Plan:
    """A whole family. `untied` says that variants have a head of their own, whatever Instruct's config says."""

    name: str
    path: str | list[PathChoice]
    variants: tuple[VariantPlan, ...]
    shards: tuple[Shard, ...]
    sources: Mapping[str, TensorSource]
    untied: bool

    @property
    def dtype(self) -> str:
        """The dtype of most elements that a variant stores."""
        count: Counter[str] = Counter()
        for shard in self.shards:
            for tensor in shard.tensors:
                count[tensor.dtype] += tensor.elements
        return count.most_common(1)[0][0]

    @property
    def variant_bytes(self) -> int:
        """Size of one variant's weight files."""
        return sum(shard.size for shard in self.shards)


def make_plan(recipe: Recipe, instruct: Checkpoint, thinking: Checkpoint, *, max_shard_size: int | None = None) -> Plan:
    """Plan the recipe's family, or its one variant where it has no `family:` block."""
    _refuse_foreign_keys(recipe)
    matching = match(instruct, thinking, recipe.only_instruct)
    sources = _sources(recipe, matching, instruct, thinking)
    kinds = {name: Kind(_stored(recipe, source), source.instruct.shape) for name, source in sources.items()}
    anatomy = Anatomy.of(instruct.tensors, instruct.config)
    _check_slices(recipe, anatomy)
    name = recipe.family.name if recipe.family else _stem(recipe)
    variants = _family_variants(recipe, sources, anatomy) or (_one_variant(recipe, name, sources, anatomy),)
    shards = plan_shards(instruct, kinds, max_shard_size)
    return Plan(name, _path(recipe), variants, shards, sources, matching.untied)


def variant_id(name: str, lambda_: float) -> str:
    """Return `{name}-l040` for λ=0.40: two decimals, more only where λ has more."""
    digits = format(Decimal(repr(float(lambda_))), "f").replace(".", "").rstrip("0") or "0"
    return f"{name}-l{digits.ljust(3, '0')}"


def _family_variants(recipe: Recipe, sources: Mapping[str, TensorSource], anatomy: Anatomy) -> tuple[VariantPlan, ...]:
    family = recipe.family
    if family is None:
        return ()
    made = []
    for lambda_ in family.lambdas:
        values = {n: family.lambda_at(lambda_, n, anatomy.place(n)) for n in _named(sources)}
        made.append(
            VariantPlan(
                variant_id(family.name, lambda_),
                lambda_,
                _spread(values, sources),
                _groups(values | _alone(sources), anatomy),
                lambda_ >= family.thinking_template_from,
            )
        )
    return tuple(made)


def _one_variant(recipe: Recipe, name: str, sources: Mapping[str, TensorSource], anatomy: Anatomy) -> VariantPlan:
    recipe.check_layers(anatomy)
    values = {n: recipe.lambda_for(n, anatomy) for n in _named(sources)}
    for n in values:
        _same_when_fused(recipe, n, values[n], anatomy)
    distinct = set(values.values())
    if len(distinct) == 1:
        (mean,) = distinct
    else:
        every = _spread(values, sources)
        sizes = {n: s.instruct.elements for n, s in sources.items() if s.compute and not s.thinking.absent}
        mean = round(sum(every[n] * size for n, size in sizes.items()) / max(sum(sizes.values()), 1), 6)
    scalar = len(distinct) == 1 and 0.0 <= mean <= 1.0
    tensors, groups = _spread(values, sources), _groups(values | _alone(sources), anatomy)
    return VariantPlan(variant_id(name, mean) if scalar else name, mean, tensors, groups, False)


def _same_when_fused(recipe: Recipe, name: str, lambda_: float, anatomy: Anatomy) -> None:
    # mergekit joins the experts of a layer into `experts.gate_up_proj` and `experts.down_proj` and
    # resolves λ for those names; a filter that tells experts apart would mean two things.
    if match := _EXPERT.match(name):
        part = "down_proj" if match[2] in ("down_proj", "w2") else "gate_up_proj"
        fused = f"{match[1].replace('block_sparse_moe', 'mlp')}.experts.{part}"
        if recipe.lambda_for(fused, anatomy) != lambda_:
            raise recipe.document.error(
                ("parameters", "lambda"),
                f"`{name}` gets λ={lambda_:g} here, but mergekit joins experts into `{fused}` and gives that"
                f" λ={recipe.lambda_for(fused, anatomy):g}",
                hint="use a filter that matches both names or neither, such as `mlp.experts` or `self_attn`",
            )


def _named(sources: Mapping[str, TensorSource]) -> list[str]:
    # A stored head of a tied pair is the embeddings once more, and goes with them; Instruct's alone has no λ.
    return [n for n, source in sources.items() if source.placed_as == n and not source.thinking.absent]


def _alone(sources: Mapping[str, TensorSource]) -> dict[str, float]:
    return {name: 0.0 for name, source in sources.items() if source.thinking.absent}


def _spread(values: Mapping[str, float], sources: Mapping[str, TensorSource]) -> dict[str, float]:
    return {name: values.get(source.placed_as, 0.0) for name, source in sources.items()}


def _sources(recipe: Recipe, matching: Matching, instruct: Checkpoint, thinking: Checkpoint) -> dict[str, TensorSource]:
    sources = {}
    for name, found in matching.tensors.items():
        a, b = found.instruct, found.thinking
        for side, view in ((instruct, a), (thinking, b)):
            if view.dtype not in ITEMSIZE:
                raise CheckpointError(f"{side.ref}: `{name}` is {view.dtype}, which cannot be interpolated or copied")
        compute = None
        if a.floating:
            compute = _SPELLING[recipe.dtype] if recipe.dtype else _promoted(a.dtype, b.dtype)
        sources[name] = TensorSource(a, b, compute, found.placed_as)
    return sources


def _promoted(a: str, b: str) -> str:
    if a == b:
        return a
    # Neither of bf16 and fp16 holds the other: torch and mergekit promote the two to fp32.
    return "F64" if "F64" in (a, b) else "F32"


def _stored(recipe: Recipe, source: TensorSource) -> str:
    if source.compute is None:
        return source.instruct.dtype
    return _SPELLING[recipe.out_dtype] if recipe.out_dtype else source.compute


def _groups(values: Mapping[str, float], anatomy: Anatomy) -> tuple[LambdaGroup, ...]:
    from dami_merge.recipes.explanation import grouped

    return tuple(LambdaGroup.model_validate(group.as_dict()) for group in grouped(dict(values), anatomy))


def _path(recipe: Recipe) -> str | list[PathChoice]:
    if recipe.family is None:
        return "recipe"
    raw = recipe.document.data["family"].get("path", "uniform")
    if isinstance(raw, dict):
        raw = [raw]
    return [PathChoice.model_validate(item) for item in raw] if isinstance(raw, list) else str(raw)


def _stem(recipe: Recipe) -> str:
    name = _NOT_IN_NAME.sub("-", Path(recipe.document.name).stem).strip("-._")
    return name[:96] or "variant"


def _refuse_foreign_keys(recipe: Recipe) -> None:
    document = recipe.document
    if document.data.get("chat_template") is not None:
        raise document.error(
            ("chat_template",), "mergekit's own key; `dami build` takes a template from an endpoint",
            hint="write `chat_template: instruct`, `thinking` or `from(0.5)` inside `family:`, or use mergekit-yaml",
        )  # fmt: skip
    for key in ("tokenizer", "tokenizer_source"):
        raw = document.data.get(key)
        if raw not in (None, "base", {"source": "base"}):
            raise document.error(
                (key,), "`dami build` keeps Instruct's tokenizer and vocabulary",
                hint=f"leave `{key}` out (or say `base`), or use mergekit-yaml, which can change vocabularies",
            )  # fmt: skip


def _check_slices(recipe: Recipe, anatomy: Anatomy) -> None:
    if not recipe.slices:
        return
    layers = [[tuple(source["layer_range"]) for source in part["sources"]] for part in recipe.document.data["slices"]]
    position = 0
    for i, (ours, theirs) in enumerate(layers):
        if ours != theirs or ours[0] != position:
            raise _moved_layers(recipe, i, anatomy)
        position = ours[1]
    if position != anatomy.layers:
        raise _moved_layers(recipe, len(layers) - 1, anatomy)


def _moved_layers(recipe: Recipe, index: int, anatomy: Anatomy) -> RecipeError:
    return recipe.document.error(
        ("slices", index),
        f"`dami build` keeps all {anatomy.layers} layers in their order, the same in both endpoints",
        hint="slices that leave out, repeat or shift layers are for mergekit-yaml (or `dami merge`)",
    )


def check_lambda_choice(plan: Plan, wanted: tuple[float, ...]) -> tuple[VariantPlan, ...]:
    """Return the variants that `--only` names; all where it names none."""
    if not wanted:
        return plan.variants
    chosen = []
    for value in wanted:
        near = [v for v in plan.variants if abs(v.lambda_ - value) < 1e-9]
        if not near:
            known = ", ".join(f"{v.lambda_:g}" for v in plan.variants)
            raise MisuseError(f"--only {value:g}: the recipe has no such variant", hint=f"its λ: {known}")
        chosen += near
    return tuple(v for v in plan.variants if v in chosen)
