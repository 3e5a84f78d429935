"""The collection of a family: its variants in the order of λ, each with a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dami_merge.hub.push_plan import PushPlan
from dami_router.manifest.family import Variant

if TYPE_CHECKING:
    from huggingface_hub import Collection, HfApi

__all__ = ["bring_collection", "note_of"]

_MAX_NOTE = 500
_MAX_DESCRIPTION = 150
_MAX_TITLE = 60


def bring_collection(api: HfApi, plan: PushPlan) -> str:
    """Make the family's collection, or add to it what it lacks; nothing is taken out. Returns its slug."""
    collection = _find(api, plan) or _create(api, plan)
    there = {item.item_id: item for item in collection.items if item.item_type == "model"}
    for target in sorted(plan.variants, key=lambda t: t.variant.lambda_ if t.variant else 0.0):
        assert target.variant is not None
        note, item = note_of(target.variant), there.get(target.repo)
        if item is None:
            api.add_collection_item(collection.slug, target.repo, "model", note=note, exists_ok=True)
        elif item.note != note:
            api.update_collection_item(collection.slug, item.item_object_id, note=note)
    return collection.slug


def note_of(variant: Variant) -> str:
    """Return a variant's note: λ, and what was measured."""
    measured = [f"{m.benchmark}: {m.accuracy:.1%} at {m.mean_tokens:,.0f} tokens" for m in variant.measured]
    ends = {0.0: " (the Instruct endpoint)", 1.0: " (the Thinking endpoint)"}
    return "; ".join([f"λ = {variant.lambda_:g}{ends.get(variant.lambda_, '')}", *measured])[:_MAX_NOTE]


def _title(plan: PushPlan) -> str:
    assert plan.collection is not None
    return plan.collection[:_MAX_TITLE]


def _find(api: HfApi, plan: PushPlan) -> Collection | None:
    for found in api.list_collections(owner=plan.options.namespace):
        if found.title == _title(plan):
            # Lists show the first items of a collection only.
            return api.get_collection(found.slug)
    return None


def _create(api: HfApi, plan: PushPlan) -> Collection:
    ends = plan.family.endpoints
    names = [end.source.partition("@")[0].rstrip("/").split("/")[-1] for end in (ends.instruct, ends.thinking)]
    description = f"Between {names[0]} (λ=0) and {names[1]} (λ=1): the larger λ, the more thinking. Made with dami."
    return api.create_collection(
        _title(plan), namespace=plan.options.namespace, description=description[:_MAX_DESCRIPTION],
        private=plan.options.private, exists_ok=True,
    )  # fmt: skip
