"""`dami live`: any λ, per request, from two checkpoints in memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dami_router.cli import command
from dami_router.commands.shared_options import given_options, page_data, page_options
from dami_router.errors import MisuseError
from dami_router.output import Output

if TYPE_CHECKING:
    from dami_merge.live.weights_mode import Mode
    from dami_router.proxy.page_data import PageData

_PAIR = 2
_MAX_ROWS = 32
_ENGINE_OPTIONS = ("path", "chat_template", "dtype")
_OF_SET = ("--host", "--port", "--requests", "--api-key-env", "--json")
_ONLY_OF_SET = {"--requests": ("is for `dami live set`", "leave it out")}
_NOT_OF_VLLM = _ONLY_OF_SET | {
    "--report": ("vLLM's server has no page", "put `dami serve --report` in front of it"),
    "--no-ui": ("vLLM's server has no page", "leave it out"),
    "--router": ("vLLM's server does not route", "put `dami serve` in front of it"),
    "--device": ("vLLM chooses the device that it was built for", "leave it out"),
}
_NOT_OF_EMBEDDED = _ONLY_OF_SET | {"--print": ("shows vLLM's command", "add --engine vllm")}


@command(
    "live",
    examples=(
        "dami live Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507 --device cuda",
        "dami live lab/instruct lab/thinking --port 8010",
        "dami live lab/instruct lab/thinking --router section.yml --api-key-env DAMI_KEY",
        "dami live Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507 --engine vllm -- --tensor-parallel-size 2",
        "dami live family.yml --engine vllm --mode uniform",
        "dami live set 0.6 --port 8010",
    ),
    help="Serve every λ in [0, 1] from two checkpoints in memory (folders or Hub ids), through OpenAI's API and TGI's. "
    "The model `dami:0.37` answers at λ = 0.37, `dami` at an estimated λ(q), and each endpoint under its own name. "
    "Requests at different λ share a batch. Listens on 127.0.0.1 by default; a browser shows the page at /ui. "
    "--router takes a router.yml without `family`, `variants` and `backends`: estimator, policy, limits, keys. WHAT is "
    "INSTRUCT and THINKING, or a recipe, which brings both with λ, path, dtype and chat template. --engine vllm starts "
    "vLLM's own server with the plug-in vllm-dami; behind `--` stand vLLM's options. `dami live set λ` changes λ of a "
    "vLLM server that was started with --mode uniform.",
)
@click.argument("what", nargs=-1, required=True, metavar="WHAT... [-- VLLM OPTIONS]", type=click.UNPROCESSED)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8010, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 picks a free one."
)
@click.option("--path", help="How λ spreads over layers: uniform, late(0.5), …  [default: uniform]")
@click.option("--chat-template", help="instruct, thinking or from(λ).  [default: instruct]")
@click.option("--dtype", help="bfloat16, float16, float32 or float64.  [default: the files' own]")
@click.option("--device", default="cpu", show_default=True, help="The device: cpu, cuda or cuda:1.")
@click.option(
    "--mode", "--lambda-mode", type=click.Choice(["auto", "mixed", "uniform"]), default="auto", show_default=True,
    help="mixed: requests at any λ share a batch; uniform: one λ at a time, merged; auto: the cheaper one. vLLM's auto "
    "is mixed.",
)  # fmt: skip
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="The most tokens of prompt and answer together.  [default: the model's limit]",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    help=f"The most answers generated at the same time.  [default: {_MAX_ROWS}; vLLM's own]",
)
@click.option("--name", help="The pair's name.  [default: the common part of both names]")
@click.option("--router", type=click.Path(path_type=Path), help="A file with settings of the router, as in router.yml.")
@click.option(
    "--api-key-env", multiple=True, help="An environment variable with a key that clients must send. Repeatable."
)
@click.option(
    "--engine", type=click.Choice(["embedded", "vllm"]), default="embedded", show_default=True,
    help="embedded: our own, in this process; vllm: vLLM's server.",
)  # fmt: skip
@click.option("--print", "print_only", is_flag=True, help="With --engine vllm: print vLLM's command and exit.")
@click.option(
    "--requests", type=click.Choice(["finish", "stop"]), default="finish", show_default=True,
    help="With `set`: what happens to requests under way.",
)  # fmt: skip
@page_options
def live(
    output: Output, what: tuple[str, ...], engine: str, print_only: bool, requests: str, reports: tuple[Path, ...],
    no_ui: bool, **options: Any,
) -> None:  # fmt: skip
    """Load both endpoints and serve; or start vLLM; or set the λ of a server."""
    ends = next((i for i, word in enumerate(what) if word.startswith("-")), len(what))
    names, extra = what[:ends], what[ends:]
    keys = tuple(_key(variable) for variable in options.pop("api_key_env"))
    given = [option.opts[0] for option in given_options()]
    if names[:1] == ("set",) and len(names) == _PAIR and not Path("set").exists():
        for option in given:
            if option not in _OF_SET:
                raise MisuseError(f"{option}: has no effect on `dami live set`", hint="leave it out")
        return _set(output, names[1], requests, keys, options)
    useless = _NOT_OF_VLLM if engine == "vllm" else _NOT_OF_EMBEDDED
    for option in given:
        if option in useless:
            why, hint = useless[option]
            raise MisuseError(f"{option}: {why}", hint=hint)
    if engine == "vllm":
        return _vllm(output, names, extra, print_only, keys, options)
    if extra:
        raise MisuseError(f"{extra[0]}: options behind `--` are vLLM's", hint="add --engine vllm")
    return _embedded(output, names, keys, page_data(reports, no_ui), **options)


def _embedded(
    output: Output, names: tuple[str, ...], keys: tuple[str, ...], page: PageData | None, *, host: str, port: int,
    path: str | None, chat_template: str | None, dtype: str | None, device: str, mode: str, max_length: int | None,
    max_rows: int | None, name: str | None, router: Path | None,
) -> None:  # fmt: skip
    from dami_router.config.router_yml import load_section
    from dami_router.proxy.server import require_port, require_serving

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("asyncio", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    require_serving()
    # Report errors in these before two models are loaded.
    section = load_section(router)
    require_port(host, port)
    from dami_merge.live import Engine
    from dami_merge.live_server.launch import configure, run
    from dami_merge.recipes.order import order_of

    order = order_of(names, path=path, dtype=dtype, chat_template=chat_template, name=name)
    output.note(f"loading {order.instruct} and {order.thinking}")
    engine = Engine.of(
        order, device=device, mode=cast("Mode", mode), max_length=max_length, max_rows=max_rows or _MAX_ROWS
    )
    for warning in engine.warnings:
        output.warning(warning)
    config = configure(engine, section, keys)
    _warn_of_strangers(output, host, bool(config.api_keys))

    def ready(address: str) -> None:
        output.result(f"serving {engine.name} at any λ at {address}", {"name": engine.name, "address": address})
        output.hint(f"OPENAI_BASE_URL={address}/v1, model dami:0.5{f'; open {address}/ui' if page else ''}")

    run(engine, config, order.path_text, host, port, ready, page)


def _vllm(
    output: Output, names: tuple[str, ...], extra: tuple[str, ...], print_only: bool, keys: tuple[str, ...],
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    from dami_merge.live_server.vllm_command import VllmServer, require_vllm, shown, start
    from dami_merge.recipes.order import order_of

    if len(keys) > 1:
        raise MisuseError("--api-key-env: vLLM's server takes one key", hint="put `dami serve` in front of it")
    given = {name: options[name] for name in (*_ENGINE_OPTIONS, "name")}
    server = VllmServer(
        order_of(names, **given), options["host"], options["port"], uniform=options["mode"] == "uniform",
        max_length=options["max_length"], max_rows=options["max_rows"], extra=extra,
    )  # fmt: skip
    if not print_only:
        require_vllm()
    pair = server.pair()
    for warning in pair.warnings:
        output.warning(str(warning))
    command = server.command(pair)
    if print_only:
        return output.result(shown(command), {"command": command})
    _warn_of_strangers(output, server.host, bool(keys))
    output.note(f"starting vLLM with {server.order.instruct} and {server.order.thinking}")
    start(command, keys[0] if keys else None)


def _set(output: Output, text: str, requests: str, keys: tuple[str, ...], options: Mapping[str, Any]) -> None:
    from dami_merge.live_server.vllm_control import set_lambda

    host, port = options["host"], options["port"]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    found = set_lambda(address, text, requests, keys[0] if keys else None)
    output.result(f"{address} answers at λ = {found:g}", {"address": address, "lambda": found})


def _warn_of_strangers(output: Output, host: str, guarded: bool) -> None:
    if not guarded and host not in ("127.0.0.1", "::1", "localhost"):
        output.warning(f"{host} is reachable from other machines and no API key is required; see --api-key-env")


def _key(variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if value and value.isascii() and value.isprintable():
        return value
    raise MisuseError(f"--api-key-env: the environment variable {variable:.100} is not set to a usable key")
