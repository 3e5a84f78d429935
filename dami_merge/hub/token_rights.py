"""Whether the user's token may publish, as far as the Hub tells it (`/api/whoami-v2`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dami_merge.hub.push_plan import PushPlan
from dami_router.errors import FailureError, MisuseError

__all__ = ["check_token"]

_HINT = "use a token with write access to the namespace: `hf auth login`"


def check_token(me: Mapping[str, Any], plan: PushPlan) -> list[str]:
    """Refuse a token that may not write where the plan wants to; return warnings.

    `me` is what `HfApi.whoami` gives. What it does not tell is left to the Hub.
    """
    namespace = plan.options.namespace
    name = str(me.get("name"))
    owners = {name.lower(): {"name": name}} | {str(org.get("name")).lower(): org for org in me.get("orgs") or ()}
    owner = owners.get(namespace.lower())
    if owner is None:
        known = ", ".join(str(found["name"]) for found in owners.values())
        raise FailureError(
            f"{namespace}: the token is {name}'s, which may not publish there", hint=f"--namespace: one of {known}"
        )
    if owner["name"] != namespace:
        raise MisuseError(f"--namespace {namespace}: the Hub spells it {owner['name']}")
    if owner.get("roleInOrg") == "read":
        raise FailureError(f"{namespace}: {name} may only read there", hint="ask its owner for a role that may write")
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise FailureError(f"{namespace}: the token may only read", hint=_HINT)
    return _fine_grained(token.get("fineGrained") or {}, plan) if token.get("role") == "fineGrained" else []


def _fine_grained(rights: Mapping[str, Any], plan: PushPlan) -> list[str]:
    namespace = set(rights.get("global") or ()) | _granted(rights, plan.options.namespace)
    if "repo.write" not in namespace:
        for repo in plan.repos:
            if "repo.write" not in _granted(rights, repo):
                raise FailureError(f"{repo}: the fine-grained token may not write there", hint=_HINT)
    if plan.collection and "collection.write" not in namespace:
        return [
            "the fine-grained token does not name the right to write collections; if the collection fails after the "
            "upload, add the right and push again, or leave it out: --no-collection"
        ]
    return []


def _granted(rights: Mapping[str, Any], name: str) -> set[str]:
    def of_entity() -> Iterator[str]:
        for scope in rights.get("scoped") or ():
            if str((scope.get("entity") or {}).get("name")).lower() == name.lower():
                yield from scope.get("permissions") or ()

    return set(of_entity())
