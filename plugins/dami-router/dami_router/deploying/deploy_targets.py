"""The targets of `dami deploy`, and the one use case: read the family, write the folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dami_router.config.router_yml import load_config
from dami_router.deploying.compose_target import compose_files
from dami_router.deploying.fleet_plan import DeploySettings, FleetPlan, make_plan
from dami_router.deploying.gateway_target import gateway_files
from dami_router.deploying.kserve_target import kserve_files
from dami_router.deploying.llama_presets import llama_files
from dami_router.deploying.production_stack import production_stack_files
from dami_router.deploying.ray_service import ray_files
from dami_router.deploying.router_file import EveryKey, RouterSection, read_section
from dami_router.deploying.written_files import Files, require_new, write_folder
from dami_router.errors import MisuseError
from dami_router.shared.suggestions import listed

__all__ = ["TARGETS", "Deployment", "Target", "deploy"]


@dataclass(frozen=True)
class Target:
    """The function that writes a target's files, the one to read first, and what the target can do.

    `suffix` is the longest ending that it adds to a server's name; `unused` are the options that have no effect.
    """

    write: Callable[[FleetPlan, RouterSection], Files]
    first: str = "kustomization.yaml"
    engines: tuple[str, ...] = ("vllm",)
    unused: frozenset[str] = frozenset()
    needs_hub: bool = True
    quantized: bool = False
    suffix: str = ""


class Deployment(NamedTuple):
    """What was written: the plan, the router's settings, and the files."""

    plan: FleetPlan
    section: RouterSection
    files: Files


_ONE_MACHINE = frozenset({"gpus", "live"})
_GATEWAY = frozenset({"gateway", "gateway_url"})
_GPU_SERVERS = frozenset({"engine", "gpu_memory", "replicas", "image"})
TARGETS: Mapping[str, Target] = {
    "compose": Target(compose_files, "compose.yaml", ("vllm", "tgi"), _GATEWAY | {"namespace"}, needs_hub=False),
    "production-stack": Target(production_stack_files, unused=_ONE_MACHINE | _GATEWAY, suffix="-engine-service"),
    "kserve": Target(kserve_files, unused=_ONE_MACHINE),
    "gateway": Target(gateway_files, unused=_ONE_MACHINE, suffix="-epp"),
    "ray": Target(ray_files, unused=_ONE_MACHINE | _GATEWAY, suffix="-serve-svc"),
    "llama-server": Target(
        llama_files, "models.ini", unused=_ONE_MACHINE | _GATEWAY | _GPU_SERVERS | {"namespace"}, needs_hub=False,
        quantized=True,
    ),
}  # fmt: skip


def deploy(
    family: str,
    target: str,
    out: Path,
    settings: DeploySettings,
    section: Path | None = None,
    given: Collection[str] = (),
) -> Deployment:
    """Write the folder `out` for a target of TARGETS, and return what is in it.

    `given`: the settings that the user named, which must have an effect. The generated router.yml is read back before
    the folder gets its name. Raises MisuseError and what reading a family raises; `out` is then as it was.
    """
    chosen = TARGETS[target]
    require_new(out)
    _require_used(target, settings, given)
    plan = make_plan(
        family, settings, needs_hub=chosen.needs_hub, longest_suffix=chosen.suffix, quantized=chosen.quantized
    )
    read = read_section(section, plan)
    files = chosen.write(plan, read)
    write_folder(out, files, lambda folder: _reread(folder / "router.yml"))
    return Deployment(plan, read, files)


def _require_used(target: str, settings: DeploySettings, given: Collection[str]) -> None:
    """Raise MisuseError for an option that the target, or another option, leaves without effect."""
    for option in sorted(TARGETS[target].unused.intersection(given)):
        able = listed(name for name, other in TARGETS.items() if option not in other.unused)
        raise MisuseError(f"--{option.replace('_', '-')} is for --target {able}; --target {target} has no use for it")
    if settings.engine not in TARGETS[target].engines:
        able = listed(name for name, other in TARGETS.items() if settings.engine in other.engines)
        raise MisuseError(f"--target {target} runs on vLLM; --engine {settings.engine} is for --target {able}")
    if settings.live and settings.engine != "vllm":
        raise MisuseError(f"--live runs on vLLM; --engine {settings.engine} runs a server for each variant")
    if settings.live and settings.only:
        raise MisuseError("--live has every λ; --only chooses among variants, which have a server each")


def _reread(path: Path) -> None:
    load_config(path, EveryKey())
