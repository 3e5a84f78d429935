"""`--target kserve`: an LLMInferenceService for each variant, and our router in front of their routes.

KServe 0.20, serving.kserve.io/v1alpha2. Its controller makes the InferencePool, the endpoint picker and the route
/NAMESPACE/NAME of each service, sets vLLM's name for the model and its probes, and passes VLLM_ADDITIONAL_ARGS on.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from dami_router.deploying.engine_flags import vllm_options
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.deploying.kubernetes_files import cluster_files, cluster_opening
from dami_router.deploying.kubernetes_objects import GPU, Object, gateway_url, object_, vllm_env
from dami_router.deploying.router_file import RouterSection, backend
from dami_router.deploying.sizing import USABLE
from dami_router.deploying.written_files import Files, yaml_file

__all__ = ["kserve_files"]

_GATEWAY = "kserve/kserve-ingress-gateway"


def kserve_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return the services and the router's files."""
    plan = replace(plan, settings=replace(plan.settings, gateway=plan.settings.gateway or _GATEWAY))
    base = plan.settings.gateway_url or gateway_url(plan.settings.gateway or "")
    urls = {s.name: f"{base}/{plan.settings.namespace}/{s.name}" for s in plan.servers}
    account = object_("v1", "ServiceAccount", plan.name, secrets=[{"name": f"{plan.name}-keys"}])
    key = section.servers_key
    services = [_service(plan, server, key) for server in plan.servers]
    return cluster_files(
        plan,
        section,
        [backend(s, "openai", urls[s.name], key, replicas=plan.settings.replicas) for s in plan.servers],
        {"services.yaml": yaml_file(_opening(plan, base), account, *services)},
        reach=_reach(plan, key),
        servers_key=key,
        routed=True,
    )


def _service(plan: FleetPlan, server: ServerPlan, key: str | None) -> Object:
    uri = f"hf://{server.source.model}:{server.source.revision}"
    words = vllm_options(replace(plan, fit=replace(plan.fit, gpus=1)), server, USABLE, named=False)
    gpus = {GPU: str(plan.fit.gpus)}
    namespace, _, name = (plan.settings.gateway or "").rpartition("/")
    # The token is the storage initializer's; vLLM finds the weights on its disk.
    guarded = [one for one in vllm_env(plan, key) if one["name"] != "HF_TOKEN"]
    container = {
        "name": "main",
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(words)}, *guarded],
        "resources": {"requests": {"cpu": "4", "memory": "16Gi", **gpus}, "limits": gpus},
    }
    spec = {
        "model": {"uri": uri, "name": server.model},
        "replicas": plan.settings.replicas,
        **({"parallelism": {"tensor": plan.fit.gpus}} if plan.fit.gpus > 1 else {}),
        "router": {"gateway": {"refs": [{"name": name, "namespace": namespace}]}, "route": {}, "scheduler": {}},
        "template": {"serviceAccountName": plan.name, "containers": [container]},
    }
    return object_("serving.kserve.io/v1alpha2", "LLMInferenceService", server.name, spec=spec)


def _reach(plan: FleetPlan, key: str | None) -> str:
    where = f"KServe gives each variant a route of its own on the Gateway {plan.settings.gateway}, beside the router's"
    if key is None:
        return f"{where}; it answers without a key there, as the router does."
    return (
        f"{where}. Below /v1, vLLM asks for the key in {key} there. Its other paths, such as /tokenize and "
        "/invocations (which also generates), answer to everyone who reaches the Gateway: name one with --gateway that "
        "is reachable inside the cluster only, and give the router's Service a route of its own elsewhere."
    )


def _opening(plan: FleetPlan, base: str) -> str:
    return f"""\
An LLMInferenceService for each variant of {plan.family.name}, for KServe 0.20. Its scheduler picks the replica.
{cluster_opening(plan)}
The storage initializer downloads from the Hub with the HF_TOKEN of the ServiceAccount's secret.
The gateway {plan.settings.gateway} must exist; the router reaches it at {base} (--gateway-url)."""
