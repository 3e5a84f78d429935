"""The files that all targets on Kubernetes share: the router's objects, its settings, and one `kubectl apply -k`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dami_router.deploying.engine_flags import ROUTER_IMAGE
from dami_router.deploying.first_request import first_request
from dami_router.deploying.fleet_plan import FleetPlan
from dami_router.deploying.kubernetes_objects import (
    Object,
    env_example,
    http_route,
    kustomization,
    router_objects,
    router_service,
)
from dami_router.deploying.router_file import RouterSection, router_data, router_manifest
from dami_router.deploying.sizing import GIB
from dami_router.deploying.written_files import yaml_file
from dami_router.manifest.family import MANIFEST

__all__ = ["cluster_files", "cluster_opening"]


def cluster_files(
    plan: FleetPlan,
    section: RouterSection,
    backends: list[dict[str, Any]],
    resources: Mapping[str, bytes],
    before: Sequence[str] = (),
    *,
    routed: bool = False,
    service: str | None = None,
    image: str = ROUTER_IMAGE,
) -> dict[str, bytes]:
    """Return the shared files and `resources`.

    `before`: commands after the keys are set and before the router is applied. `routed`: the router gets an HTTPRoute
    on the gateway. `service`: NAME PORT where another of the resources runs the router.
    """
    files: dict[str, bytes] = dict(resources)
    if service is None:
        objects = [*router_objects(plan, section), *([_router_route(plan)] if routed else [])]
        files["dami.yaml"] = yaml_file(_DAMI.format(plan=plan), *objects)
    files["router.yml"] = yaml_file(_ROUTER, router_data(section, backends))
    files[MANIFEST] = router_manifest(plan.family)
    files[".env.example"] = env_example(section)
    files.update(section.files)
    sizes = {name: len(content) for name, content in files.items()}
    applied = [name for name in files if name.endswith(".yaml")]
    kustom = kustomization(plan, section, applied, sizes)
    files["kustomization.yaml"] = yaml_file(
        _opening(plan, section, before, service or f"{router_service(plan)} 80", plan.settings.image or image), kustom
    )
    return files


def cluster_opening(plan: FleetPlan) -> str:
    """Return the size of a server, in words."""
    gpus = plan.fit.gpus
    each = f"{gpus} GPU{'s' * (gpus > 1)} of {plan.settings.gpu_memory:g} GiB"
    return (
        f"Each replica needs {each}: {plan.fit.needed / GIB:.1f} GiB on each with one sequence of "
        f"{plan.context} tokens;\nits KV cache has room for {plan.fit.cache_tokens} tokens."
    )


def _router_route(plan: FleetPlan) -> Object:
    name = router_service(plan)
    return http_route(
        name, plan.settings.gateway or "", f"/{plan.settings.namespace}/{name}", {"name": name, "port": 80}
    )


_DAMI = """\
The router of {plan.family.name}: chooses the variant for each request. kustomization.yaml applies this file."""

_ROUTER = """\
The router's settings: which variant is where, and how λ is chosen. kustomization.yaml makes a ConfigMap of this file.
Check it with `dami check router.yml`; all settings are in docs/router.md of dami-merge. After a change, apply again
and restart the router."""


def _opening(plan: FleetPlan, section: RouterSection, before: Sequence[str], service: str, image: str) -> str:
    (name, port), namespace = service.split(), plan.settings.namespace
    steps = "\n  ".join([
        f"cp .env.example .env    # and set {', '.join(section.keys)}",
        "kubectl apply -k .",
        *before,
    ])  # fmt: skip
    return f"""\
{plan.family.name} on Kubernetes: `kubectl apply -k .` applies everything in this folder to the namespace {namespace}. \
The image {image} must be where the cluster can pull it: build it from its Dockerfile and push it to your registry; \
--image writes another name here. In this folder:

  {steps}

Pods are ready once their weights are loaded; that takes up to {plan.loading_s // 60} minutes. Reach the router with

  kubectl -n {namespace} port-forward svc/{name} 8000:{port}

{first_request(plan, section, "http://127.0.0.1:8000")}

Another family in the same namespace needs another name (--name)."""
