"""The key `estimator` of router.yml: the estimators in order, with their settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dami_router.config.router_schema import ConfidenceSettings, EstimatorLink, EstimatorSection, ShadowSection
from dami_router.errors import DamiError
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.chain import Chain
from dami_router.estimators.confidence import Confidence
from dami_router.estimators.effort import EFFORTS, Effort
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.fixed import Fixed
from dami_router.estimators.installed import installed, named
from dami_router.shared.strict_model import Wrong
from dami_router.shared.strict_yaml import Key, advice_on_key

__all__ = ["read_chain"]


def read_chain(
    section: EstimatorSection | ShadowSection | None, folder: Path, key: Literal["estimator", "shadow"] = "estimator"
) -> Chain:
    """Return the chain of the section under `key`; files are looked for in `folder`. Raises Wrong."""
    section = section or EstimatorSection(chain=("effort",))
    chain, name = (section.estimator, "estimator") if isinstance(section, ShadowSection) else (section.chain, "chain")
    written = [EstimatorLink.model_validate({one: None} if isinstance(one, str) else one) for one in chain or ()]
    links = {(key, name, i, link.name): link for i, link in enumerate(written)}
    measured = {
        place: _confidence(place, link.confidence or ConfidenceSettings(), folder)
        for place, link in links.items()
        if link.name == "confidence"
    }
    # A trained estimator may need confidence: it has the chain's, and shares its cache.
    asks = replace(next(iter(measured.values()), Confidence()), form="instruct", map=None)
    made = tuple(measured.get(place) or _estimator(place, link, folder, asks) for place, link in links.items())
    return Chain(made, Fixed(section.fixed), section.timeout)


def _estimator(place: Key, link: EstimatorLink, folder: Path, asks: Confidence) -> Estimator:
    known = [*EstimatorLink.model_fields, *installed()]
    if link.name not in known:
        raise Wrong(place, "no estimator of this name is installed", advice_on_key(link.name, known))
    if link.name == "effort":
        return Effort({**EFFORTS, **dict((link.effort or {}).items())})
    with _at(place):
        if link.name != "trained":
            return named(link.name, **link.options)
        if link.trained is None:
            raise Wrong(place, "is missing", "name its folder: `trained: FOLDER`")
        return named(str(folder / link.trained), asks=asks)


def _confidence(place: Key, settings: ConfidenceSettings, folder: Path) -> Confidence:
    with _at((*place, "map")):
        mapped = CalibratedMap.load(folder / settings.map) if settings.map else None
    tokens = settings.tokens or (mapped.tokens if mapped else Confidence.tokens)
    if mapped is not None and mapped.tokens != tokens:
        raise Wrong((*place, "tokens"), f"the map was fitted with probes of {mapped.tokens} tokens, found {tokens}")
    if mapped is not None and settings.form != "auto" and settings.form not in mapped.scores:
        known = ", ".join(mapped.scores)
        raise Wrong(
            (*place, "form"), f"the map has no scores of {settings.form}, only of {known}", "calibrate with this form"
        )
    return Confidence(settings.form, tokens, mapped, settings.timeout, settings.cache)


@contextmanager
def _at(place: Key) -> Iterator[None]:
    """Give an error about an estimator's files the place that names them."""
    try:
        yield
    except DamiError as error:
        raise Wrong(place, error.message, error.hint) from None
