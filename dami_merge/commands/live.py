"""`dami live`: any λ, per request, from two checkpoints in memory."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dami_router.cli import command
from dami_router.commands.shared_options import page_data, page_options
from dami_router.errors import MisuseError
from dami_router.output import Output

if TYPE_CHECKING:
    from dami_merge.live.weights_mode import Mode


@command(
    "live",
    examples=(
        "dami live Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507 --device cuda",
        "dami live lab/instruct lab/thinking --port 8010",
        "dami live lab/instruct lab/thinking --router section.yml --api-key-env DAMI_KEY",
    ),
    help="Serve every λ in [0, 1] from two checkpoints in memory (folders or Hub ids), through OpenAI's API and TGI's. "
    "The model `dami:0.37` answers at λ = 0.37, `dami` at an estimated λ(q), and each endpoint under its own name. "
    "Requests at different λ share a batch. Listens on 127.0.0.1 by default; a browser shows the page at /ui. "
    "--router takes a router.yml without `family`, `variants` and `backends`: estimator, policy, limits, keys.",
)
@click.argument("instruct")
@click.argument("thinking")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8010, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 picks a free one."
)
@click.option("--path", default="uniform", show_default=True, help="How λ spreads over layers: uniform, late(0.5), …")
@click.option("--chat-template", default="instruct", show_default=True, help="instruct, thinking or from(λ).")
@click.option("--dtype", help="bfloat16, float16, float32 or float64.  [default: the files' own]")
@click.option("--device", default="cpu", show_default=True, help="The device: cpu, cuda or cuda:1.")
@click.option(
    "--mode", type=click.Choice(["auto", "mixed", "uniform"]), default="auto", show_default=True,
    help="mixed: requests at any λ share a batch; uniform: one λ at a time, merged; auto: the cheaper one.",
)  # fmt: skip
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="The most tokens of prompt and answer together.  [default: the model's limit]",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="The most answers generated at the same time.",
)
@click.option("--name", help="The pair's name.  [default: the common part of both names]")
@click.option("--router", type=click.Path(path_type=Path), help="A file with settings of the router, as in router.yml.")
@click.option(
    "--api-key-env", multiple=True, help="An environment variable with a key that clients must send. Repeatable."
)
@page_options
def live(
    output: Output, instruct: str, thinking: str, host: str, port: int, path: str, chat_template: str,
    dtype: str | None, device: str, mode: str, max_length: int | None, max_rows: int, name: str | None,
    router: Path | None, api_key_env: tuple[str, ...], reports: tuple[Path, ...], no_ui: bool,
) -> None:  # fmt: skip
    """Load both endpoints and serve."""
    from dami_router.config.router_yml import load_section
    from dami_router.proxy.server import require_port, require_serving

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("asyncio", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    require_serving()
    keys = tuple(_key(variable) for variable in api_key_env)
    # Report errors in these before two models are loaded.
    section = load_section(router)
    page = page_data(reports, no_ui)
    require_port(host, port)
    from dami_merge.live import Engine
    from dami_merge.live_server.launch import configure, run

    output.note(f"loading {instruct} and {thinking}")
    engine = Engine.load(
        instruct, thinking, path=path, dtype=dtype, chat_template=chat_template, name=name, device=device,
        mode=cast("Mode", mode), max_length=max_length, max_rows=max_rows,
    )  # fmt: skip
    for warning in engine.warnings:
        output.warning(warning)
    config = configure(engine, section, keys)
    if not config.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        output.warning(f"{host} is reachable from other machines and no API key is required; see --api-key-env")

    def ready(address: str) -> None:
        output.result(f"serving {engine.name} at any λ at {address}", {"name": engine.name, "address": address})
        output.hint(f"OPENAI_BASE_URL={address}/v1, model dami:0.5{f'; open {address}/ui' if page else ''}")

    run(engine, config, path, host, port, ready, page)


def _key(variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if value and value.isascii() and value.isprintable():
        return value
    raise MisuseError(f"--api-key-env: the environment variable {variable:.100} is not set to a usable key")
