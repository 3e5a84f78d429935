"""The targets of `dami deploy`, and the one use case: read the family, write the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

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

__all__ = ["TARGETS", "Target", "deploy"]


@dataclass(frozen=True)
class Target:
    """The function that writes a target's files, the one to read first, and what the target can do.

    `suffix` is the longest ending that it adds to a server's name.
    """

    write: Callable[[FleetPlan, RouterSection], Files]
    first: str = "kustomization.yaml"
    engines: tuple[str, ...] = ("vllm",)
    needs_hub: bool = True
    live: bool = False
    suffix: str = ""


TARGETS: Mapping[str, Target] = {
    "compose": Target(compose_files, "compose.yaml", ("vllm", "tgi"), needs_hub=False, live=True),
    "production-stack": Target(production_stack_files, suffix="-engine-service"),
    "kserve": Target(kserve_files),
    "gateway": Target(gateway_files, suffix="-epp"),
    "ray": Target(ray_files, suffix="-serve-svc"),
    "llama-server": Target(llama_files, "models.ini", needs_hub=False),
}


def deploy(
    family: str, target: str, out: Path, settings: DeploySettings, section: Path | None = None
) -> tuple[FleetPlan, Files]:
    """Write the folder `out` for a target of TARGETS, and return the plan with the files.

    The generated router.yml is read back before the folder gets its name. Raises MisuseError and what reading a family
    raises; `out` is then as it was.
    """
    chosen = TARGETS[target]
    require_new(out)
    if settings.engine not in chosen.engines:
        able = listed(name for name, other in TARGETS.items() if settings.engine in other.engines)
        raise MisuseError(f"--target {target} runs on vLLM; --engine {settings.engine} is for {able}")
    if settings.live and not (chosen.live and settings.engine == "vllm"):
        able = listed(name for name, other in TARGETS.items() if other.live)
        raise MisuseError(f"--live is for --target {able} with --engine vllm")
    read = read_section(section)
    plan = make_plan(family, settings, needs_hub=chosen.needs_hub, longest_suffix=chosen.suffix)
    files = chosen.write(plan, read)
    write_folder(out, files, lambda folder: _reread(folder / "router.yml"))
    return plan, files


def _reread(path: Path) -> None:
    load_config(path, EveryKey())
