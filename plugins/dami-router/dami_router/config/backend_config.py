"""The entries under `backends` in router.yml: who is served where, and how it is spoken to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from dami_router.config.specs import BackendSpec, Protocol, VariantSpec
from dami_router.manifest.pair import EndpointSpec, PairSpec
from dami_router.messages.pinning import LIVE
from dami_router.shared.section import Section

if TYPE_CHECKING:
    from dami_router.config.specs import VariantSpec

__all__ = ["read_backends", "secret"]


def read_backends(
    top: Section, variants: tuple[VariantSpec, ...], pair: PairSpec | None, environment: Mapping[str, str]
) -> list[BackendSpec]:
    """Read all entries; raises RecipeError with the line of what is wrong."""
    found: list[BackendSpec] = []
    for item in top.items("backends"):
        spec = _live(item, pair) if item.data.get("protocol") == LIVE else _served(item, variants)
        key = secret(item, "api_key_env", item.text("api_key_env"), environment) if item.has("api_key_env") else None
        identity = item.choice("identity", ("check", "off"), "check") == "check"
        urls = item.texts("url")
        if not urls:
            raise item.error("url", "is missing")
        for url in urls:
            base = _base(item, url)
            _once(item, url, [other for other in found if other.url == base], spec)
            found.append(replace(spec, url=base, api_key=key, identity=identity))
    return found


def _served(item: Section, variants: tuple[VariantSpec, ...]) -> BackendSpec:
    item.only("variant", "url", "protocol", "model", "api_key_env", "identity")
    variant = item.choice("variant", [variant.id for variant in variants], item.text("variant"))
    protocol = cast(Protocol, item.choice("protocol", ("tgi", "openai", LIVE), item.text("protocol")))
    return BackendSpec(variant, "", protocol, item.optional("model"))


def _live(item: Section, pair: PairSpec | None) -> BackendSpec:
    """A server of every λ; what must be behind it is the family's pair, or what the entry says."""
    if item.has("variant"):
        raise item.error("variant", "a live server has every λ, and so no variant", "leave `variant` out")
    item.only("url", "protocol", "api_key_env", "identity", "instruct", "thinking")
    if item.has("instruct") or item.has("thinking"):
        if pair is not None:
            raise item.error("instruct", "the family's manifest names the endpoints already")
        pair = PairSpec(EndpointSpec(item.text("instruct")), EndpointSpec(item.text("thinking")))
    return BackendSpec(LIVE, "", "live", pair=pair)


def _once(item: Section, url: str, others: list[BackendSpec], spec: BackendSpec) -> None:
    if any(other.variant == spec.variant for other in others):
        raise item.error("url", f"{url} is given twice for {spec.variant}")
    if others and not spec.protocol == others[0].protocol == "openai":
        raise item.error("url", f"{url} is given for two variants; only `openai` servers have several models")


def secret(section: Section, key: str, variable: str, environment: Mapping[str, str]) -> str:
    """Return a key from an environment variable that the file names."""
    value = environment.get(variable, "").strip()
    if value and value.isascii() and value.isprintable():
        return value
    trouble = "holds no usable key" if value else "is not set"
    raise section.error(key, f"the environment variable {variable:.100} {trouble}", f"export {variable:.100}=...")


def _base(item: Section, url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        sound = False
    plain = url.isascii() and url.isprintable() and " " not in url
    if not sound or not plain or parts.query or parts.fragment or parts.username:
        raise item.error("url", f"expected http://HOST[:PORT][/PATH], found {url:.100}")
    return url.rstrip("/").removesuffix("/v1")
