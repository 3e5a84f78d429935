"""`router.yml`: which variants there are, where they are served, and how to choose between them.

Read strictly: an unknown key, a wrong type or a number out of range is an error with file, line
and advice. Keys are read from environment variables that the file names; no secret stands in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar, cast

from dami_router.choosing.policy import RULES, Figures, Rule
from dami_router.config.backend_config import read_backends, secret
from dami_router.config.chain_config import effort_table, read_chain
from dami_router.config.specs import (
    BackendSpec,
    BreakerSpec,
    BudgetSpec,
    Limits,
    PolicySpec,
    ProbeSpec,
    Protocol,
    Retries,
    RouterConfig,
    Timeouts,
    VariantSpec,
)
from dami_router.manifest.family import Variant as ManifestVariant
from dami_router.manifest.pair import PairSpec
from dami_router.manifest.published import open_family
from dami_router.messages.pinning import LIVE
from dami_router.shared.section import Section
from dami_router.shared.strict_yaml import Document, load, parse

__all__ = ["BackendSpec", "Protocol", "is_section", "load_config", "load_section", "parse_config"]

T = TypeVar("T")
_SERVED = ("family", "variants", "backends")
_TOP = (
    *_SERVED, "estimator", "effort_shift", "policy", "timeouts", "retries", "breaker", "limits",
    "probe", "api_keys_env", "thinking",
)  # fmt: skip


def load_config(
    path: Path, environment: Mapping[str, str] | None = None, *, needs_backends: bool = True
) -> RouterConfig:
    """Read a router.yml; raises RecipeError (exit code 2) with file and line for what is wrong in it.

    Who only decides, and leaves sending to somebody else, can do without `backends`.
    """
    return _config(load(path), path.parent, os.environ if environment is None else environment, needs_backends)


def parse_config(
    text: str, environment: Mapping[str, str] | None = None, folder: Path = Path(), *, needs_backends: bool = True
) -> RouterConfig:
    """Read a configuration from YAML text; a relative family is looked for in `folder`."""
    return _config(
        parse(text, "router.yml"), folder, os.environ if environment is None else environment, needs_backends
    )


IN_PROCESS = BackendSpec(LIVE, "in-process", "live")
"""The one backend of a `dami live`: itself."""


def is_section(path: Path) -> bool:
    """Say whether a router.yml names nothing that is served: such a one is for `dami live --router`."""
    return not set(_SERVED) & set(load(path).data)


def load_section(path: Path | None, environment: Mapping[str, str] | None = None) -> RouterConfig:
    """Read a router.yml for `dami live`, or its defaults where none is given.

    The server knows its own models and fills in its name and variants: `family`, `variants` and `backends` are refused.
    """
    document = load(path) if path else parse("{}", "router.yml")
    top = Section.of(document, (), document.data)
    for key in _SERVED:
        if top.has(key):
            raise top.error(key, "this server knows its own models", f"leave `{key}` out")
    top.only(*_TOP)
    folder = path.parent if path else Path()
    return _settings(top, folder, os.environ if environment is None else environment, LIVE, (), (IN_PROCESS,))


def _config(document: Document, folder: Path, environment: Mapping[str, str], needs_backends: bool) -> RouterConfig:
    top = Section.of(document, (), document.data)
    top.only(*_TOP)
    name, variants, pair = _variants(top, folder)
    given = needs_backends or top.has("backends")
    backends = tuple(read_backends(top, variants, pair, environment)) if given else ()
    return _settings(top, folder, environment, name, variants, backends)


def _settings(
    top: Section,
    folder: Path,
    environment: Mapping[str, str],
    name: str,
    variants: tuple[VariantSpec, ...],
    backends: tuple[BackendSpec, ...],
) -> RouterConfig:
    return RouterConfig(
        name=name,
        variants=variants,
        backends=backends,
        estimator=read_chain(top, folder),
        effort_shift=effort_table(top, "effort_shift", -1.0) if top.has("effort_shift") else {},
        policy=_policy(top.section("policy"), _reach(variants, backends)),
        timeouts=_numbers(top, "timeouts", Timeouts()),
        retries=_numbers(top, "retries", Retries()),
        breaker=_numbers(top, "breaker", BreakerSpec()),
        limits=_numbers(top, "limits", Limits()),
        probe=_numbers(top, "probe", ProbeSpec()),
        api_keys=tuple(secret(top, "api_keys_env", name, environment) for name in top.texts("api_keys_env")),
        thinking=cast(Literal["pass", "split"], top.choice("thinking", ("pass", "split"), "pass")),
    )


def _variants(top: Section, folder: Path) -> tuple[str, tuple[VariantSpec, ...], PairSpec | None]:
    if not (top.has("family") or top.has("variants")) and _only_live(top):
        return "dami", (), None
    if top.has("family") == top.has("variants"):
        raise top.error("", "expected either `family` or a list of `variants`", "`family: ./OUT` names a built family")
    if top.has("family"):
        place = top.text("family")
        local = folder / place
        family = open_family(local if local.exists() or place.startswith((".", "/")) else place)
        if not family.variants:
            raise top.error("family", f"the family {family.name} has no variants", "build it to its end")
        return family.name, tuple(_from_manifest(variant) for variant in family.variants), PairSpec.of(family)
    found: dict[str, VariantSpec] = {}
    for item in top.items("variants"):
        item.only("id", "lambda", "opens_think")
        id = item.text("id")
        if id == LIVE:
            raise item.error("id", f"`{LIVE}` stands for live servers", "give the variant another id")
        if id in found:
            raise item.error("id", f"two variants are called {id}")
        lambda_ = item.number("lambda", None, 0.0, 1.0)
        found[id] = VariantSpec(id, lambda_, frozenset({id}), opens_think=item.flag("opens_think", False))
    return "dami", tuple(sorted(found.values(), key=lambda v: (v.lambda_, v.id))), None


def _from_manifest(variant: ManifestVariant) -> VariantSpec:
    names = {variant.id, variant.folder} | ({variant.hub.repo} if variant.hub else set())
    figures = {m.benchmark: Figures(m.accuracy, m.mean_tokens) for m in variant.measured}
    revision = variant.hub.revision if variant.hub else None
    return VariantSpec(
        variant.id, variant.lambda_, frozenset(names), revision, variant.chat_template.opens_think, figures
    )


def _only_live(top: Section) -> bool:
    return top.has("backends") and all(item.data.get("protocol") == LIVE for item in top.items("backends"))


def _reach(variants: tuple[VariantSpec, ...], backends: tuple[BackendSpec, ...]) -> float | None:
    """Return the lowest λ that can be answered; None with a live server, whose cost in tokens nobody knows."""
    return None if any(spec.protocol == LIVE for spec in backends) else min(v.lambda_ for v in variants)


def _policy(section: Section, lowest: float | None) -> PolicySpec:
    section.only("choose", "lambda_min", "lambda_max", "sticky", "drop_dominated", "budget")
    low, high = section.number("lambda_min", 0.0, 0.0, 1.0), section.number("lambda_max", 1.0, 0.0, 1.0)
    if low > high:
        raise section.error("lambda_min", f"{low:g} is above lambda_max, {high:g}")
    return PolicySpec(
        cast(Rule, section.choice("choose", RULES, "nearest")),
        low,
        high,
        section.flag("sticky", False),
        section.flag("drop_dominated", True),
        _budget(section.section("budget"), lowest) if section.has("budget") else None,
    )


def _budget(section: Section, lowest: float | None) -> BudgetSpec:
    section.only("mean_lambda", "mean_tokens", "window")
    if section.has("mean_lambda") == section.has("mean_tokens"):
        raise section.error("", "expected either mean_lambda or mean_tokens")
    window = section.whole("window", 200, 1)
    if section.has("mean_tokens"):
        if lowest is None:
            hint = "give mean_lambda, or leave the live server out"
            raise section.error("mean_tokens", "a live server has every λ, and no figure of tokens for each", hint)
        return BudgetSpec("tokens", section.number("mean_tokens", None, 1.0), window)
    mean = section.number("mean_lambda", None, 0.0, 1.0)
    if lowest is not None and mean < lowest:
        raise section.error("mean_lambda", f"{mean:g} is below every variant; the lowest has λ = {lowest:g}")
    return BudgetSpec("lambda", mean, window)


def _numbers(top: Section, key: str, defaults: T) -> T:
    """Read a section of plain numbers whose names, types and defaults are a dataclass's."""
    section = top.section(key)
    fields = vars(defaults)
    section.only(*fields)
    values: dict[str, float] = {}
    for name, default in fields.items():
        # A queue may be 0 (nobody waits), and so may a backoff; everything else must be something.
        low = 0 if name in ("queue", "backoff", "drain") else 1
        whole = isinstance(default, int)
        values[name] = section.whole(name, default, low) if whole else section.number(name, default, min(low, 0.001))
    return type(defaults)(**values)
