"""The values of router.yml: numbers in their bounds, URLs, paths, headers, lists that may be one text."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from dami_router.estimators.effort import EFFORTS
from dami_router.messages.routes import OWN_PATHS, ROUTES, canonical
from dami_router.shared.strict_model import Many, Some, Text, Wrong, expected, one_of, shown

__all__ = [
    "Count", "CountOrNone", "Effort", "HeaderNames", "Lambda", "LambdaOrEffort", "Load", "Origin", "Path_", "Seconds",
    "SecondsOrNone", "Share", "Shift", "Texts", "Tokens", "UpTo1024", "Urls", "estimators", "listed",
]  # fmt: skip

_OWN_HEADERS = frozenset({
    "authorization", "x-api-key", "api-key", "cookie", "host", "connection", "keep-alive", "transfer-encoding", "te",
    "trailer", "upgrade", "expect", "proxy-authorization", "content-length", "content-type", "content-encoding",
    "accept-encoding", "x-request-id",
})  # fmt: skip
"""Headers that cannot name a session."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sound_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        sound = False
    plain = url.isascii() and url.isprintable() and " " not in url
    if not sound or not plain or parts.query or parts.fragment or parts.username:
        raise Wrong((), f"expected http://HOST[:PORT][/PATH], found {url:.100}")
    return url


def _free_path(path: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", path) or ".." in path:
        raise Wrong((), f"expected a path such as /v1/embeddings, found {path:.100}")
    full = canonical(path)
    if full in ROUTES or full in OWN_PATHS or full.startswith("/v1/models/"):
        raise Wrong((), f"{path:.100} is a route of the proxy already", "leave it out")
    return path


def _sound_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
        raise Wrong((), f"expected an origin such as https://app.example, or `*`, found {origin:.100}")
    return origin


def _free_header(name: str) -> str:
    name = name.lower()
    if not re.fullmatch(r"[a-z0-9-]{1,100}", name):
        raise Wrong((), f"expected a header such as x-session-id, found {name:.100}")
    if name in _OWN_HEADERS or name.startswith("x-dami-"):
        raise Wrong((), f"{name} cannot name a session", "keys and the connection's own headers are not passed on")
    return name


def _lambda_or_effort(key: str) -> str:
    try:
        sound = key in EFFORTS or 0.0 <= float(key) <= 1.0
    except ValueError:
        sound = False
    if not sound:
        raise Wrong((), f"expected λ in [0, 1] or one of {', '.join(EFFORTS)}, found {key:.60}")
    return key


def listed(value: object) -> object:
    """Return a single text as a list of it."""
    return [value] if isinstance(value, str) else value


def estimators(value: object) -> object:
    """Return the list of a chain; raises Wrong for anything else."""
    if value is None or isinstance(value, list | tuple):
        return value
    raise Wrong((), f"expected a list of estimators, found {shown(value)}", "for one: `chain: [effort]`")


Lambda = Annotated[float, Field(ge=0, le=1), expected("a number in [0, 1]")]
Shift = Annotated[float, Field(ge=-1, le=1), expected("a number in [-1, 1]")]
Seconds = Annotated[float, Field(ge=0.001), expected("a number of seconds, at least 0.001")]
SecondsOrNone = Annotated[float, Field(ge=0), expected("a number of seconds, at least 0")]
Tokens = Annotated[float, Field(ge=1), expected("a number of tokens, at least 1")]
Count = Annotated[int, Field(ge=1), BeforeValidator(_whole), expected("a whole number, at least 1")]
CountOrNone = Annotated[int, Field(ge=0), BeforeValidator(_whole), expected("a whole number, at least 0")]
UpTo1024 = Annotated[
    int, Field(ge=1, le=1024), BeforeValidator(_whole), expected("a whole number, at least 1 and at most 1024")
]
LambdaOrEffort = Annotated[str, AfterValidator(_lambda_or_effort)]
Share = Annotated[float, Field(gt=0, le=1), expected("a number above 0 and at most 1")]
Effort = Annotated[Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"], one_of(*EFFORTS)]
Url = Annotated[Text, AfterValidator(_sound_url)]
Urls = Annotated[Some[Url], BeforeValidator(listed, json_schema_input_type=Url | Some[Url])]
Texts = Annotated[Many[Text], BeforeValidator(listed, json_schema_input_type=Text | Many[Text])]


Path_ = Annotated[Text, AfterValidator(_free_path)]
Origin = Annotated[Text, AfterValidator(_sound_origin)]
HeaderName = Annotated[Text, AfterValidator(_free_header)]
HeaderNames = Annotated[Many[HeaderName], BeforeValidator(listed, json_schema_input_type=HeaderName | Many[HeaderName])]
Load = Annotated[float, Field(ge=1), expected("a number, at least 1")]
