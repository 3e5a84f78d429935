"""The files that all targets on Kubernetes share: the router's objects, its settings, and one `kubectl apply -k`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dami_router.deploying.engine_flags import ROUTER_IMAGE
from dami_router.deploying.first_request import first_request
from dami_router.deploying.fleet_plan import FleetPlan
from dami_router.deploying.kubernetes_objects import (
    Object,
    env_example,
    env_step,
    http_route,
    kustomization,
    router_objects,
    router_service,
)
from dami_router.deploying.router_file import RouterSection, router_data, router_manifest
from dami_router.deploying.sizing import GIB, gpus_of
from dami_router.deploying.written_files import yaml_file
from dami_router.manifest.family import MANIFEST

__all__ = ["Image", "cluster_files", "cluster_opening"]


class Image(NamedTuple):
    """The router's image, and the arguments of `docker build` that make it."""

    name: str
    build: str


def cluster_files(
    plan: FleetPlan,
    section: RouterSection,
    backends: list[dict[str, Any]],
    resources: Mapping[str, bytes],
    before: Sequence[str] = (),
    *,
    reach: str,
    servers_key: str | None = None,
    routed: bool = False,
    service: str | None = None,
    image: Image | None = None,
) -> dict[str, bytes]:
    """Return the shared files and `resources`.

    `before`: further commands, after `kubectl apply -k`. `reach`: who can send requests to the servers. `servers_key`:
    the variable with their key. `routed`: the router gets an HTTPRoute on the gateway. `service`: NAME PORT where
    another of the resources runs the router.
    """
    image = image or Image(plan.settings.image or ROUTER_IMAGE, "PATH/TO/dami-merge")
    keys = list(dict.fromkeys([*section.keys, *filter(None, [servers_key])]))
    files: dict[str, bytes] = dict(resources)
    if service is None:
        objects = [*router_objects(plan, keys), *([_router_route(plan)] if routed else [])]
        files["dami.yaml"] = yaml_file(_DAMI.format(plan=plan), *objects)
    files["router.yml"] = yaml_file(_ROUTER, router_data(section, backends))
    files[MANIFEST] = router_manifest(plan.family)
    files[".env.example"] = env_example(section, servers_key)
    files.update(section.files)
    sizes = {name: len(content) for name, content in files.items()}
    applied = [name for name in files if name.endswith(".yaml")]
    kustom = kustomization(plan, section, applied, sizes)
    commands = [env_step(keys), "kubectl apply -k .", *before]
    opening = _opening(plan, section, commands, service or f"{router_service(plan)} 80", image, reach)
    files["kustomization.yaml"] = yaml_file(opening, kustom)
    return files


def cluster_opening(plan: FleetPlan) -> str:
    """Return the size of a server, in words."""
    gpus = plan.fit.gpus
    each = f"{plan.fit.needed / GIB:.1f} GiB{' on each' * (gpus > 1)} with one sequence of {plan.context} tokens"
    return (
        f"Each replica needs {gpus_of(gpus)} of {plan.settings.gpu_memory:g} GiB: {each}; its KV cache has room for "
        f"{plan.fit.cache_tokens} tokens."
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
Check it with the keys of .env; all settings are in docs/router.md of dami-merge:

  set -a; . ./.env; dami check router.yml

After a change, apply again and restart the router."""


def _opening(
    plan: FleetPlan, section: RouterSection, commands: Sequence[str], service: str, image: Image, reach: str
) -> str:
    (name, port), namespace = service.split(), plan.settings.namespace
    steps = "\n  ".join(commands)
    return f"""\
{plan.family.name} on Kubernetes, in the namespace {namespace}. The image {image.name} must be where the cluster can \
pull it; `dami deploy --image` writes another name here:

  docker build -t {image.name} {image.build}
  docker push {image.name}

Then, in this folder; `kubectl apply -k .` applies the files under `resources` below:

  {steps}

Pods are ready once their weights are loaded; that takes up to {plan.loading_s // 60} minutes. Reach the router with

  kubectl -n {namespace} port-forward svc/{name} 8000:{port}

{first_request(plan, section, "http://127.0.0.1:8000")}

{reach}

Another family in the same namespace needs another name (--name)."""
