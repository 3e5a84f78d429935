"""The Hub ids and public names of a family's endpoints."""

from __future__ import annotations

import re

from dami_router.manifest.family import Endpoint, Endpoints

__all__ = ["base_models", "cached_commit", "endpoint_name", "hub_id"]

_CACHED = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?$", re.ASCII)


def hub_id(end: Endpoint) -> str | None:
    """Return an endpoint's id on the Hub; None for a folder that is not in the Hub's cache."""
    if end.commit:
        return end.source.partition("@")[0]
    cached = _CACHED.search(end.source)
    return f"{cached[1]}/{cached[2]}" if cached else None


def cached_commit(end: Endpoint) -> str | None:
    """Return the commit of an endpoint that is a folder in the Hub's cache."""
    cached = None if end.commit else _CACHED.search(end.source)
    return cached[3] if cached else None


def endpoint_name(end: Endpoint) -> str:
    """Return a name to show for an endpoint: its Hub id, or its folder's name without the path."""
    return hub_id(end) or re.split(r"[/\\]", end.source.rstrip("/\\"))[-1] or end.source


def base_models(ends: Endpoints) -> list[str]:
    """Return the endpoints' ids for `base_model`, Instruct first, without those that are local folders."""
    return [name for end in (ends.instruct, ends.thinking) if (name := hub_id(end)) is not None]
