"""`dami serve`: one address for a whole family."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dami_router.cli import command
from dami_router.output import Output

if TYPE_CHECKING:
    from dami_router.config.specs import RouterConfig

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
    from dami_router.config.router_yml import load_config

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    found = load_config(config)
    if check:
        return _check(output, config, found)
    if not found.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        output.warning(f"{host} can be reached from elsewhere, and no API key is asked for; see api_keys_env")
    from dami_router.proxy.server import serve as run

    run(found, host, port, lambda address: output.result(f"serving {found.name} at {address}", {"address": address}))
    return 0


def _check(output: Output, path: Path, config: RouterConfig) -> int:
    from dami_router.commands.servers import probe
    from dami_router.config.config_advice import left_out

    servers, beaten = probe(config), left_out(config)
    note = f"\nleft out, since another variant is as accurate and as cheap: {', '.join(beaten)}" if beaten else ""
    output.result(servers.text() + note, {"ok": servers.ok, "backends": list(servers.found), "dominated": beaten})
    if servers.ok:
        output.hint(f"dami serve {path}")
    return 0 if servers.ok else 1
