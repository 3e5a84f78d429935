"""The licence of a merge: that of both endpoints, refused where they differ or forbid derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError
from dami_router.manifest.family import Endpoint, Endpoints
from dami_router.manifest.hub_errors import told

__all__ = ["Licence", "LicenceReader", "decide_licence", "read_licence"]


@dataclass(frozen=True)
class Licence:
    """A licence as a card names it; name and link are for the id `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id

    @property
    def forbids_derivatives(self) -> bool:
        """Whether works made from it may not be shared."""
        return "-nd-" in f"{self.id.lower()}-"


LicenceReader = Callable[[Endpoint], Licence | None]
"""Reads an endpoint's licence; None where its card names none."""


def read_licence(endpoint: Endpoint) -> Licence | None:
    """Read a licence from the endpoint's card: on the Hub at the commit that was merged, or in its folder."""
    return _licence(_on_the_hub(endpoint) if endpoint.commit else _in_the_folder(endpoint))


def decide_licence(endpoints: Endpoints, given: str | None, read: LicenceReader = read_licence) -> Licence:
    """Return the merge's licence: `given` by the user, else the one that both endpoints have.

    Raises FailureError where the endpoints' licences are unknown, differ, or forbid derivatives.
    """
    if given is not None:
        if not given.strip():
            raise MisuseError("--license: expected a licence's id on the Hub, such as apache-2.0")
        return Licence(given.strip())
    found: dict[str, Licence] = {}
    for side, endpoint in (("instruct", endpoints.instruct), ("thinking", endpoints.thinking)):
        licence = read(endpoint)
        if licence is None:
            raise FailureError(
                f"the licence of the {side} endpoint {endpoint.source} is unknown: its card names none",
                hint="if you may publish a merge of it, say under which licence: --license apache-2.0",
            )
        if licence.forbids_derivatives:
            raise FailureError(
                f"the {side} endpoint {endpoint.source} is under {licence}, which forbids sharing derivatives",
                hint="if you have permission, name the licence that it grants: --license ID",
            )
        found[side] = licence
    if found["instruct"] != found["thinking"]:
        raise FailureError(
            f"the endpoints have different licences: {found['instruct']} and {found['thinking']}",
            hint="if you may publish a merge of them, say under which licence: --license ID",
        )
    return found["instruct"]


def _licence(card: Mapping[str, Any]) -> Licence | None:
    identity = card.get("license")
    if isinstance(identity, list) and len(identity) == 1:
        identity = identity[0]
    if not isinstance(identity, str) or identity in ("", "unknown"):
        return None
    name, link = card.get("license_name"), card.get("license_link")
    return Licence(identity, str(name) if name else None, str(link) if link else None)


def _on_the_hub(endpoint: Endpoint) -> Mapping[str, Any]:
    from dami_router.manifest.published import hub_api

    try:
        info = hub_api().model_info(endpoint.source.partition("@")[0], revision=endpoint.commit)
    except Exception as error:
        raise told(error, f"the licence of {endpoint.source}") from None
    return _fields(info.card_data)


def _in_the_folder(endpoint: Endpoint) -> Mapping[str, Any]:
    from huggingface_hub import ModelCard

    readme = Path(endpoint.source).expanduser() / "README.md"
    try:
        return _fields(ModelCard(readme.read_text(encoding="utf-8")[: 1 << 20], ignore_metadata_errors=True).data)
    except (OSError, ValueError):
        return {}


def _fields(card: Any) -> Mapping[str, Any]:
    return {key: getattr(card, key, None) for key in ("license", "license_name", "license_link")}
