"""`--target production-stack`: values for vLLM's production-stack chart, and our router in front of its router.

The stack's router picks the replica; ours picks the variant. Chart 0.1.12, values.schema.json of that release.
"""

from __future__ import annotations

from typing import Any

from dami_router.deploying.engine_flags import HEALTH_PATH, IMAGES, PORT, reasoning_parser
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.deploying.kubernetes_files import cluster_files, cluster_opening
from dami_router.deploying.router_file import RouterSection, backend
from dami_router.deploying.sizing import USABLE
from dami_router.deploying.written_files import Files, yaml_file

__all__ = ["CHART_VERSION", "production_stack_files"]

CHART_VERSION = "0.1.12"
_REPOSITORY = "https://vllm-project.github.io/production-stack"


def production_stack_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return values.yaml for the chart, and the router's files."""
    url = f"http://{plan.name}-router-service"
    commands = (
        f"helm install {plan.name} vllm-stack --repo {_REPOSITORY} --version {CHART_VERSION} \\\n"
        f"    -n {plan.settings.namespace} -f values.yaml"
    )
    return {
        "values.yaml": yaml_file(_opening(plan), _values(plan)),
        **cluster_files(
            plan,
            section,
            [backend(s, "openai", url, replicas=plan.settings.replicas) for s in plan.servers],
            {},
            [commands],
            reach=_reach(plan),
        ),
    }


def _values(plan: FleetPlan) -> dict[str, Any]:
    ready = {"initialDelaySeconds": 15, "periodSeconds": 10, "httpGet": {"path": HEALTH_PATH, "port": PORT}}
    # With several replicas, a conversation stays where its prefix is in the cache.
    logic = "prefixaware" if plan.settings.replicas > 1 else "roundrobin"
    return {
        "servingEngineSpec": {
            "runtimeClassName": "",
            "containerPort": PORT,
            "startupProbe": {**ready, "failureThreshold": -(-plan.loading_s // 10)},
            "modelSpec": [_model(plan, server) for server in plan.servers],
        },
        "routerSpec": {"replicaCount": 1, "routingLogic": logic},
    }


def _model(plan: FleetPlan, server: ServerPlan) -> dict[str, Any]:
    repository, tag = IMAGES["vllm"].split(":")
    extra = ["--served-model-name", server.model]
    parser = reasoning_parser(plan, server)
    return {
        "name": server.name.removeprefix(f"{plan.name}-"),
        "repository": repository,
        "tag": tag,
        "modelURL": server.source.model,
        "modelRevision": server.source.revision,
        "replicaCount": plan.settings.replicas,
        "requestCPU": 4,
        "requestMemory": "16Gi",
        "requestGPU": plan.fit.gpus,
        **({"shmSize": "10Gi"} if plan.fit.gpus > 1 else {}),
        "vllmConfig": {
            "maxModelLen": plan.context,
            "enablePrefixCaching": True,
            "tensorParallelSize": plan.fit.gpus,
            "gpuMemoryUtilization": USABLE,
            "extraArgs": [*extra, *(["--reasoning-parser", parser] if parser else [])],
        },
        "hf_token": {"secretName": f"{plan.name}-keys", "secretKey": "HF_TOKEN"},
    }


def _reach(plan: FleetPlan) -> str:
    return (
        f"The Services {plan.name}-router-service and those of the servers are inside the cluster, and answer to every "
        "pod there without a key: a NetworkPolicy can close that. Expose the router's Service alone."
    )


def _opening(plan: FleetPlan) -> str:
    return f"""\
Values for vLLM's production-stack chart {CHART_VERSION}: one model for each variant of {plan.family.name}.
{cluster_opening(plan)}
Weights are downloaded when a pod starts; `pvcStorage` of a model keeps them.
The chart is installed as release {plan.name}; its router is the Service {plan.name}-router-service, which picks the
replica. The commands are in kustomization.yaml."""
