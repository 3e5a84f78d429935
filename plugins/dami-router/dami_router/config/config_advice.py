"""Warnings about a valid router.yml: settings that do something unexpected, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from dami_router.choosing.policy import dominated
from dami_router.config.specs import BackendSpec, RouterConfig
from dami_router.messages.pinning import LIVE

__all__ = ["Advice", "advise", "left_out"]

_HERE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Advice:
    """One warning, in the same form as `dami check`'s findings about recipes."""

    code: str
    message: str
    hint: str | None = None
    severity: str = "warning"

    def __str__(self) -> str:
        text = f"{self.severity}: {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, Any]:
        """Return the warning for JSON."""
        return asdict(self)


def advise(config: RouterConfig) -> list[Advice]:
    """Return the warnings about a configuration; no server is queried."""
    return [*_about_variants(config), *_about_servers(config), *_about_estimators(config), *_about_limits(config)]


def left_out(config: RouterConfig) -> list[str]:
    """Return the dominated variants by the manifest's figures: they are only a last fallback."""
    if not config.policy.drop_dominated:
        return []
    return sorted(dominated({variant.id: variant.figures for variant in config.variants}))


def _about_variants(config: RouterConfig) -> Iterator[Advice]:
    served = {backend.variant for backend in config.backends}
    if LIVE in served:
        return
    known = [variant for variant in config.variants if variant.id in served]
    if lacking := ", ".join(variant.id for variant in config.variants if variant.id not in served):
        yield Advice("no_server", f"variants without a server, never used: {lacking}", "add servers under `backends`")
    if len(known) == 1:
        yield Advice("one_variant", f"only {known[0].id} has a server: every query gets the same λ")
    low, high = config.policy.lambda_min, config.policy.lambda_max
    if not any(low <= variant.lambda_ <= high for variant in known):
        yield Advice("out_of_limits", f"no variant with a server has a λ from {low:g} to {high:g}; the nearest is used")


def _about_servers(config: RouterConfig) -> Iterator[Advice]:
    for backend in config.backends:
        url = urlsplit(backend.url)
        if backend.api_key and url.scheme == "http" and not _is_here(url.hostname or ""):
            yield Advice("key_in_clear", f"{backend.url}: its key is sent unencrypted", "use https")
        if backend.protocol == "openai" and backend.model and (twins := _twins(backend, config)):
            message = f"{backend.variant} and {twins} are both called `{backend.model}` on their servers"
            yield Advice(
                "same_model", f"{message}: no check can tell one from the other", "start each with a name of its own"
            )
        others = [other for other in config.backends if _origin(other.url) == _origin(backend.url)]
        if backend.ca is None and any(other.ca is not None for other in others):
            message = f"{backend.url}: `ca` is set for other models of this server, and not for {backend.variant}"
            yield Advice("ca_missing", message, "give every entry of the server the same `ca`")
        if not backend.identity:
            yield Advice("identity_off", f"{backend.url}: not checked that it serves {backend.variant}")


def _is_here(host: str) -> bool:
    """Whether a host is this machine, or a Service that only a Kubernetes cluster's own names have."""
    return host in _HERE or host.endswith((".svc", ".svc.cluster.local"))


def _twins(backend: BackendSpec, config: RouterConfig) -> str:
    """Return the variants after this one that other servers with OpenAI's routes have under the same name."""
    later = config.backends[config.backends.index(backend) + 1 :]
    same = {other.variant for other in later if (other.protocol, other.model) == ("openai", backend.model)}
    return ", ".join(sorted(same - {backend.variant}))


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _about_estimators(config: RouterConfig) -> Iterator[Advice]:
    names = [estimator.name for estimator in config.estimator.estimators]
    last = config.estimator.last.lambda_
    if not names:
        yield Advice(
            "constant", f"no estimator: every query that does not pin λ gets λ = {last:g}", "see estimator.chain"
        )
    if config.effort_shift and "effort" in names:
        yield Advice("shift_unused", "effort_shift has no effect on the estimator `effort`", "remove one of them")


def _about_limits(config: RouterConfig) -> Iterator[Advice]:
    times = config.timeouts
    if times.first_byte > times.total:
        yield Advice("first_byte", f"first_byte ({times.first_byte:g} s) has no effect: total is {times.total:g} s")
