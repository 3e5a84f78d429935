"""The keys `family` and `variants` of router.yml: which variants there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dami_router.choosing.policy import Figures
from dami_router.config.router_schema import RouterFile, VariantEntry
from dami_router.config.specs import VariantSpec
from dami_router.manifest.family import Family, Variant
from dami_router.manifest.pair import PairSpec
from dami_router.manifest.published import open_family
from dami_router.messages.pinning import LIVE
from dami_router.shared.strict_model import Wrong

__all__ = ["of_family", "read_variants"]

Variants = tuple[str, tuple[VariantSpec, ...], PairSpec | None]


def read_variants(file: RouterFile, folder: Path) -> Variants:
    """Return the family's name, its variants, and the pair of endpoints if a manifest names it.

    A relative family is looked for in `folder`. Raises Wrong, and what `open_family` raises.
    """
    if (file.family is None) != (file.variants is None):
        return _family(file.family, folder) if file.family else ("dami", _listed(file.variants or ()), None)
    if file.family is None and file.backends and all(backend.protocol == LIVE for backend in file.backends):
        return "dami", (), None
    raise Wrong((), "expected either `family` or a list of `variants`", "`family: ./OUT` names a built family")


def _family(place: str, folder: Path) -> Variants:
    local = folder / place
    family = open_family(local if local.exists() or place.startswith((".", "/")) else place)
    if not family.variants:
        raise Wrong(("family",), f"the family {family.name} has no variants", "build it to its end")
    return of_family(family)


def of_family(family: Family) -> Variants:
    """Return what a manifest gives: the family's name, its variants, and its pair of endpoints."""
    return family.name, tuple(map(_spec, family.variants)), PairSpec.of(family)


def _spec(variant: Variant) -> VariantSpec:
    names = {variant.id, variant.folder} | ({variant.hub.repo} if variant.hub else set())
    figures = {m.benchmark: Figures(m.accuracy, m.mean_tokens, m.n) for m in variant.measured}
    revision = variant.hub.revision if variant.hub else None
    opens_think = variant.chat_template.opens_think
    return VariantSpec(variant.id, variant.lambda_, frozenset(names), revision, opens_think, figures)


def _listed(entries: Sequence[VariantEntry]) -> tuple[VariantSpec, ...]:
    """Return the variants sorted by λ."""
    found: dict[str, VariantSpec] = {}
    for i, entry in enumerate(entries):
        place = ("variants", i, "id")
        if entry.id == LIVE:
            raise Wrong(place, f"`{LIVE}` stands for live servers", "give the variant another id")
        if entry.id in found:
            raise Wrong(place, f"two variants are called {entry.id}")
        found[entry.id] = VariantSpec(entry.id, entry.lambda_, frozenset({entry.id}), opens_think=entry.opens_think)
    return tuple(sorted(found.values(), key=lambda variant: (variant.lambda_, variant.id)))
