"""The pair behind a live server: what router.yml or a manifest expects, against what the server reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dami_router.manifest.family import Endpoint, Family

__all__ = ["EndpointSpec", "PairSpec"]


@dataclass(frozen=True)
class EndpointSpec:
    """One checkpoint: its Hub id or folder; from a manifest also its commit and the sha256 of its files."""

    name: str
    commit: str | None = None
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> EndpointSpec:
        """Return the endpoint that a manifest names."""
        return cls(endpoint.source, endpoint.commit, endpoint.files)

    def difference(self, served: object) -> str | None:
        """Return how a server's description `{name, commit, files}` differs; None if it does not.

        Folders are compared by their last part. Commits and files are compared if both sides have them.
        """
        told: Mapping[str, Any] = served if isinstance(served, dict) else {}
        name, commit, files = str(told.get("name")), told.get("commit"), told.get("files")
        if _last(name) != _last(self.name):
            return f"is {name:.200}, expected {self.name}"
        if isinstance(commit, str) and self.commit and commit != self.commit:
            return f"is {name:.200} at commit {commit:.40}, expected {self.commit}"
        hashes = files if isinstance(files, dict) else {}
        other = sorted(file for file, digest in self.files.items() if hashes.get(file, digest) != digest)
        return f"is {name:.200}, whose {other[0]} differs from the family's" if other else None


@dataclass(frozen=True)
class PairSpec:
    """What a live server must hold: both endpoints, and the manifest's path (None: any path)."""

    instruct: EndpointSpec
    thinking: EndpointSpec
    path: object = None

    @classmethod
    def of(cls, family: Family) -> PairSpec:
        """Return the pair that a family was built from."""
        path = family.path if isinstance(family.path, str) else [choice.model_dump() for choice in family.path]
        return cls(EndpointSpec.of(family.endpoints.instruct), EndpointSpec.of(family.endpoints.thinking), path)

    def difference(self, served: Mapping[str, Any]) -> str | None:
        """Return how a live server's description differs; None if it does not."""
        for side, endpoint in (("instruct", self.instruct), ("thinking", self.thinking)):
            if wrong := endpoint.difference(served.get(side)):
                return f"its {side} endpoint {wrong}"
        path = served.get("path")
        if self.path and path != self.path:
            return f"spreads λ by the path {path!s:.100}, expected {self.path}"
        return None


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]
