"""Run a generated Serve configuration on a Ray of this machine, put load on it, and write what happened as JSON.

    RAY_PYTHON drive.py DEPLOYED FAMILY PORT

DEPLOYED is a folder that `dami deploy --target ray` wrote, with PORT in its router.yml; FAMILY is the lab family's
folder. Two things differ from production: the import path of the variants (small_engine instead of Ray Serve LLM), and
where router.yml is. The result is DEPLOYED/happened.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import ray
import yaml
from ray import serve

TASKS = ["3+7-2>5=", "1+1-1>0=", "9-4+2>3=", "2+5-6>1="]
PORT = int(sys.argv[3])
DEADLINE_S = 240


def config(deployed: Path, replicas: int) -> dict[str, Any]:
    """Return the Serve configuration with small engines, each variant with this many replicas."""
    found: dict[str, Any] = yaml.safe_load((deployed / "serve.yml").read_text())
    found["http_options"] = {"host": "127.0.0.1", "port": PORT}
    for app in found["applications"]:
        if app["import_path"].startswith("ray.serve.llm:"):
            app["import_path"] = "small_engine:build"
            app["args"]["llm_configs"][0]["deployment_config"]["num_replicas"] = replicas
        else:
            app["args"]["config"] = str(deployed / "router.yml")
            app["deployments"] = [{"name": "router", "ray_actor_options": {"num_cpus": 0.1}}]
    return found


def apply(found: dict[str, Any]) -> None:
    """Deploy as `serve deploy` does, and wait until every application runs."""
    from ray.serve._private.api import serve_start
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(found)
    with contextlib.suppress(Exception):
        serve_start(http_options={"host": "127.0.0.1", "port": PORT, "location": "EveryNode"})
    _get_global_client().deploy_apps(parsed, _blocking=False)
    until(lambda: all(str(app.status.value) == "RUNNING" for app in serve.status().applications.values())
          and len(serve.status().applications) == len(found["applications"]))  # fmt: skip


def until(ready: Any) -> None:
    """Wait until something holds; raises after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while not ready():
        failed = [a.message for a in serve.status().applications.values() if a.status.value == "DEPLOY_FAILED"]
        if time.monotonic() > end or failed:
            raise SystemExit(f"not in time: {serve.status()}")
        time.sleep(0.3)


async def ask(client: aiohttp.ClientSession, text: str, lambda_: float, stream: bool) -> dict[str, Any]:
    """Ask at one λ; a reply is lost if it has no first byte."""
    body = {"model": f"dami:{lambda_:g}", "messages": [{"role": "user", "content": text}], "stream": stream}
    said, whole, error = "", False, None
    async with client.post("/v1/chat/completions", json=body) as reply:
        facts = {"status": reply.status, "variant": reply.headers.get("x-dami-variant"),
                 "attempts": reply.headers.get("x-dami-attempts"), "lambda": lambda_, "task": text}  # fmt: skip
        raw = await reply.text()
    pid = None
    for line in raw.split("\n\n") if stream else [raw]:
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            whole = True
        elif data:
            event = json.loads(data)
            error = event.get("error") or error
            for choice in event.get("choices", []):
                part = choice.get("delta") or choice.get("message") or {}
                said += (part.get("reasoning") or "") + (part.get("content") or "")
            pid = event.get("system_fingerprint") or pid
    return {**facts, "said": said, "whole": whole or (not stream and error is None), "error": error, "pid": pid,
            "stream": stream}  # fmt: skip


async def rounds(lambdas: list[float], n: int, kill: float | None = None) -> dict[str, Any]:
    """Ask n times at each λ, ten times a second; after half of them, kill a process that answers at `kill`."""
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{PORT}", headers={"Authorization": "Bearer k"}, timeout=aiohttp.ClientTimeout(120)
    ) as client:
        killed = int((await ask(client, TASKS[0], kill, False))["pid"]) if kill is not None else None
        calls: list[asyncio.Task[dict[str, Any]]] = []
        under_way = 0
        for i in range(n):
            calls += [asyncio.create_task(ask(client, TASKS[i % len(TASKS)], x, bool(i % 2))) for x in lambdas]
            await asyncio.sleep(0.1)
            if killed is not None and i == n // 2:
                os.kill(killed, signal.SIGKILL)
                under_way = sum(not call.done() for call in calls)
        return {"killed": killed, "under_way": under_way, "answers": await asyncio.gather(*calls)}


def main(deployed: Path, family: Path) -> None:
    """Answer with one replica of each variant, with two, and with one of them killed."""
    os.environ.update(LAB_FAMILY=str(family), DAMI_KEY="k", RAY_SERVE_LOG_TO_STDERR="0")
    backends = yaml.safe_load((deployed / "router.yml").read_text())["backends"]
    lambdas = [int(backend["variant"].rsplit("-l", 1)[1]) / 100 for backend in backends]
    with started():
        apply(config(deployed, 1))
        found = {"answered": asyncio.run(rounds(lambdas, 2))}
        apply(config(deployed, 2))
        until(lambda: replicas() >= 2 * len(lambdas) + 1)
        found["scaled"] = asyncio.run(rounds(lambdas, 8))
        found["killed"] = asyncio.run(rounds(lambdas, 24, kill=lambdas[-1]))
        (deployed / "happened.json").write_text(json.dumps(found))


def replicas() -> int:
    """Return how many replicas run."""
    apps = serve.status().applications.values()
    return sum(d.replica_states.get("RUNNING", 0) for app in apps for d in app.deployments.values())


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Run Ray on this machine, without its dashboard, and end it."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=True, logging_level="ERROR",
             object_store_memory=100 << 20)  # fmt: skip
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
