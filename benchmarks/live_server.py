"""Measure `dami live` over HTTP against its engine without HTTP, and against `transformers serve`.

    python benchmarks/live_server.py [--streams 1 8 64] [--tokens 100] [--requests 100] [--rounds 3] [--json]

All serve the shipped lab pair (215,000 parameters, bf16) on a CPU, one thread each, in separate processes, with
interleaved runs; figures are medians over the rounds. With such a small model, the overhead dominates: HTTP,
batching, Python.

`live`: `dami live`, every request at its own λ. `live_one`: the same server, every request at λ = 0.5.
`engine`: the engine that `dami live` runs, called directly, every row at its own λ.
`transformers`: `transformers serve` on the variant λ = 0.5 that `dami build` writes, without batching.
`transformers_cb`: the same with `--continuous-batching`; `--no-cb` skips it.

Each gets the same prompts and token counts, greedy, with end-of-text ignored, over loopback by httpx2. A latency is
that of a completion of one token, one after the other; the time to the first chunk runs from the request to the
first bytes of the reply's body (for the engine: to its first event). Peak memory is VmHWM (Linux), after everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2

BIN = Path(sys.executable).parent
PROMPTS = tuple(
    f"<bos>{chain}=" for chain in ("3+7-2>5", "1+1", "9-4<3+8", "2>6-7", "5+5+5", "8<1", "4-9>0+2", "7+0-3")
)
LAMBDA, NO_TOKEN = 0.5, 999
LAMBDAS = (round(n * 0.618034 % 1, 6) for n in count(1))
"""A different λ for each row, spread over [0, 1]."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
RECIPE = """merge_method: dami
base_model: {0}/lab/instruct
models: [{{model: {0}/lab/thinking}}]
parameters: {{lambda: 0.5}}
dtype: bfloat16
family: {{name: bench, lambdas: [0.5]}}
"""


@dataclass(frozen=True)
class Answers:
    """The results of a burst: total seconds, seconds to each first chunk, and the texts."""

    seconds: float
    first: list[float]
    texts: list[str]


@dataclass(frozen=True)
class Server:
    """A server with OpenAI's routes. `model` is None if each request has its own λ."""

    process: int
    client: httpx2.AsyncClient
    model: str | None
    extra: dict[str, Any]

    async def burst(self, rows: int, tokens: int) -> Answers:
        """Request streams, or whole replies if one token is enough."""
        begun = time.perf_counter()
        told = await asyncio.gather(*(self._one(i, tokens) for i in range(rows)))
        seconds = time.perf_counter() - begun
        return Answers(seconds, [first for first, _ in told], [text for _, text in told])

    async def _one(self, index: int, tokens: int) -> tuple[float, str]:
        stream = tokens > 1
        body = {
            "model": self.model or f"dami:{next(LAMBDAS)}", "prompt": PROMPTS[index % len(PROMPTS)],
            "max_tokens": tokens, "temperature": 0, "stream": stream, **self.extra,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }  # fmt: skip
        begun, first, received = time.perf_counter(), 0.0, []
        async with self.client.stream("POST", "/v1/completions", json=body) as reply:
            async for piece in reply.aiter_raw():
                first = first or time.perf_counter() - begun
                received.append(piece)
        said = b"".join(received).decode()
        found = re.findall(r'"completion_tokens":\s*(\d+)', said)
        if reply.status_code != 200 or found[-1:] != [str(tokens)]:
            raise SystemExit(f"{self.client.base_url}: {reply.status_code}, {found} tokens: {said[-300:]}")
        return first, "".join(json.loads(text) for text in re.findall(r'"text":\s*("(?:[^"\\]|\\.)*")', said))


@dataclass(frozen=True)
class Direct:
    """The engine in a separate process, controlled through its standard input."""

    process: int
    pipes: subprocess.Popen[str]

    async def burst(self, rows: int, tokens: int) -> Answers:
        """Run a burst in the process; it measures the times itself."""
        assert self.pipes.stdin is not None
        assert self.pipes.stdout is not None
        self.pipes.stdin.write(f"{rows} {tokens}\n")
        self.pipes.stdin.flush()
        return Answers(**json.loads(await asyncio.to_thread(self.pipes.stdout.readline)))


Peer = Server | Direct


def main() -> int:
    """Measure and print."""
    options = _options()
    if options.engine:
        return work(options.engine)
    with tempfile.TemporaryDirectory(prefix="dami-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), options))
    print(json.dumps(figures, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))
    return 0


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start everything, run interleaved rounds, and summarise."""
    start_load = os.getloadavg()[0]
    with ExitStack() as stack:
        peers = start(folder, stack, options)
        for peer in peers.values():
            await peer.burst(max(1, min(8, *options.streams)), options.tokens)
        seen: dict[str, dict[str, list[float]]] = {name: {} for name in peers}
        texts: dict[str, list[str]] = {}
        spent = time.process_time(), time.perf_counter()
        for _ in range(options.rounds):
            for name, peer in peers.items():
                await _latencies(peer, options.requests, seen[name])
            for rows in options.streams:
                for name, peer in peers.items():
                    texts[name] = await _streams(peer, rows, options.tokens, seen[name])
        used = (time.process_time() - spent[0]) / (time.perf_counter() - spent[1])
        figures = {name: {k: round(median(v), 2) for k, v in found.items()} for name, found in seen.items()}
        for name, peer in peers.items():
            figures[name]["peak_mb"] = peak_mb(peer.process)
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": [round(start_load, 1), round(os.getloadavg()[0], 1)],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "transformers")},
        **{name: getattr(options, name) for name in ("tokens", "requests", "rounds")},
        "client_cores": round(used, 2),
        "same_texts_as_transformers": _alike(texts["live_one"], texts["transformers"]),
        **figures,
        "live_over": {name: _ratios(figures["live"], figures[name]) for name in peers if name != "live"},
    }


async def _latencies(peer: Peer, requests: int, seen: dict[str, list[float]]) -> None:
    times = [(await peer.burst(1, 1)).seconds * 1e3 for _ in range(requests)]
    cuts = quantiles(times, n=100, method="inclusive")
    seen.setdefault("p50_ms", []).append(cuts[49])
    seen.setdefault("p99_ms", []).append(cuts[98])


async def _streams(peer: Peer, rows: int, tokens: int, seen: dict[str, list[float]]) -> list[str]:
    answers = await peer.burst(rows, tokens)
    seen.setdefault(f"tokens_per_s_{rows}", []).append(rows * tokens / answers.seconds)
    seen.setdefault(f"first_chunk_ms_{rows}", []).append(median(answers.first) * 1e3)
    return answers.texts


def _ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    return {name: round(value / theirs[name], 3) for name, value in ours.items()}


def _alike(ours: list[str], theirs: list[str]) -> str:
    pairs = list(zip(ours, theirs, strict=True))[: len(PROMPTS)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def start(folder: Path, stack: ExitStack, options: argparse.Namespace) -> dict[str, Peer]:
    """Write the pair, build the variant, and start the peers."""
    most = max(options.streams)
    (folder / "recipe.yml").write_text(RECIPE.format(folder))
    for command in (["lab", folder / "lab"], ["build", folder / "recipe.yml", folder / "out"]):
        subprocess.run([BIN / "dami", *map(str, command)], check=True, capture_output=True)
    pair = [str(folder / "lab" / side) for side in ("instruct", "thinking")]
    live, client = stack.enter_context(running([str(BIN / "dami"), "live", *pair, "--max-rows", str(most)]))
    direct = [sys.executable, __file__, "--engine", *pair, str(most)]
    pipes = subprocess.Popen(direct, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(pipes.kill)
    peers: dict[str, Peer] = {
        "live": Server(live, client, None, {"ignore_eos": True}),
        "live_one": Server(live, client, f"dami:{LAMBDA}", {"ignore_eos": True}),
        "engine": Direct(pipes.pid, pipes),
    }
    variant = str(next((folder / "out").glob("*/config.json")).parent)
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", variant, "--device", "cpu"]
    # The default cache for continuous batching takes most of the memory: 64 blocks of 256 tokens are enough.
    batched = ["--continuous-batching", "--cb-block-size", "256", "--cb-num-blocks", str(max(most, 16))]
    asked = {"generation_config": json.dumps({"eos_token_id": NO_TOKEN, "pad_token_id": 2, "do_sample": False})}
    for name, more in {"transformers": [], "transformers_cb": batched}.items():
        if name == "transformers" or not options.no_cb:
            process, client = stack.enter_context(running([*serve, *more]))
            peers[name] = Server(process, client, variant, asked)
    return peers


@contextmanager
def running(command: list[str]) -> Iterator[tuple[int, httpx2.AsyncClient]]:
    """Run a server on a free port until the block ends; yields its process id and a client once it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url, quiet = f"http://127.0.0.1:{port}", subprocess.DEVNULL
    full = [*command, "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(full, env=ENVIRONMENT, stdout=quiet, stderr=quiet) as process:
        try:
            end = time.monotonic() + 120
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"did not start: {' '.join(full)}")
                time.sleep(0.1)
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            yield process.pid, httpx2.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False)
        finally:
            process.kill()


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def work(arguments: list[str]) -> int:
    """Run as the engine's process: read lines with rows and tokens, write lines with times."""
    import torch

    from dami_merge.live import Engine, Generation, Row

    torch.set_num_threads(1)
    engine = Engine.load(*arguments[:2], max_rows=int(arguments[2]))
    assert engine.texts is not None
    for line in sys.stdin:
        rows, tokens = map(int, line.split())
        begun = time.perf_counter()
        first: dict[Row, float] = {}
        for i in range(rows):
            prompt = engine.texts.encode(PROMPTS[i % len(PROMPTS)])
            asked = Generation(prompt, next(LAMBDAS), max_new_tokens=tokens, ignore_eos=True)
            engine.add(asked)
        while engine.rows or engine.waiting:
            for event in engine.step():
                first.setdefault(event.row, time.perf_counter() - begun)
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "first": list(first.values()), "texts": []}), flush=True)
    return 0


def peak_mb(process: int) -> float:
    """Return the peak resident memory of a process in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e6, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64], help="concurrent streams")
    parser.add_argument("--tokens", type=int, default=100, help="tokens per stream")
    parser.add_argument("--requests", type=int, default=100, help="one-token completions per round, for latencies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-cb", action="store_true", help="skip continuous batching of transformers serve")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument("--engine", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
