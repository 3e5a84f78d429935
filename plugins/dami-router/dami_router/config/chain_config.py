"""The section `estimator` of router.yml: which estimators are asked, in which order, with which settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from dami_router.errors import DamiError, RecipeError
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.chain import Chain
from dami_router.estimators.confidence import CHOICES, Choice, Confidence
from dami_router.estimators.effort import EFFORTS, Effort
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.fixed import Fixed
from dami_router.estimators.installed import installed, named
from dami_router.shared.section import Section

__all__ = ["effort_table", "read_chain"]

_OURS = ("effort", "confidence", "trained")


def read_chain(top: Section, folder: Path) -> Chain:
    """Read the chain; files are looked for in `folder`. Raises RecipeError with file and line."""
    if not top.has("estimator"):
        return Chain((Effort(),), Fixed(0.5))
    section = top.section("estimator")
    section.only("chain", "fixed", "timeout")
    entries = section.data.get("chain") or []
    if not isinstance(entries, list):
        raise section.error("chain", "expected a list of estimators", "for one: `chain: [effort]`")
    links = [_entry(section, i, entry) for i, entry in enumerate(entries)]
    sure = {link.place: _confidence(link, folder) for link in links if "confidence" in link.data}
    asks = next(iter(sure.values()), Confidence())
    chain = tuple(sure.get(link.place) or _link(link, folder, asks) for link in links)
    return Chain(chain, Fixed(section.number("fixed", 0.5, 0.0, 1.0)), section.number("timeout", 0.5, 0.001))


def _entry(section: Section, index: int, entry: Any) -> Section:
    """One link of the chain: its name alone, or `name: settings`."""
    place = (*section.place, "chain", index)
    data = {entry: None} if isinstance(entry, str) else entry
    if not isinstance(data, dict) or len(data) != 1:
        raise section.document.error(place, "expected the name of an estimator, or `name: settings`")
    return Section(section.document, place, data)


def _link(link: Section, folder: Path, asks: Confidence) -> Estimator:
    """Make one estimator; `asks` gives a trained one the Instruct endpoint's confidence if it was trained with it."""
    strangers = [name for name in installed() if name not in _OURS]
    link.only(*_OURS, *strangers, problem="no estimator of this name is installed")
    (name,) = link.data
    try:
        if name == "trained":
            return named(str(folder / link.text("trained")), asks=replace(asks, form="instruct", map=None))
        if name in strangers:
            return named(name, **link.section(name).data if link.has(name) else {})
    except DamiError as error:
        if isinstance(error, RecipeError):
            raise
        raise link.error(name, error.message, error.hint) from None
    return Effort(effort_table(link, "effort", 0.0)) if link.has("effort") else Effort()


def _confidence(link: Section, folder: Path) -> Confidence:
    if not link.has("confidence"):
        return Confidence()
    section = link.section("confidence")
    section.only("form", "tokens", "map", "timeout", "cache")
    plain = Confidence()
    form = cast(Choice, section.choice("form", CHOICES, plain.form))
    try:
        mapped = CalibratedMap.load(folder / section.text("map")) if section.has("map") else None
    except DamiError as error:
        if isinstance(error, RecipeError):
            raise
        raise section.error("map", error.message, error.hint) from None
    tokens = section.whole("tokens", mapped.tokens if mapped else plain.tokens, 1)
    if tokens > 1024:
        raise section.error("tokens", f"expected at most 1024, found {tokens}")
    if mapped is not None and mapped.tokens != tokens:
        raise section.error("tokens", f"the map was fitted with probes of {mapped.tokens} tokens, found {tokens}")
    if mapped is not None and form != "auto" and form not in mapped.scores:
        known = ", ".join(mapped.scores)
        raise section.error("form", f"the map has no scores of {form}, only of {known}", "calibrate with this form")
    timeout = section.number("timeout", plain.timeout, 0.001)
    return Confidence(form, tokens, mapped, timeout, section.whole("cache", plain.cache))


def effort_table(section: Section, key: str, low: float) -> dict[str, float]:
    """Read a table from effort to a number in [`low`, 1]; missing efforts have our values where `low` is 0."""
    table = section.section(key)
    table.only(*EFFORTS)
    given = {effort: table.number(effort, None, low, 1.0) for effort in table.data}
    return given if low < 0 else {**EFFORTS, **given}
