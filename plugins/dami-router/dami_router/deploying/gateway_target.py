"""`--target gateway`: an InferencePool for each variant on a Gateway API gateway, and our router in front.

InferencePool v1 (Gateway API Inference Extension 1.6) with the endpoint picker of llm-d-router 0.10, whose chart says
which rights, ports and probes it needs. Each pool has the path /NAMESPACE/NAME: the router's health checks are GET
requests without a body, so a route by the model's name in the body would not find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import yaml

from dami_router.deploying.engine_flags import CACHE, HEALTH_PATH, IMAGES, PORT, arguments
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.deploying.kubernetes_files import cluster_files, cluster_opening
from dami_router.deploying.kubernetes_objects import (
    GPU,
    Object,
    gateway_url,
    http_route,
    object_,
    probe,
    vllm_env,
)
from dami_router.deploying.router_file import RouterSection, backend
from dami_router.deploying.sizing import USABLE
from dami_router.deploying.written_files import Files, yaml_file
from dami_router.errors import MisuseError

__all__ = ["PICKER_IMAGE", "gateway_files"]

PICKER_IMAGE = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"
_GROUP = "inference.networking.k8s.io"
_MAX_RULES = 16
"""Of an HTTPRoute, by its definition."""
_GRPC, _GRPC_HEALTH, _METRICS = 9002, 9003, 9090
_SCORERS = (("queue-scorer", 2), ("kv-cache-utilization-scorer", 2), ("prefix-cache-scorer", 3))
"""Weights of the chart's default: a conversation stays where its prefix is, unless that replica is busy."""


def gateway_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return servers, pools with their pickers and routes, and the router's files."""
    gateway = plan.settings.gateway or f"{plan.settings.namespace}/inference-gateway"
    plan = replace(plan, settings=replace(plan.settings, gateway=gateway))
    base = plan.settings.gateway_url or gateway_url(gateway)
    paths = {s.name: f"/{plan.settings.namespace}/{s.name}" for s in plan.servers}
    key = section.servers_key
    open_paths = ["/v1", *(path for path in section.pass_through if not path.startswith("/v1/"))]
    if len(open_paths) > _MAX_RULES:
        raise MisuseError(f"pass_through: a route on a Gateway has at most {_MAX_RULES} paths, found {len(open_paths)}")
    pools = [one for s in plan.servers for one in _pool(plan, s, paths[s.name], open_paths)]
    rules = [_destination_rule(plan, s) for s in plan.servers]
    files = cluster_files(
        plan,
        section,
        [backend(s, "openai", base + paths[s.name], key, replicas=plan.settings.replicas) for s in plan.servers],
        {
            "servers.yaml": yaml_file(_servers_opening(plan), *(_deployment(plan, s, key) for s in plan.servers)),
            "pools.yaml": yaml_file(_pools_opening(plan, base), *_rights(plan), *pools),
        },
        [f"kubectl apply -n {plan.settings.namespace} -f istio.yml    # on Istio only"],
        reach=_reach(plan, section, open_paths),
        servers_key=key,
        routed=True,
    )
    return {**files, "istio.yml": yaml_file(_ISTIO, *rules)}


def _labels(server: ServerPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": server.name}


def _deployment(plan: FleetPlan, server: ServerPlan, key: str | None) -> Object:
    cache = {"name": "weights", "mountPath": CACHE["vllm"]}
    gpus = {GPU: str(plan.fit.gpus)}
    container = {
        "name": "vllm",
        "image": IMAGES["vllm"],
        "command": ["vllm", "serve"],
        "args": arguments(plan, server, USABLE, prefill_log_probs=False),
        "env": vllm_env(plan, key),
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": probe(HEALTH_PATH, 10, -(-plan.loading_s // 10)),
        "readinessProbe": probe(HEALTH_PATH, 5, 2),
        "livenessProbe": probe(HEALTH_PATH, 10, 6),
        "lifecycle": {"preStop": {"sleep": {"seconds": 15}}},
        "resources": {"requests": {"cpu": "4", "memory": "16Gi", **gpus}, "limits": gpus},
        "volumeMounts": [cache, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    pod = {
        "terminationGracePeriodSeconds": 130,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "weights", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "10Gi"}},
        ],
    }
    spec = {
        "replicas": plan.settings.replicas,
        "selector": {"matchLabels": _labels(server)},
        "template": {"metadata": {"labels": _labels(server)}, "spec": pod},
        "progressDeadlineSeconds": plan.loading_s + 300,
    }
    return object_("apps/v1", "Deployment", server.name, spec=spec)


def _pool(plan: FleetPlan, server: ServerPlan, path: str, open_paths: Sequence[str]) -> list[Object]:
    picker = f"{server.name}-epp"
    pool = {
        "selector": {"matchLabels": _labels(server)},
        "targetPorts": [{"number": PORT}],
        "endpointPickerRef": {"name": picker, "port": {"number": _GRPC}, "failureMode": "FailOpen"},
    }
    target = {"group": _GROUP, "kind": "InferencePool", "name": server.name}
    ports = [{"name": "grpc-ext-proc", "port": _GRPC, "appProtocol": "kubernetes.io/h2c"},
             {"name": "http-metrics", "port": _METRICS}]  # fmt: skip
    return [
        object_(f"{_GROUP}/v1", "InferencePool", server.name, spec=pool),
        http_route(server.name, plan.settings.gateway or "", path, target, open_paths),
        _picker(plan, server, picker),
        object_("v1", "Service", picker, spec={"selector": {"app.kubernetes.io/name": picker}, "ports": ports}),
    ]


def _picker(plan: FleetPlan, server: ServerPlan, name: str) -> Object:
    labels = {"app.kubernetes.io/name": name}
    health = {"grpc": {"port": _GRPC_HEALTH, "service": "inference-extension"}}
    args = ["--pool-name", server.name, "--pool-namespace", plan.settings.namespace, "--pool-group", _GROUP]
    container = {
        "name": "epp",
        "image": PICKER_IMAGE,
        "args": [
            *args,
            "--config-file",
            "/config/picker.yaml",
            "--grpc-health-port",
            str(_GRPC_HEALTH),
            "--tracing=false",
        ],
        "env": [
            {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "ports": [{"name": "grpc", "containerPort": _GRPC}, {"name": "metrics", "containerPort": _METRICS}],
        "readinessProbe": {**health, "periodSeconds": 2},
        "livenessProbe": {**health, "initialDelaySeconds": 5, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "8Gi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/config", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": f"{plan.name}-epp",
        "terminationGracePeriodSeconds": 130,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": f"{plan.name}-epp"}}],
    }
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return object_("apps/v1", "Deployment", name, spec=spec)


def _rights(plan: FleetPlan) -> list[Object]:
    """Return the account of all pickers, what it may read, and how a picker weighs replicas."""
    name = f"{plan.name}-epp"
    read = ["get", "watch", "list"]
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": read},
        {"apiGroups": [_GROUP], "resources": ["inferencepools"], "verbs": read},
        {"apiGroups": ["llm-d.ai", "inference.networking.x-k8s.io"],
         "resources": ["inferenceobjectives", "inferencemodelrewrites"], "verbs": read},
    ]  # fmt: skip
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": plan.settings.namespace}
    weighed = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            *({"type": scorer} for scorer, _ in _SCORERS),
            {"type": "metrics-data-source", "parameters": {"scheme": "http", "path": "/metrics"}},
            {"type": "core-metrics-extractor"},
        ],
        "schedulingProfiles": [
            {"name": "default", "plugins": [{"pluginRef": scorer, "weight": weight} for scorer, weight in _SCORERS]}
        ],
    }
    api = "rbac.authorization.k8s.io/v1"
    return [
        object_("v1", "ServiceAccount", name),
        object_(api, "Role", name, rules=rules),
        object_(api, "RoleBinding", name, roleRef=role, subjects=[subject]),
        object_("v1", "ConfigMap", name, data={"picker.yaml": yaml.safe_dump(weighed, sort_keys=False)}),
    ]


def _destination_rule(plan: FleetPlan, server: ServerPlan) -> Object:
    host = f"{server.name}-epp.{plan.settings.namespace}.svc.cluster.local"
    spec = {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE", "insecureSkipVerify": True}}}
    return object_("networking.istio.io/v1", "DestinationRule", f"{server.name}-epp", spec=spec)


def _reach(plan: FleetPlan, section: RouterSection, open_paths: Sequence[str]) -> str:
    where = f"Each variant has a route of its own on the Gateway {plan.settings.gateway}"
    if section.servers_key is None:
        return f"{where}, and answers without a key there, as the router does."
    further = f", but not for {', '.join(open_paths[1:])} (pass_through)" if open_paths[1:] else ""
    return (
        f"{where}, beside the router's. It is open below {' and '.join(open_paths)} only, where vLLM asks for the key "
        f"in {section.servers_key}{further}. Inside the cluster, vLLM's other paths, such as /tokenize and "
        "/invocations, answer without a key on port 8000 of each pod: a NetworkPolicy can close that."
    )


def _servers_opening(plan: FleetPlan) -> str:
    return f"""\
A Deployment of vLLM for each variant of {plan.family.name}.
{cluster_opening(plan)}
Weights are downloaded when a pod starts; put a persistent volume in the place of `emptyDir` to keep them.
kustomization.yaml applies this file."""


def _pools_opening(plan: FleetPlan, base: str) -> str:
    return f"""\
An InferencePool for each variant of {plan.family.name}, with its endpoint picker and its route.
Needs a gateway that supports InferencePool v1 (Gateway API Inference Extension 1.6): {plan.settings.gateway}
(--gateway NAMESPACE/NAME). The router reaches it at {base} (--gateway-url).
kustomization.yaml applies this file."""


_ISTIO = """\
For Istio only: the endpoint pickers serve TLS with certificates that they sign themselves.
kustomization.yaml says when to apply this file."""
