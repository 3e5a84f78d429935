"""The key `backends` of router.yml: where each variant is served."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

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
        bases = [_base(url) for url in entry.url]
        ca = _authorities((*place, "ca"), folder / entry.ca, bases) if entry.ca else None
        for base in bases:
            _once(place, [other for other in found if other.url == base], replace(spec, url=base), variants)
            checked = entry.identity == "check"
            found.append(replace(spec, url=base, api_key=key, ca=ca, identity=checked, balanced=entry.balanced))
    urls = Counter(spec.url for spec in found)
    return tuple(replace(spec, shared=urls[spec.url] > 1) for spec in found)


def _base(url: str) -> str:
    """Return a server's URL in its one form: no `/v1`, no last slash, no default port, the host in small letters."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


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


def _once(place: Key, others: Sequence[BackendSpec], spec: BackendSpec, variants: Sequence[VariantSpec]) -> None:
    """Refuse a URL that is given twice for the same model; `others` have the URL of `spec`."""
    if any(other.variant == spec.variant for other in others):
        raise Wrong((*place, "url"), f"{spec.url} is given twice for {spec.variant}")
    if others and not spec.protocol == others[0].protocol == "openai":
        message = f"{spec.url} is given for two variants; only `openai` servers have several models"
        raise Wrong((*place, "url"), message)
    names = {variant.id: variant.names for variant in variants}
    for other in others:
        # The name of a model is what tells the two apart; one that is not given is found among the variant's own.
        same = (
            spec.model == other.model
            if spec.model and other.model
            else (spec.model in names[other.variant] or other.model in names[spec.variant])
        )
        if same:
            raise Wrong(
                (*place, "model" if spec.model else "url"),
                f"{spec.url} has one model `{spec.model or other.model}` for two variants, {other.variant} and "
                f"{spec.variant}",
                "give each variant's entry the server's own name for it",
            )


def secret(place: Key, variable: str, environment: Mapping[str, str] | None) -> str:
    """Return the key in an environment variable that the file names at `place`; raises Wrong."""
    value = (os.environ if environment is None else environment).get(variable, "").strip()
    if value and value.isascii() and value.isprintable():
        return value
    trouble = "holds no usable key" if value else "is not set"
    raise Wrong(place, f"the environment variable {variable:.100} {trouble}", f"export {variable:.100}=...")
