"""Read router.yml: which variants there are, where they are served, and how to choose between them.

`router_schema` says what the file may hold. Here the family's manifest and the environment complete it: keys come from
environment variables that the file names, so that it holds no secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dami_router.choosing.thinking_caps import ThinkingCaps
from dami_router.config.backend_config import read_backends, secret
from dami_router.config.chain_config import read_chain
from dami_router.config.model_names import require_aliases
from dami_router.config.router_schema import BudgetSpec, RouterFile
from dami_router.config.specs import BackendSpec, RouterConfig, Shadow, VariantSpec
from dami_router.config.variant_config import of_family, read_variants
from dami_router.manifest.family import Family
from dami_router.messages.hints import EFFORT_WORDS
from dami_router.messages.pinning import LIVE
from dami_router.shared.strict_model import Wrong, reading
from dami_router.shared.strict_yaml import Document, load, parse

__all__ = ["is_section", "load_config", "load_section", "parse_config"]

Environment = Mapping[str, str] | None
"""The variables that hold keys; None for the process's own."""

_SERVED = ("family", "variants", "backends")


def load_config(path: Path, environment: Environment = None, *, needs_backends: bool = True) -> RouterConfig:
    """Read a router.yml; raises RecipeError (exit code 2) with file and line for a mistake in it.

    Without `needs_backends`, `backends` may be missing: for callers that decide and let others send.
    """
    return _config(load(path), environment, path.parent, needs_backends)


def parse_config(
    text: str, environment: Environment = None, folder: Path = Path(), *, needs_backends: bool = True
) -> RouterConfig:
    """Read a configuration from YAML text; relative paths in it start in `folder`."""
    return _config(parse(text, "router.yml"), environment, folder, needs_backends)


def is_section(path: Path) -> bool:
    """Whether a router.yml names nothing that is served: such a file is for `dami live --router`."""
    return not set(_SERVED) & set(load(path).data)


def load_section(
    path: Path | None, environment: Environment = None, family: Family | None = None, *, live: bool = True
) -> RouterConfig:
    """Read a router.yml without `family`, `variants` and `backends`; without a path, return the defaults.

    `dami live` knows its own models. `dami deploy` names the family that it writes the file for, and whether one live
    server holds it: aliases and budgets are checked against its variants.
    """
    document = load(path) if path else parse("{}", "router.yml")
    with reading(document):
        for key in _SERVED:
            if document.data.get(key) is not None:
                whose = "this server knows its own models" if family is None else "the family to deploy gives it"
                raise Wrong((key,), whose, f"leave `{key}` out")
        file = RouterFile.model_validate(document.data)
        name, variants, _ = (LIVE, (), None) if family is None else of_family(family)
        backends = (BackendSpec(LIVE, "in-process", "live"),) if live else ()
        return _resolved(file, environment, path.parent if path else Path(), name, variants, backends)


def _config(document: Document, environment: Environment, folder: Path, needs_backends: bool) -> RouterConfig:
    with reading(document):
        file = RouterFile.model_validate(document.data)
        name, variants, pair = read_variants(file, folder)
        if file.backends is None and needs_backends:
            raise Wrong(("backends",), "is missing")
        backends = read_backends(file.backends or (), variants, pair, environment, folder)
        return _resolved(file, environment, folder, name, variants, backends)


def _resolved(
    file: RouterFile, environment: Environment, folder: Path,
    name: str, variants: tuple[VariantSpec, ...], backends: tuple[BackendSpec, ...],
) -> RouterConfig:  # fmt: skip
    if file.policy.budget is not None:
        _require_possible(file.policy.budget, variants, backends)
    config = RouterConfig(
        name=name,
        variants=variants,
        backends=backends,
        estimator=read_chain(file.estimator, folder),
        effort_shift=dict((file.effort_shift or {}).items()),
        shadow=Shadow(read_chain(file.shadow, folder, "shadow"), file.shadow.share) if file.shadow else None,
        thinking_caps=_caps(file.thinking_budget),
        policy=file.policy,
        timeouts=file.timeouts,
        retries=file.retries,
        affinity=file.affinity,
        breaker=file.breaker,
        limits=file.limits,
        probe=file.probe,
        api_keys=tuple(secret(("api_keys_env",), variable, environment) for variable in file.api_keys_env or ()),
        thinking=file.thinking,
        hints=file.hints.facts(),
        aliases=dict(file.aliases),
        pass_through=tuple(file.pass_through),
        cors=tuple(file.cors),
    )
    require_aliases(config)
    return config


def _caps(budget: Mapping[str, int]) -> ThinkingCaps:
    by_effort = {key: tokens for key, tokens in budget.items() if key in EFFORT_WORDS}
    return ThinkingCaps({float(k): tokens for k, tokens in budget.items() if k not in by_effort}, by_effort)


def _require_possible(budget: BudgetSpec, variants: tuple[VariantSpec, ...], backends: tuple[BackendSpec, ...]) -> None:
    """Refuse a budget that no variant can keep to."""
    live = any(backend.protocol == LIVE for backend in backends)
    if live and budget.unit == "tokens":
        message = "a live server has every λ, and no measured tokens for each"
        raise Wrong(("policy", "budget", "mean_tokens"), message, "use mean_lambda, or remove the live server")
    lowest = 0.0 if live else min(variant.lambda_ for variant in variants)
    if budget.unit == "lambda" and budget.mean < lowest:
        message = f"{budget.mean:g} is below every variant; the lowest has λ = {lowest:g}"
        raise Wrong(("policy", "budget", "mean_lambda"), message)
