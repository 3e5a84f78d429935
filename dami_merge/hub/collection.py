"""The collection of a family: its variants in the order of λ, each with a note.

Found by its title, or by the family's mark in its description where someone changed the title.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Names
from typing import TYPE_CHECKING

from dami_merge.card.endpoint_ids import endpoint_name
from dami_merge.hub.push_plan import PushPlan, PushTarget
from dami_router.errors import FailureError
from dami_router.manifest.family import Variant
from dami_router.manifest.published import read_manifest

if TYPE_CHECKING:
    from huggingface_hub import Collection, CollectionItem, HfApi

__all__ = ["bring_collection", "find_collection", "note_of"]

# Limits: `HfApi.create_collection` and `add_collection_item`.
_MAX_NOTE = 500
_MAX_DESCRIPTION = 150


def find_collection(api: HfApi, plan: PushPlan, private: bool) -> Collection | None:
    """Return the family's collection with all of its items; None where there is none.

    Raises FailureError where it is public and the repositories are private: it would list them.
    """
    mark = _mark(plan)
    listed = list(api.list_collections(owner=plan.options.namespace))
    marked = [found for found in listed if mark in (found.description or "")]
    found = next(iter(marked or [found for found in listed if found.title == plan.collection]), None)
    if found is None:
        return None
    if private and not found.private:
        raise FailureError(
            f"collection {found.slug}: is public, and would list private repositories",
            hint="make it private in its settings on the Hub, or push with --no-collection",
        )
    # A list shows the first items of a collection only.
    return api.get_collection(found.slug)


def bring_collection(api: HfApi, plan: PushPlan, found: Collection | None, private: bool) -> tuple[str, list[str]]:
    """Make the collection list the family's variants, in order; items of other families stay.

    Returns its slug, and the repositories of this family that it no longer lists.
    """
    collection = found or _create(api, plan, private)
    repos = {target.repo.lower() for target in plan.variants}
    departed = [item for item in _models(collection) if _departed(api, plan, item, repos)]
    there = {item.item_id.lower(): item for item in _models(collection)}
    for target in _in_order(plan):
        assert target.variant is not None
        note, item = note_of(target.variant), there.get(target.repo.lower())
        if item is None:
            api.add_collection_item(collection.slug, target.repo, "model", note=note, exists_ok=True)
        elif item.note != note:
            api.update_collection_item(collection.slug, item.item_object_id, note=note)
    for item in departed:
        api.delete_collection_item(collection.slug, item.item_object_id, missing_ok=True)
    if departed or not repos <= set(there) or not _ordered(plan, collection):
        _sort(api, plan, api.get_collection(collection.slug))
    return collection.slug, [item.item_id for item in departed]


def note_of(variant: Variant) -> str:
    """Return a variant's note: λ, and what was measured."""
    measured = [f"{m.benchmark}: {m.accuracy:.1%} at {m.mean_tokens:,.0f} tokens" for m in variant.measured]
    ends = {0.0: " (the Instruct endpoint)", 1.0: " (the Thinking endpoint)"}
    return "; ".join([f"λ = {variant.lambda_:g}{ends.get(variant.lambda_, '')}", *measured])[:_MAX_NOTE]


def _departed(api: HfApi, plan: PushPlan, item: CollectionItem, repos: Names[str]) -> bool:
    """Whether an item is an earlier variant of this family that the manifest no longer has."""
    from huggingface_hub.errors import HfHubHTTPError

    owner = item.item_id.split("/")[0]
    if item.item_id.lower() in repos or owner.lower() != plan.options.namespace.lower():
        return False
    try:
        read = read_manifest(api, item.item_id)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        return False  # cannot be seen: not ours to take out
    return read is not None and read[0].name == plan.family.name


def _ordered(plan: PushPlan, collection: Collection) -> bool:
    wanted = [target.repo.lower() for target in _in_order(plan)]
    return [item.item_id.lower() for item in _models(collection) if item.item_id.lower() in wanted] == wanted


def _sort(api: HfApi, plan: PushPlan, collection: Collection) -> None:
    if _ordered(plan, collection):
        return
    there = {item.item_id.lower(): item for item in _models(collection)}
    for position, target in enumerate(_in_order(plan)):
        api.update_collection_item(
            collection.slug, there[target.repo.lower()].item_object_id, position=position
        )  # fmt: skip


def _in_order(plan: PushPlan) -> list[PushTarget]:
    return sorted(plan.variants, key=lambda t: t.variant.lambda_ if t.variant else 0.0)


def _models(collection: Collection) -> list[CollectionItem]:
    return [item for item in collection.items if item.item_type == "model"]


def _mark(plan: PushPlan) -> str:
    whole = f"{plan.options.namespace}/{plan.family.name}".lower()
    return f"(dami family {hashlib.sha256(whole.encode()).hexdigest()[:8]})"


def _create(api: HfApi, plan: PushPlan, private: bool) -> Collection:
    assert plan.collection is not None
    ends = plan.published.endpoints
    names = [endpoint_name(end).split("/")[-1] for end in (ends.instruct, ends.thinking)]
    mark = _mark(plan)
    text = f"From {names[0]} (λ=0) to {names[1]} (λ=1): the larger λ, the more thinking."
    return api.create_collection(
        plan.collection, namespace=plan.options.namespace, private=private, exists_ok=True,
        description=f"{text[: _MAX_DESCRIPTION - len(mark) - 1]} {mark}",
    )  # fmt: skip
