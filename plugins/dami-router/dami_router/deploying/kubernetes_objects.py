"""Kubernetes objects that every target on a cluster needs: the router, its settings, its keys.

`kubectl apply -k` makes the ConfigMap and the Secret from files: router.yml stays a file that `dami check` reads, and
keys stay in `.env`, which is never generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dami_router.deploying.engine_flags import HEALTH_PATH, PORT, ROUTER_IMAGE
from dami_router.deploying.fleet_plan import FleetPlan
from dami_router.deploying.router_file import RouterSection
from dami_router.deploying.written_files import comment
from dami_router.errors import MisuseError

__all__ = [
    "CONFIG_FOLDER", "DRAIN_S", "GPU", "Object", "env_example", "env_step", "gateway_url", "http_route",
    "kustomization", "object_", "probe", "router_objects", "router_service", "secret_env", "vllm_env",
]  # fmt: skip

Object = dict[str, Any]
CONFIG_FOLDER = "/etc/dami"
GPU = "nvidia.com/gpu"
DRAIN_S = 30
_USER = 65532
_MAX_CONFIG_MAP = 1_000_000


def object_(api: str, kind: str, name: str, **fields: Any) -> Object:
    """Return an object with its labels; kustomize adds the namespace."""
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "dami-deploy"}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, **fields}


def probe(path: str, every: int, failures: int) -> Object:
    """Return a probe of an HTTP route on the server's port."""
    return {"httpGet": {"path": path, "port": PORT}, "periodSeconds": every, "failureThreshold": failures}


def gateway_url(gateway: str) -> str:
    """Return where Istio's Service for a Gateway is inside the cluster; other implementations name theirs otherwise."""
    namespace, _, name = gateway.rpartition("/")
    return f"http://{name}-istio.{namespace}.svc.cluster.local"


def router_service(plan: FleetPlan) -> str:
    """Return the name of the router's Service."""
    return f"{plan.name}-router"


def secret_env(plan: FleetPlan, *names: str) -> list[Object]:
    """Return environment variables whose values are in the Secret."""
    return [{"name": n, "valueFrom": {"secretKeyRef": {"name": f"{plan.name}-keys", "key": n}}} for n in names]


def vllm_env(plan: FleetPlan, key: str | None) -> list[Object]:
    """Return vLLM's variables: the Hub's token, and the key that it asks for below /v1."""
    guarded = [{**one, "name": "VLLM_API_KEY"} for one in secret_env(plan, *filter(None, [key]))]
    return [*secret_env(plan, "HF_TOKEN"), *guarded]


def router_objects(plan: FleetPlan, keys: Sequence[str]) -> list[Object]:
    """Return the router's Deployment and Service; `keys` are the variables that its settings name."""
    name = router_service(plan)
    labels = {"app.kubernetes.io/name": name}
    pod = {
        "terminationGracePeriodSeconds": DRAIN_S + 15,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_router_container(plan, keys)],
        "volumes": [{"name": "config", "configMap": {"name": f"{plan.name}-config"}}],
    }  # fmt: skip
    # One pod: budgets and breakers are each process's own.
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    ports = [{"name": "http", "port": 80, "targetPort": PORT}]
    return [
        object_("apps/v1", "Deployment", name, spec=spec),
        object_("v1", "Service", name, spec={"selector": labels, "ports": ports}),
    ]


def _router_container(plan: FleetPlan, keys: Sequence[str]) -> Object:
    return {
        "name": "router",
        "image": plan.settings.image or ROUTER_IMAGE,
        "args": ["serve", f"{CONFIG_FOLDER}/router.yml", "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104
        "ports": [{"name": "http", "containerPort": PORT}],
        "env": secret_env(plan, *keys),
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}],
        # /health is 200 while one variant is available: traffic waits for that, and a restart would not help.
        "readinessProbe": probe(HEALTH_PATH, 5, 2),
        "livenessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 10, "failureThreshold": 6},
        # Endpoints forget the pod before it stops accepting.
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip


def http_route(name: str, gateway: str, path: str, target: Mapping[str, Any], below: Sequence[str] = ("",)) -> Object:
    """Return a route that sends what is below `path`, or only below some paths there, to a target without `path`.

    `gateway` is NAMESPACE/NAME. Timeouts are off: an answer may take long, and the router has limits of its own.
    """
    namespace, _, gateway_name = gateway.rpartition("/")
    parent = {"name": gateway_name, **({"namespace": namespace} if namespace else {})}
    rules = [
        {
            "matches": [{"path": {"type": "PathPrefix", "value": path + one}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {
                "type": "ReplacePrefixMatch", "replacePrefixMatch": one or "/",
            }}}],
            "backendRefs": [dict(target)],
            "timeouts": {"request": "0s", "backendRequest": "0s"},
        }
        for one in below
    ]  # fmt: skip
    return object_("gateway.networking.k8s.io/v1", "HTTPRoute", name, spec={"parentRefs": [parent], "rules": rules})


def kustomization(
    plan: FleetPlan, section: RouterSection, resources: Sequence[str], sizes: Mapping[str, int]
) -> Object:
    """Return kustomization.yaml; raises MisuseError where the router's files do not fit a ConfigMap."""
    names = ["router.yml", "dami_family.json", *section.files]
    nested = [name for name in section.files if len(PurePosixPath(name).parts) > 1]
    if nested or sum(sizes[name] for name in names) > _MAX_CONFIG_MAP:
        what = nested[0] if nested else "the files that router.yml names"
        raise MisuseError(
            f"{what}: a ConfigMap holds files without folders, 1 MB in all",
            hint="build an image that holds the estimator: FROM " + ROUTER_IMAGE + ", and COPY",
        )
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": plan.settings.namespace,
        "resources": list(resources),
        "configMapGenerator": [{"name": f"{plan.name}-config", "files": names}],
        "secretGenerator": [{"name": f"{plan.name}-keys", "envs": [".env"]}],
        # Custom resources refer to both by name, and kustomize does not rewrite those.
        "generatorOptions": {"disableNameSuffixHash": True},
    }


def env_example(section: RouterSection, servers_key: str | None = None) -> bytes:
    """Return `.env.example`: the variables that must be set, without values."""
    told: list[tuple[str, Sequence[str]]] = [
        ("Copy this file to .env and fill it in; .env stays out of version control.", [])
    ]
    if section.keys:
        told.append(("The key that clients of the router send, for instance from: openssl rand -hex 24", section.keys))
    if servers_key:
        told.append(("Another key, which the router sends to the servers of the variants.", [servers_key]))
    told.append(("A token of the Hugging Face Hub, for private repositories; may stay empty.", ["HF_TOKEN"]))
    return "".join(comment(text) + "".join(f"{name}=\n" for name in names) for text, names in told).encode()


def env_step(keys: Sequence[str]) -> str:
    """Return the command that makes `.env`, with the variables to set there."""
    return "cp .env.example .env" + (f"    # and set {', '.join(keys)}" if keys else "")
