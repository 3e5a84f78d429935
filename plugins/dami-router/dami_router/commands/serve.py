"""`dami serve`: one address for a whole family."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.output import Output, table

if TYPE_CHECKING:
    from dami_router.config import RouterConfig
    from dami_router.fleet import Replica

__all__ = ["serve"]


@command(
    "serve",
    examples=(
        "dami serve router.yml",
        "dami serve router.yml --check",
        "dami serve router.yml --host 0.0.0.0 --port 8080",
    ),
    help="Serve a family behind one address: OpenAI's routes, streaming or not, and TGI's own. Each query is "
    "estimated, sent to the variant of its λ, and to the nearest healthy one where that fails. Listens on "
    "127.0.0.1 unless told otherwise. With --check, only read the configuration, ask every server who it is, "
    "and exit 1 where one is down or serves another model.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0: a free one.")
@click.option("--check", is_flag=True, help="Serve nothing: say what would be served.")
def serve(output: Output, config: Path, host: str, port: int, check: bool) -> int:
    """Serve, or check."""
    from dami_router.config import load_config

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    found = load_config(config)
    if check:
        return _check(output, config, found)
    if not found.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        output.warning(f"{host} can be reached from elsewhere, and no API key is asked for; see api_keys_env")
    from dami_router.proxy.serve import serve as run

    run(found, host, port, lambda address: output.result(f"serving {found.name} at {address}", {"address": address}))
    return 0


def _check(output: Output, path: Path, config: RouterConfig) -> int:
    import asyncio

    from dami_router.router import Router

    async def look() -> Router:
        router = Router(config)
        async with router:
            await asyncio.gather(*(router.prober.explore(replica) for replica in router.fleet.replicas))
        return router

    router = asyncio.run(look())
    found = [_facts(replica) for replica in router.fleet.replicas]
    ok = all(facts["health"] == "alive" for facts in found)
    left_out = sorted(v.id for v in config.variants if v.id not in router.considered)
    note = f"\nleft out, since another variant is as accurate and as cheap: {', '.join(left_out)}" if left_out else ""
    text = table(_HEADER, [_row(facts) for facts in found]) + note
    output.result(text, {"ok": ok, "backends": found, "dominated": left_out})
    if ok:
        output.hint(f"dami serve {path}")
    return 0 if ok else 1


_HEADER = ("variant", "λ", "protocol", "url", "health", "what it can do, or what is wrong")


def _facts(replica: Replica) -> dict[str, Any]:
    return {
        "variant": replica.variant.id,
        "lambda": None if replica.live else replica.variant.lambda_,
        "protocol": replica.spec.protocol,
        "url": replica.spec.url,
        "health": replica.health,
        "trouble": replica.trouble,
        "capabilities": dict(replica.identity.capabilities) if replica.identity else {},
    }


def _row(facts: dict[str, Any]) -> list[str]:
    can = ", ".join(name.replace("_", " ") for name, able in facts["capabilities"].items() if able)
    lambda_ = "any" if facts["lambda"] is None else f"{facts['lambda']:g}"
    first = [facts["variant"], lambda_, facts["protocol"], facts["url"], facts["health"]]
    return [*first, facts["trouble"] or can]
