"""`dami check`: find errors in a recipe or a router.yml before anything is merged or served.

The keys decide which of the two a file is. The distribution that owns the kind checks it,
through the entry-point group `dami.checks`: a name, and a function that takes the output and the
path and returns the exit code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output, table
from dami_router.shared.suggestions import did_you_mean

if TYPE_CHECKING:
    from dami_router.choosing.thinking_caps import ThinkingCaps
    from dami_router.config.specs import RouterConfig, Shadow

__all__ = ["GROUP", "check", "check_router", "kind_of"]

GROUP = "dami.checks"
_RECIPE = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer",
    "tokenizer_source", "chat_template",
)  # fmt: skip
_ROUTER = (
    "backends", "variants", "estimator", "effort_shift", "policy", "timeouts", "retries", "breaker", "limits",
    "probe", "api_keys_env", "thinking", "hints", "aliases", "pass_through", "cors", "affinity",
    "shadow", "thinking_budget",
)  # fmt: skip


@command(
    "check",
    examples=(
        "dami check merge_configs/qwen3-4b-2507.yml",
        "dami check recipe.yml --json",
        "dami check router.yml",
        "dami check router.yml --probe",
    ),
    help="Find errors in a recipe or a router.yml before anything is merged or served. In a recipe: unknown keys, "
    "endpoints that do not fit together, λ that cannot be resolved, tensors that mergekit would drop. Configs and "
    "safetensors headers are read, from local folders or the Hub, and a small sample of local weights. In a "
    "router.yml: unknown keys, invalid values, variants without a server, settings without effect. With "
    "--probe, also query every server for its identity and capabilities, as `dami serve --check` "
    "does. A router.yml without `family`, `variants` and `backends` is checked for `dami live --router`. Exit code 0: "
    "ready; 1: the endpoints or servers are not usable; 2: the file is invalid.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--probe", is_flag=True, help="For a router.yml: query every server for its identity and capabilities.")
def check(output: Output, config: Path, probe: bool) -> int:
    """Check one file."""
    from dami_router.shared.strict_yaml import load

    if kind_of(load(config).data) == "router":
        return check_router(output, config, probe=probe)
    if probe:
        raise MisuseError(f"{config}: is a recipe; --probe needs a router.yml")
    return _checker("recipe", "dami-merge")(output, config)


def kind_of(data: dict[str, Any]) -> str:
    """Return `router` or `recipe`, whichever most of the top-level keys belong to; misspelt keys count half."""

    def belonging(known: tuple[str, ...]) -> int:
        return sum(2 if key in known else did_you_mean(key, known) is not None for key in data)

    return "router" if belonging(_ROUTER) > belonging(_RECIPE) else "recipe"


def check_router(output: Output, path: Path, *, probe: bool = False) -> int:
    """Check a router.yml; returns 1 if a server is down or serves another model."""
    from dami_router.commands.servers import probe as ask
    from dami_router.config.config_advice import advise, left_out
    from dami_router.config.router_yml import is_section, load_config, load_section

    bare = is_section(path)
    if bare and probe:
        raise MisuseError(f"{path}: names no servers; it is for `dami live --router`", hint="omit --probe")
    config = load_section(path) if bare else load_config(path)
    findings, beaten = advise(config), left_out(config)
    servers = ask(config) if probe else None
    ok = servers is None or servers.ok
    facts = {**_facts(config), "dominated": beaten, "findings": [finding.as_dict() for finding in findings]}
    told = {"servers": list(servers.found)} if servers else {}
    lines = [*_lines(config, beaten), *([servers.text()] if servers else []), *map(str, findings)]
    output.result("\n".join([*lines, _verdict(len(findings), ok)]), {"ok": ok, "config": str(path), **facts, **told})
    if bare:
        output.hint(f"dami live INSTRUCT THINKING --router {path}")
    elif ok:
        output.hint(f"dami serve {path}" if probe else f"dami check {path} --probe   or   dami serve {path}")
    return 0 if ok else 1


def _checker(kind: str, distribution: str) -> Callable[[Output, Path], int]:
    for point in entry_points(group=GROUP):
        if point.name == kind:
            checker: Callable[[Output, Path], int] = point.load()
            return checker
    raise MisuseError(
        f"checking a {kind} is part of {distribution}, which is not installed", hint=f"pip install {distribution}"
    )


def _facts(config: RouterConfig) -> dict[str, Any]:
    policy = config.policy
    return {
        "name": config.name,
        "variants": [
            {"id": v.id, "lambda": v.lambda_, "opens_think": v.opens_think, "benchmarks": sorted(v.figures)}
            for v in config.variants
        ],
        "backends": [
            {"variant": b.variant, "url": b.url, "protocol": b.protocol, "identity": b.identity}
            for b in config.backends
        ],
        "estimators": [*(estimator.name for estimator in config.estimator.estimators), "fixed"],
        "fixed": config.estimator.last.lambda_,
        "policy": {"choose": policy.rule, "lambda_min": policy.lambda_min, "lambda_max": policy.lambda_max},
        "affinity": {"enabled": config.affinity.enabled, "headers": list(config.affinity.headers)},
        "presets": [f"dami:{word}" for word in config.presets],
        "asks_for_keys": bool(config.api_keys),
    }


def _lines(config: RouterConfig, beaten: list[str]) -> list[str]:
    policy, chain = config.policy, config.estimator
    names = [*(estimator.name for estimator in chain.estimators), f"fixed {chain.last.lambda_:g}"]
    said = [policy.rule, f"λ from {policy.lambda_min:g} to {policy.lambda_max:g}"]
    said += ["sticky"] if policy.sticky else []
    said += [f"mean {policy.budget.unit} {policy.budget.mean:g} over {policy.budget.window}"] if policy.budget else []
    rows = [[v.id, f"{v.lambda_:g}", _servers(config, v.id), _measured(v.figures)] for v in config.variants]
    rows += [["live", "any", _servers(config, "live"), "-"]] if _servers(config, "live") else []
    lines = [
        table(("variant", "λ", "servers", "measured on"), rows),
        f"estimators   {', then '.join(names)}; timeout {chain.timeout:g} s each",
        f"policy       {', '.join(said)}",
        *_replicas(config),
        f"limits       {config.limits.concurrency} concurrent requests, {config.limits.queue} queued",
        f"keys         {'required from clients' if config.api_keys else 'not required from clients'}",
    ]
    lines += [f"shadow       {_shadow(config.shadow)}"] if config.shadow else []
    lines += [f"thinking     at most {_capped(config.thinking_caps)}"] if config.thinking_caps else []
    return [*lines, *([f"skipped      {', '.join(beaten)}: dominated by another variant"] if beaten else [])]


def _servers(config: RouterConfig, variant: str) -> str:
    return ", ".join(f"{b.url} ({b.protocol})" for b in config.backends if b.variant == variant)


def _replicas(config: RouterConfig) -> list[str]:
    """Say how a replica is chosen, where some variant has several."""
    if max(Counter(backend.variant for backend in config.backends).values(), default=0) < 2:
        return []
    if not config.affinity.enabled:
        return ["replicas     the least busy one"]
    headers = " or ".join(config.affinity.headers) or "no header"
    return [f"replicas     a conversation stays on one; sessions by {headers}"]


def _shadow(shadow: Shadow) -> str:
    names = [*(estimator.name for estimator in shadow.estimator.estimators), f"fixed {shadow.estimator.last.lambda_:g}"]
    return f"{', then '.join(names)}; counted for {shadow.share:.0%} of the estimated requests"


def _capped(caps: ThinkingCaps) -> str:
    said = [f"{tokens} tokens up to λ {key:g}" for key, tokens in sorted(caps.by_lambda.items())]
    return ", ".join([*said, *(f"{tokens} tokens at effort {word}" for word, tokens in caps.by_effort.items())])


def _measured(figures: Any) -> str:
    return ", ".join(sorted(figures)) or "-"


def _verdict(findings: int, ok: bool) -> str:
    if not ok:
        return "not ready: a server is down, or serves another model"
    return f"ready to serve, {findings} warning{'s' if findings > 1 else ''}" if findings else "ready to serve"
