"""`--target ray`: a Ray Serve application for each variant (Ray Serve LLM), and our router as one more application.

Ray picks the replica; the router picks the variant. Each variant has an OpenAI API below its own path, and the router
calls it through Ray's own HTTP proxy on its node. Ray 2.56 (KubeRay's samples name that image); the fields of
`llm_configs` are those of ray.serve.llm.LLMConfig.
"""

from __future__ import annotations

from typing import Any

import yaml

from dami_router.deploying.engine_flags import PORT, reasoning_parser
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.deploying.kubernetes_files import Image, cluster_files, cluster_opening
from dami_router.deploying.kubernetes_objects import CONFIG_FOLDER, GPU, Object, object_, secret_env
from dami_router.deploying.router_file import RouterSection, backend
from dami_router.deploying.sizing import USABLE
from dami_router.deploying.written_files import Files, comment, yaml_file
from dami_router.version import __version__

__all__ = ["RAY_IMAGE", "ray_files", "serve_config"]

RAY_VERSION = "2.56.0"
RAY_IMAGE = f"dami-ray:{__version__}"
_BASE = f"rayproject/ray-llm:{RAY_VERSION}-py312-cu130"
_BUILDER = "ray.serve.llm:build_openai_app"
_ROUTER = "dami_router.deploying.ray_ingress:build_router"


def ray_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return the RayService, the Serve configuration that it runs, the image's Dockerfile, and the router's files."""
    serve = serve_config(plan)
    files = cluster_files(
        plan,
        section,
        [
            backend(s, "openai", f"http://127.0.0.1:{PORT}{_path(plan, s)}", replicas=plan.settings.replicas)
            for s in plan.servers
        ],
        {"rayservice.yaml": yaml_file(_opening(plan), _ray_service(plan, section, serve))},
        service=f"{plan.name}-serve-svc {PORT}",
        image=Image(_image(plan), "-f Dockerfile PATH/TO/dami-merge"),
        reach=_reach(plan),
    )
    return {**files, "serve.yml": yaml_file(_serve_opening(plan, section), serve), "Dockerfile": _dockerfile(plan)}


def serve_config(plan: FleetPlan, builder: str = _BUILDER) -> dict[str, Any]:
    """Return the Serve configuration: an application for each variant, built by `builder`, and the router at `/`."""
    apps = [
        {
            "name": server.name,
            "route_prefix": _path(plan, server),
            "import_path": builder,
            "args": {"llm_configs": [_llm_config(plan, server)]},
        }
        for server in plan.servers
    ]
    router = {
        "name": f"{plan.name}-router",
        "route_prefix": "/",
        "import_path": _ROUTER,
        "args": {"config": f"{CONFIG_FOLDER}/router.yml"},
    }
    return {"http_options": {"host": "0.0.0.0", "port": PORT}, "applications": [*apps, router]}  # noqa: S104


def _path(plan: FleetPlan, server: ServerPlan) -> str:
    return "/" + server.name.removeprefix(f"{plan.name}-")


def _llm_config(plan: FleetPlan, server: ServerPlan) -> dict[str, Any]:
    parser = reasoning_parser(plan, server)
    return {
        "model_loading_config": {"model_id": server.model, "model_source": server.source.model},
        "engine_kwargs": {
            "revision": server.source.revision,
            "max_model_len": plan.context,
            "gpu_memory_utilization": USABLE,
            "tensor_parallel_size": plan.fit.gpus,
            **({"reasoning_parser": parser} if parser else {}),
        },
        "deployment_config": {"num_replicas": plan.settings.replicas, "max_ongoing_requests": 256},
    }


def _image(plan: FleetPlan) -> str:
    return plan.settings.image or RAY_IMAGE


def _ray_service(plan: FleetPlan, section: RouterSection, serve: dict[str, Any]) -> Object:
    workers = len(plan.servers) * plan.settings.replicas
    group = {
        "groupName": "gpu",
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": 2 * workers,
        "rayStartParams": {},
        "template": _pod(plan, section, "ray-worker", plan.fit.gpus),
    }
    head = {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": _pod(plan, section, "ray-head", 0)}  # noqa: S104
    spec = {
        "serveConfigV2": yaml.safe_dump(serve, sort_keys=False, allow_unicode=True, width=120),
        "rayClusterConfig": {"rayVersion": RAY_VERSION, "headGroupSpec": head, "workerGroupSpecs": [group]},
    }
    return object_("ray.io/v1", "RayService", plan.name, spec=spec)


def _pod(plan: FleetPlan, section: RouterSection, name: str, gpus: int) -> Object:
    limits = {GPU: str(gpus)} if gpus else {}
    container = {
        "name": name,
        "image": _image(plan),
        "env": [*secret_env(plan, *section.keys, "HF_TOKEN")],
        "ports": [{"name": "serve", "containerPort": PORT}],
        "resources": {"requests": {"cpu": "4", "memory": "16Gi", **limits}, "limits": {"memory": "64Gi", **limits}},
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}],
    }
    volumes = [{"name": "config", "configMap": {"name": f"{plan.name}-config"}}]
    return {"spec": {"containers": [container], "volumes": volumes}}


def _dockerfile(plan: FleetPlan) -> bytes:
    opening = f"""\
Ray's image for LLMs with dami-router in it; all nodes of the cluster run it. In this folder:

  docker build -t {_image(plan)} -f Dockerfile PATH/TO/dami-merge
  docker push {_image(plan)}"""
    install = "RUN pip install --no-cache-dir '/tmp/dami-router[serve]'"
    return f"{comment(opening)}FROM {_BASE}\nCOPY plugins/dami-router /tmp/dami-router\n{install}\n".encode()


def _reach(plan: FleetPlan) -> str:
    paths = ", ".join(_path(plan, server) for server in plan.servers)
    return (
        f"Ray serves all applications on port {PORT}: {paths} answer there without a key, and Ray Serve LLM has none "
        "to set. From outside the cluster, forward the paths below /v1 only, which are the router's; inside, a "
        "NetworkPolicy decides who reaches the port."
    )


def _opening(plan: FleetPlan) -> str:
    return f"""\
{plan.family.name} on Ray: a RayService (KubeRay 1.6 or newer) that runs serve.yml.
{cluster_opening(plan)}
kustomization.yaml has the commands, and applies this file. The router answers at the Service {plan.name}-serve-svc,
port {PORT}."""


def _serve_opening(plan: FleetPlan, section: RouterSection) -> str:
    keys = f", and {', '.join(section.keys)} in the environment of `ray start`" if section.keys else ""
    return f"""\
The Serve configuration of {plan.family.name}: an application for each variant, and the router in front of them at /.
rayservice.yaml holds the same. On a Ray cluster without Kubernetes, with dami-router installed on every node, this
folder at {CONFIG_FOLDER} there{keys}:

  serve deploy serve.yml
  serve status                   # until every application is RUNNING

{_reach(plan)}

A variant's scale is its `num_replicas`; deploy again after a change."""
