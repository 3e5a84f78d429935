"""`--target compose`: everything on one machine, with Docker Compose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dami_router.deploying.engine_flags import CACHE, HEALTH_PATH, IMAGES, LIVE_IMAGE, PORT, ROUTER_IMAGE, arguments
from dami_router.deploying.first_request import first_request
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan, gpu_layout
from dami_router.deploying.kubernetes_objects import CONFIG_FOLDER, env_example, env_step
from dami_router.deploying.router_file import RouterSection, backend, router_data, router_manifest
from dami_router.deploying.sizing import GIB, gpus_of
from dami_router.deploying.written_files import Files, yaml_file
from dami_router.manifest.family import MANIFEST

__all__ = ["compose_files"]

_ASK = "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}{path}', timeout=4)"
Placed = tuple[str, ServerPlan, Sequence[int], float]


def compose_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return compose.yaml, router.yml, `.env.example` and the manifest."""
    placed = _placed(plan)
    backends = [backend(s, _protocol(plan), _urls(placed, s)) for s in plan.servers]
    services: dict[str, Any] = {}
    for name, server, gpus, fraction in placed:
        # Two servers on one GPU would each measure the other's loading as their own: start one after the other.
        before = [n for n, s in services.items() if s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
                  == [str(gpu) for gpu in gpus]]  # fmt: skip
        services[name] = _server(plan, section, server, gpus, fraction, before[-1:])
    services["router"] = _router(plan, section, [name for name, *_ in placed])
    data = {"name": plan.name, "services": services, "volumes": {"weights": {}}}
    return {
        "compose.yaml": yaml_file(_opening(plan, section, placed), data),
        "router.yml": yaml_file(_ROUTER, router_data(section, backends)),
        ".env.example": env_example(section),
        MANIFEST: router_manifest(plan.family),
        **section.files,
    }


_ROUTER = """\
The router's settings: which variant is on which server, and how λ is chosen. compose.yaml mounts this file.
Check it with the keys of .env; all settings are in docs/router.md of dami-merge:

  set -a; . ./.env; dami check router.yml"""


def _placed(plan: FleetPlan) -> list[Placed]:
    copies = plan.settings.replicas
    named = [
        (server.name.removeprefix(f"{plan.name}-") + (f"-{i + 1}" if copies > 1 else ""), server)
        for server in plan.servers
        for i in range(copies)
    ]
    layout = gpu_layout(plan, len(named))
    return [(name, server, gpus, share) for (name, server), (gpus, share) in zip(named, layout, strict=True)]


def _protocol(plan: FleetPlan) -> str:
    return "tgi" if plan.settings.engine == "tgi" else "openai"


def _urls(placed: Sequence[Placed], server: ServerPlan) -> str | list[str]:
    urls = [f"http://{name}:{PORT}" for name, other, *_ in placed if other is server]
    return urls[0] if len(urls) == 1 else urls


def _server(
    plan: FleetPlan, section: RouterSection, server: ServerPlan, gpus: Sequence[int], fraction: float, after: list[str]
) -> dict[str, Any]:
    engine = plan.settings.engine
    volumes: list[Any] = [{"type": "volume", "source": "weights", "target": CACHE[engine]}]
    if server.source.folder is not None:
        volumes.append({
            "type": "bind", "source": _literal(str(server.source.folder)), "target": server.source.model,
            "read_only": True,
        })  # fmt: skip
    command = {"entrypoint": ["vllm", "serve"]} if engine == "vllm" and server.variant else {}
    words = arguments(plan, server, fraction, prefill_log_probs=section.scores_prompts)
    device = {"driver": "nvidia", "device_ids": [str(gpu) for gpu in gpus], "capabilities": ["gpu"]}
    waits = {"depends_on": {name: {"condition": "service_healthy"} for name in after}} if after else {}
    return {
        "image": LIVE_IMAGE if server.variant is None else IMAGES[engine],
        **command,
        "command": [_literal(word) for word in words],
        "environment": {"HF_TOKEN": "${HF_TOKEN:-}"},
        "volumes": volumes,
        "shm_size": "1gb",
        "deploy": {"resources": {"reservations": {"devices": [device]}}},
        "healthcheck": _health("python3" if engine == "vllm" else "curl", plan.loading_s),
        **waits,
        "restart": "unless-stopped",
    }


def _health(tool: str, start_s: int) -> dict[str, Any]:
    test = ["CMD", "curl", "-fsS", f"http://127.0.0.1:{PORT}{HEALTH_PATH}"]
    if tool != "curl":
        test = ["CMD", tool, "-c", _ASK.format(port=PORT, path=HEALTH_PATH)]
    times = {"interval": "10s", "timeout": "5s", "retries": 3, "start_interval": "5s"}
    return {"test": test, "start_period": f"{start_s}s", **times}


def _router(plan: FleetPlan, section: RouterSection, servers: Sequence[str]) -> dict[str, Any]:
    names = ["router.yml", MANIFEST, *sorted({name.split("/")[0] for name in section.files})]
    return {
        "image": plan.settings.image or ROUTER_IMAGE,
        "command": ["serve", f"{CONFIG_FOLDER}/router.yml", "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104
        "environment": {name: f"${{{name}:?copy .env.example to .env and set {name}}}" for name in section.keys},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": [
            {"type": "bind", "source": f"./{_literal(name)}", "target": f"{CONFIG_FOLDER}/{name}", "read_only": True}
            for name in names
        ],
        "depends_on": {name: {"condition": "service_healthy"} for name in servers},
        "healthcheck": _health("python3", 10),
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": "45s",
        "restart": "unless-stopped",
    }


def _literal(text: str) -> str:
    """Return text that Compose does not interpolate."""
    return text.replace("$", "$$")


def _opening(plan: FleetPlan, section: RouterSection, placed: Sequence[Placed]) -> str:
    gpus = len({gpu for *_, used, _ in placed for gpu in used})
    image = plan.settings.image or ROUTER_IMAGE
    live = f"\n  docker build -t {LIVE_IMAGE} --target live PATH/TO/dami-merge" if plan.settings.live else ""
    return f"""\
{plan.family.name} on one machine: {len(placed)} server{"s" * (len(placed) > 1)} on {gpus_of(gpus)} of \
{plan.settings.gpu_memory:g} GiB, and the router in front.
Each server needs {plan.fit.needed / GIB:.1f} GiB on {gpus_of(plan.fit.gpus)}, with room for \
one sequence of {plan.context} tokens; what is left of its share holds more.
Needs Docker Engine 25 or newer, its Compose plug-in, and the NVIDIA Container Toolkit. In this folder:

  docker build -t {image} PATH/TO/dami-merge{live}
  {env_step(section.keys)}
  docker compose up --wait    # until every server has loaded its weights

{first_request(plan, section, f"http://127.0.0.1:{PORT}")}

The router listens on 127.0.0.1. The servers publish no port and ask for no key: the containers of this project, and \
processes on this machine that know a container's address, reach them."""
