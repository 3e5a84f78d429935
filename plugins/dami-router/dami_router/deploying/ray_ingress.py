"""The router as a Ray Serve application: the proxy of `dami serve`, as the ingress in front of the variants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["build_router"]


def build_router(args: Mapping[str, str]) -> Any:
    """Return the Serve application; Ray calls this with `args` of the Serve configuration: `config`, a router.yml.

    The file is read by each replica, on its node. As with `dami serve`, a replica does not start where a server has
    the wrong model. `deployments` in the Serve configuration scales it.
    """
    from ray import serve

    path = args["config"]

    def proxy() -> Any:
        from dami_router.config.router_yml import load_config
        from dami_router.proxy.app import Proxy

        return Proxy(load_config(Path(path)))

    router = serve.deployment(name="router", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
    return router(serve.ingress(proxy)()).bind()
