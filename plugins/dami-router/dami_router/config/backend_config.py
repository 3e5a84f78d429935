"""The key `backends` of router.yml: where each variant is served."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dami_router.config.router_schema import BackendEntry, LiveEntry, ServedEntry
from dami_router.config.specs import BackendSpec, VariantSpec
from dami_router.manifest.pair import EndpointSpec, PairSpec
from dami_router.messages.pinning import LIVE
from dami_router.shared.strict_model import Wrong, shown
from dami_router.shared.strict_yaml import Key
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["read_backends", "secret"]


def read_backends(
    entries: Sequence[BackendEntry],
    variants: Sequence[VariantSpec],
    pair: PairSpec | None,
    environment: Mapping[str, str] | None,
    folder: Path,
) -> tuple[BackendSpec, ...]:
    """Return one backend for each URL; files are looked for in `folder`. Raises Wrong."""
    found: list[BackendSpec] = []
    for i, entry in enumerate(entries):
        place, name = ("backends", i), entry.api_key_env
        spec = _live(place, entry, pair) if isinstance(entry, LiveEntry) else _served(place, entry, variants)
        key = secret((*place, "api_key_env"), name, environment) if name else None
        ca = _authorities((*place, "ca"), folder / entry.ca, entry.url) if entry.ca else None
        for url in entry.url:
            base = url.rstrip("/").removesuffix("/v1")
            _once((*place, "url"), url, [other for other in found if other.url == base], spec)
            found.append(replace(spec, url=base, api_key=key, ca=ca, identity=entry.identity == "check"))
    urls = Counter(spec.url for spec in found)
    return tuple(replace(spec, shared=urls[spec.url] > 1) for spec in found)


def _authorities(place: Key, path: Path, urls: Sequence[str]) -> Path:
    """Return the path of a file of certificates that can be read as such; raises Wrong."""
    import ssl

    if plain := next((url for url in urls if not url.startswith("https:")), None):
        raise Wrong(place, f"has no effect on {plain}", "use https, or leave `ca` out")
    try:
        ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        raise Wrong(place, f"{path}: no such file") from None
    except OSError:  # ssl.SSLError is one
        raise Wrong(place, f"{path}: holds no certificate in PEM form", "it begins with BEGIN CERTIFICATE") from None
    return path


def _served(place: Key, entry: ServedEntry, variants: Sequence[VariantSpec]) -> BackendSpec:
    known = [variant.id for variant in variants]
    if entry.variant not in known:
        near = did_you_mean(entry.variant, known)
        message = f"expected {listed(known)}, found {shown(entry.variant)}"
        raise Wrong((*place, "variant"), message, f"did you mean `{near}`?" if near else None)
    return BackendSpec(entry.variant, "", entry.protocol, entry.model)


def _live(place: Key, entry: LiveEntry, pair: PairSpec | None) -> BackendSpec:
    """A live server must hold the family's pair, or the one that its entry names."""
    if entry.instruct and entry.thinking:
        if pair is not None:
            raise Wrong((*place, "instruct"), "the family's manifest already names the endpoints", "leave both out")
        pair = PairSpec(EndpointSpec(entry.instruct), EndpointSpec(entry.thinking))
    return BackendSpec(LIVE, "", "live", pair=pair)


def _once(place: Key, url: str, others: Sequence[BackendSpec], spec: BackendSpec) -> None:
    if any(other.variant == spec.variant for other in others):
        raise Wrong(place, f"{url} is given twice for {spec.variant}")
    if others and not spec.protocol == others[0].protocol == "openai":
        raise Wrong(place, f"{url} is given for two variants; only `openai` servers have several models")


def secret(place: Key, variable: str, environment: Mapping[str, str] | None) -> str:
    """Return the key in an environment variable that the file names at `place`; raises Wrong."""
    value = (os.environ if environment is None else environment).get(variable, "").strip()
    if value and value.isascii() and value.isprintable():
        return value
    trouble = "holds no usable key" if value else "is not set"
    raise Wrong(place, f"the environment variable {variable:.100} {trouble}", f"export {variable:.100}=...")
