"""Writing the family manifest: what was built, from what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import dami_merge
from dami_merge.build.build_plan import Plan, VariantPlan
from dami_merge.build.companions import Companions
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.files.hashing import InputHashes
from dami_merge.recipes.recipe import Recipe
from dami_router.manifest.family import CreatedWith, Endpoint, Endpoints, Family, Variant

__all__ = ["Finished", "describe_endpoint", "make_manifest"]

_SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Finished:
    """A finished variant: its plan, its small files, and the hash of every file."""

    plan: VariantPlan
    companions: Companions
    files: Mapping[str, str]


def make_manifest(
    recipe: Recipe,
    plan: Plan,
    endpoints: Endpoints,
    finished: Sequence[Finished],
    before: Family | None,
    *,
    custom_code: Literal["left out", "carried"] | None = None,
) -> Family:
    """Describe the finished variants; what was measured or pushed of an unchanged one is kept from `before`."""
    old = {variant.id: variant for variant in before.variants} if before else {}
    return Family(
        schema_version=1,
        name=plan.name,
        created_with=CreatedWith(tool="dami-merge", version=dami_merge.__version__),
        endpoints=endpoints,
        path=plan.path,
        recipe=recipe.document.source,
        custom_code=custom_code,
        variants=[_variant(item, old.get(item.plan.id)) for item in finished],
    )


def describe_endpoint(side: Checkpoint, hashes: InputHashes) -> Endpoint:
    """Describe one endpoint with the hashes of its weights and of the small files that matter."""
    assert side.folder is not None
    files = {info.file for info in side.tensors.values()}
    files |= {name for name in _SMALL if (side.folder / name).is_file()}
    sizes: Counter[str] = Counter()
    for info in side.tensors.values():
        sizes[info.dtype] += info.nbytes
    return Endpoint(
        source=str(side.ref),
        commit=side.commit,
        architecture=str((side.config.get("architectures") or ["unknown"])[0]),
        parameters=side.parameters,
        dtype=sizes.most_common(1)[0][0] if sizes else "unknown",
        files=hashes.all(files),
    )


def _variant(item: Finished, old: Variant | None) -> Variant:
    files = dict(sorted(item.files.items()))
    same = old is not None and old.files == files
    return Variant(
        id=item.plan.id,
        **{"lambda": item.plan.lambda_},
        resolved=list(item.plan.resolved),
        folder=item.plan.id,
        files=files,
        chat_template=item.companions.chat_template,
        sampling=item.companions.sampling,
        hub=old.hub if same and old else None,
        measured=old.measured if same and old else [],
    )
