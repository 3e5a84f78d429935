"""`dami serve`: serve a family behind one address."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dami_router.cli import command
from dami_router.commands.shared_options import page_data, page_options
from dami_router.output import Output

if TYPE_CHECKING:
    from dami_router.config.specs import RouterConfig

__all__ = ["serve"]


@command(
    "serve",
    examples=(
        "dami serve router.yml",
        "dami serve router.yml --check",
        "dami serve router.yml --workers 4",
        "dami serve router.yml --host 0.0.0.0 --port 8080",
        "dami serve router.yml --report report",
    ),
    help="Serve a family behind one address, with OpenAI's routes, streaming or not, and TGI's. Estimate λ for each "
    "query, send it to the variant at that λ, and fall back to the nearest healthy variant. Listens on 127.0.0.1 by "
    "default. A browser shows the page at /ui: a playground for λ, the frontier, and the state of every server. "
    "With --check, only read the configuration, query every server for its identity, and exit with 1 if one "
    "is down or serves another model.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="The port; 0: a free one.")
@click.option("--check", is_flag=True, help="Do not serve; show what would be served.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64),
    help="Processes behind the one port. Each has its own limits, budget and view of the servers.",
)  # fmt: skip
@page_options
def serve(
    output: Output,
    config: Path,
    host: str,
    port: int,
    check: bool,
    workers: int,
    reports: tuple[Path, ...],
    no_ui: bool,
) -> int:
    """Serve, or check."""
    from dami_router.config.router_yml import load_config

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    found = load_config(config)
    if check:
        return _check(output, config, found)
    if not found.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        output.warning(f"{host} is reachable from other machines, and authentication is off; see api_keys_env")
    from dami_router.proxy.server import require_serving
    from dami_router.proxy.server import serve as run
    from dami_router.proxy.server import serve_many as run_many

    require_serving()
    from dami_router.proxy.app import Proxy

    page = page_data(reports, no_ui)

    def ready(address: str) -> None:
        output.result(f"serving {found.name} at {address}", {"address": address})
        if page is not None:
            output.hint(f"open {address}/ui")

    if workers > 1:
        run_many(workers, found, host, port, ready, lambda number: Proxy(found, page=page, worker=number))
    else:
        run(found, host, port, ready, Proxy(found, page=page))
    return 0


def _check(output: Output, path: Path, config: RouterConfig) -> int:
    from dami_router.commands.servers import probe
    from dami_router.config.config_advice import left_out

    servers, beaten = probe(config), left_out(config)
    note = f"\nskipped, dominated by another variant: {', '.join(beaten)}" if beaten else ""
    output.result(servers.text() + note, {"ok": servers.ok, "backends": list(servers.found), "dominated": beaten})
    if servers.ok:
        output.hint(f"dami serve {path}")
    return 0 if servers.ok else 1
