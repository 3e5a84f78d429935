"""`--target llama-server`: the presets of llama.cpp's router mode, one model for each variant, on a laptop.

tools/server/README.md of llama.cpp, section "Model presets": a section names a model, its keys are arguments without
dashes. One process loads models as they are asked for; the router tells them apart by `model`.
"""

from __future__ import annotations

import shlex

from dami_router.deploying.engine_flags import PORT
from dami_router.deploying.first_request import first_request
from dami_router.deploying.fleet_plan import FleetPlan, ServerPlan
from dami_router.deploying.kubernetes_objects import env_example, env_step
from dami_router.deploying.router_file import RouterSection, backend, router_data, router_manifest
from dami_router.deploying.sizing import GIB
from dami_router.deploying.written_files import Files, comment, yaml_file
from dami_router.manifest.family import MANIFEST

__all__ = ["llama_files"]

_PORT = 8080
_QUANT = "q8_0"


def llama_files(plan: FleetPlan, section: RouterSection) -> Files:
    """Return the presets, router.yml and the manifest."""
    url = f"http://127.0.0.1:{_PORT}"
    return {
        "models.ini": _presets(plan),
        "router.yml": yaml_file(
            _router_opening(plan, section), router_data(section, [backend(s, "openai", url) for s in plan.servers])
        ),
        ".env.example": env_example(section),
        MANIFEST: router_manifest(plan.family),
        **section.files,
    }


def _presets(plan: FleetPlan) -> bytes:
    every = {"ctx-size": str(plan.context), "reasoning-format": "none", "load-on-startup": "true"}
    sections = [("*", every), *((s.model, {"model": f"models/{s.model}.gguf"}) for s in plan.servers)]
    text = "version = 1\n" + "".join(
        f"\n[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) for name, keys in sections
    )
    return (comment(_opening(plan), ";") + text).encode()


def _opening(plan: FleetPlan) -> str:
    return f"""\
Presets of {plan.family.name} for llama-server in router mode: one model for each variant.
Needs a checkout of llama.cpp (convert_hf_to_gguf.py) and its llama-server. In this folder, convert each variant once:

  mkdir -p models
{chr(10).join(_conversion(s) for s in plan.servers)}

Then start llama-server, and the router in a second terminal:

  llama-server --models-preset models.ini --models-max {len(plan.servers)} --host 127.0.0.1 --port {_PORT}

router.yml has the commands for the router. `reasoning-format = none` leaves thoughts in the text: the router separates
them, for every variant alike. --models-max is the number of models in memory at once; each needs \
{plan.fit.needed / GIB:.1f} GiB with one sequence of {plan.context} tokens. With fewer, llama-server loads and unloads \
them as they are asked for.
llama-server answers to every process of this machine without a key."""


def _conversion(server: ServerPlan) -> str:
    if server.source.folder is not None:
        return f"  {_convert(server, shlex.quote(str(server.source.folder)))}"
    local = f"weights/{server.model}"
    return (
        f"  hf download {server.source.model} --revision {server.source.revision} --local-dir {local}\n"
        f"  {_convert(server, local)}"
    )


def _convert(server: ServerPlan, folder: str) -> str:
    script = "python PATH/TO/llama.cpp/convert_hf_to_gguf.py"
    return f"{script} {folder} --outtype {_QUANT} --outfile models/{server.model}.gguf"


def _router_opening(plan: FleetPlan, section: RouterSection) -> str:
    return f"""\
The router in front of llama-server; models.ini says how to start that. In this folder:

  {env_step(section.keys)}
  set -a; . ./.env; dami check router.yml --probe
  dami serve router.yml --port {PORT}

{first_request(plan, section, f"http://127.0.0.1:{PORT}")}"""
