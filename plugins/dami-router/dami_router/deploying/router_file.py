"""The generated router.yml: the family's manifest, a backend for each server, and the user's own settings.

The settings come from a file of the form that `dami live --router` takes: router.yml without `family`, `variants` and
`backends`. Files that it names (maps, trained estimators) are copied beside the generated file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dami_router.config.router_yml import load_section
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.errors import MisuseError
from dami_router.manifest.family import MANIFEST, Family
from dami_router.shared.strict_yaml import load

__all__ = [
    "KEY_VARIABLE", "SERVERS_KEY", "EveryKey", "RouterSection", "backend", "read_section", "router_data",
    "router_manifest",
]  # fmt: skip

KEY_VARIABLE = "DAMI_KEY"
"""The environment variable with the key that clients send."""
SERVERS_KEY = "DAMI_SERVERS_KEY"
"""The one with the key that the router sends to servers whose routes others can reach."""
_TAKEN = {SERVERS_KEY, "HF_TOKEN"}
_MAX_BYTES = 64 << 20
_DEFAULTS: Mapping[str, Any] = {
    "estimator": {"chain": ["effort"], "fixed": 0.5},
    "timeouts": {"total": 1800},
    "thinking": "split",
}
"""As in router_configs/: an answer that thinks can take longer than ten minutes."""


@dataclass(frozen=True)
class RouterSection:
    """Settings for the generated router.yml, the files that they name, and whether prompts must be scored.

    `own`: the user's settings, not the defaults.
    """

    data: Mapping[str, Any] = field(default_factory=lambda: _DEFAULTS)
    files: Mapping[str, bytes] = field(default_factory=dict)
    scores_prompts: bool = False
    own: bool = False

    @property
    def keys(self) -> list[str]:
        """The environment variables with the keys that clients send; empty where the settings ask for none."""
        names = self.data.get("api_keys_env", KEY_VARIABLE) or []
        return [names] if isinstance(names, str) else list(names)

    @property
    def servers_key(self) -> str | None:
        """The variable with the key of exposed servers; None where the router itself asks for no key."""
        return SERVERS_KEY if self.keys else None

    @property
    def pass_through(self) -> list[str]:
        """Further routes of the servers that the router calls for its clients."""
        paths = self.data.get("pass_through") or []
        return [paths] if isinstance(paths, str) else list(paths)


def read_section(path: Path | None, plan: FleetPlan) -> RouterSection:
    """Read the user's settings for a family, as strictly as `dami check`; without a path, return the defaults.

    Keys may be missing from this process's environment. Raises RecipeError with file and line.
    """
    if path is None:
        return RouterSection()
    data = load(path).data
    load_section(path, EveryKey(), plan.family, live=plan.settings.live)
    settings = {**{key: _DEFAULTS[key] for key in ("timeouts", "thinking")}, **data}
    section = RouterSection(settings, _named_files(data, path.parent), _scores_prompts(data), own=True)
    if taken := [name for name in section.keys if name in _TAKEN]:
        raise MisuseError(f"{path}: api_keys_env: {taken[0]} in .env is for another use", hint="name another variable")
    return section


class EveryKey(dict[str, str]):
    """An environment in which every variable is set: the keys are those of the machine that will serve."""

    def get(self, key: str, default: object = None) -> str:  # noqa: ARG002
        """Return a value that stands for any key."""
        return "set-elsewhere"


def _links(data: Mapping[str, Any]) -> list[Any]:
    """Return the estimators of the chain, and those that are tried out."""
    chain = (data.get("estimator") or {}).get("chain") or []
    shadow = (data.get("shadow") or {}).get("estimator") or []
    return [*chain, *(shadow if isinstance(shadow, list) else [shadow])]


def _scores_prompts(data: Mapping[str, Any]) -> bool:
    """Whether an estimator asks the Thinking variant for the log-probabilities of a prompt."""
    forms = [
        (link.get("confidence") or {}).get("form") if isinstance(link, dict) and "confidence" in link else None
        for link in _links(data)
    ]
    return any(form in ("discrepancy", "auto") for form in forms)


def _named_files(data: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """Return the files that the chain names, by the path that router.yml gives them."""
    found: dict[str, bytes] = {}
    for link in _links(data):
        settings = link if isinstance(link, dict) else {}
        names = [settings.get("trained"), (settings.get("confidence") or {}).get("map")]
        for name in filter(None, names):
            found |= _read(folder / name, Path(name))
    return found


def _read(path: Path, name: Path) -> dict[str, bytes]:
    if name.is_absolute() or ".." in name.parts:
        raise MisuseError(f"{name}: expected a path beside the settings, so that both can be copied")
    inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if sum(p.stat().st_size for p in inside) > _MAX_BYTES:
        raise MisuseError(f"{path}: more than {_MAX_BYTES >> 20} MiB; expected an estimator's files")
    return {(name / p.relative_to(path)).as_posix(): p.read_bytes() for p in inside}


def backend(
    server: ServerPlan, protocol: str, url: str | list[str], key: str | None = None, *, replicas: int = 1
) -> dict[str, Any]:
    """Return a server's entry in `backends`: `replicas` of it share the URL.

    `key` is the environment variable with the key that it asks for.
    """
    if server.variant is None:
        return {"url": url, "protocol": "live"}
    model = {"model": server.model} if protocol == "openai" else {}
    return {
        "variant": server.variant.id, "url": url, "protocol": protocol, **model,
        **({"api_key_env": key} if key else {}), **({"balanced": True} if replicas > 1 else {}),
    }  # fmt: skip


def router_data(section: RouterSection, backends: list[dict[str, Any]]) -> dict[str, Any]:
    """Return router.yml as data; clients need the key in DAMI_KEY unless the settings name other keys."""
    keys = {"api_keys_env": section.keys}
    return {"family": f"./{MANIFEST}", "backends": backends, **keys, **section.data, **keys}


def router_manifest(family: Family) -> bytes:
    """Return the manifest as the router needs it: without the hashes of weights, λ by layer, and the recipe."""
    variants = [variant.model_copy(update={"resolved": [], "files": {}}) for variant in family.variants]
    return family.model_copy(update={"variants": variants, "recipe": ""}).text().encode()
