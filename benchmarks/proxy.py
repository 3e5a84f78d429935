"""Measure the proxy's overhead over a direct call: throughput, latency, first streamed chunk, memory.

    python benchmarks/proxy.py [--seconds 4] [--rounds 3] [--litellm PATH/TO/litellm] [--former TREE] [--json]

The upstream is nginx with one static chat completion; wrk is the load generator. Runs are interleaved: direct calls,
nginx as a proxy, ours (with an API key, health checks, metrics, the `fixed` estimator) and, if given, LiteLLM's proxy
and a former version of ours, each in its own process. First chunks come from a small server that sends ten events 20 ms
apart; so do the 500 concurrent streams. Needs `nginx` and `wrk` in the PATH. Exits with 1 if a budget is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

KEY = "sk-bench"
EVENTS, GAP = 10, 0.02
REPLY = json.dumps(
    {
        "id": "c", "object": "chat.completion", "created": 1, "model": "v-l000",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
    }
)  # fmt: skip
BODY = {"model": "dami", "messages": [{"role": "user", "content": "What is 2+2? Answer with a digit."}]}
BUDGETS = {"added_p50_ms": 0.6}


@dataclass(frozen=True)
class Load:
    """One run of wrk: requests per second, latencies in milliseconds, and replies other than 200."""

    rate: float
    p50: float
    p99: float
    errors: int


def main() -> int:
    """Measure and print; exit with 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="seconds per run (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each (default 3)")
    parser.add_argument("--litellm", help="the `litellm` command of an environment that has litellm[proxy]")
    parser.add_argument("--former", type=Path, help="an earlier checkout of this repository, with the same packages")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    arguments = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed; on Debian: apt install nginx-light wrk")
    with tempfile.TemporaryDirectory(prefix="dami-bench-") as folder:
        figures = measure(Path(folder), arguments.seconds, arguments.rounds, arguments.litellm, arguments.former)
    over = [name for name, budget in BUDGETS.items() if figures[name] > budget]
    if arguments.json:
        print(json.dumps({"machine": machine(), "over_budget": over, **figures}, indent=2))
    else:
        print(f"{machine()}\n\n| figure | |\n|---|---|")
        print("\n".join(f"| {name} | {value:,} |" for name, value in figures.items()))
        print(f"\nover budget: {', '.join(over) or 'nothing'}")
    return int(bool(over))


def measure(folder: Path, seconds: int, rounds: int, litellm: str | None, former: Path | None) -> dict[str, float]:
    """Start everything, run interleaved rounds, and summarise."""
    with ExitStack() as stack:
        upstream, relay = stack.enter_context(nginx(folder))
        ports = {"direct": upstream, "nginx": relay}
        ours, process = stack.enter_context(proxy(folder, upstream, "static"))
        ports["dami"] = ours
        before = cpu_ms(process)
        if former:
            ports["former"], former_process = stack.enter_context(proxy(folder, upstream, "former", former))
            former_before = cpu_ms(former_process)
        if litellm:
            ports["litellm"] = stack.enter_context(peer(folder, upstream, litellm))
        one = turns(folder, ports, 1, seconds, rounds)
        many = turns(folder, ports, 32, seconds, rounds)
        figures = {f"{name}_p50_ms_1": load.p50 for name, load in one.items()}
        figures |= {f"{name}_p99_ms_1": load.p99 for name, load in one.items()}
        figures |= {f"{name}_rps_32": round(load.rate) for name, load in many.items()}
        figures |= {f"{name}_p99_ms_32": load.p99 for name, load in many.items()}
        figures |= {f"{name}_errors": one[name].errors + many[name].errors for name in one}
        figures["added_p50_ms"] = round(one["dami"].p50 - one["direct"].p50, 3)
        figures["ratio_to_direct"] = round(many["dami"].rate / many["direct"].rate, 4)
        if litellm:
            figures["ratio_to_litellm"] = round(many["dami"].rate / many["litellm"].rate, 1)
        figures["rss_mb"] = rss_mb(process)
        # Unlike times, this hardly depends on the load of the machine.
        cpu = figures["dami_cpu_ms_per_request"] = cpu_per_request(process, before, answered(ours))
        if former:
            former_cpu = cpu_per_request(former_process, former_before, answered(ports["former"]))
            former_added = round(one["former"].p50 - one["direct"].p50, 3)
            figures |= {"former_cpu_ms_per_request": former_cpu, "former_added_p50_ms": former_added}
            figures["cpu_ratio_to_former"] = round(cpu / former_cpu, 3)
            figures["added_p50_ratio_to_former"] = round(figures["added_p50_ms"] / former_added, 3)
            figures["rps_ratio_to_former"] = round(many["dami"].rate / many["former"].rate, 3)
    return figures | streams(folder)


def turns(folder: Path, ports: dict[str, int], connections: int, seconds: int, rounds: int) -> dict[str, Load]:
    """Load each address in turn, after a warm-up round; returns the medians by name."""
    found: dict[str, list[Load]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, port in ports.items():
            load = wrk(folder, port, connections, seconds if number else 1)
            if number:
                found[name].append(load)
    return {
        name: Load(
            median(x.rate for x in loads),
            round(median(x.p50 for x in loads), 3),
            round(median(x.p99 for x in loads), 3),
            sum(x.errors for x in loads),
        )
        for name, loads in found.items()
    }


def wrk(folder: Path, port: int, connections: int, seconds: int) -> Load:
    """Post the same chat repeatedly."""
    script = folder / "post.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = [[{json.dumps(BODY)}]]\nwrk.headers['Content-Type'] = 'application/json'\n"
        f"wrk.headers['Authorization'] = 'Bearer {KEY}'\n"
        "done = function(s, l, r)\n  io.write(string.format('FIGURES %d %d %f %f %d\\n', s.requests, s.duration,"
        " l:percentile(50), l:percentile(99),"
        " s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout))\nend\n"
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"FIGURES (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", said)
    assert found is not None, said
    requests, micros, p50, p99, errors = map(float, found.groups())
    return Load(requests / micros * 1e6, p50 / 1e3, p99 / 1e3, int(errors))


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """Run nginx with the static reply on one port, and as a proxy to it on another."""
    static, relay = free_port(), free_port()
    models = json.dumps({"object": "list", "data": [{"id": "v-l000", "object": "model"}]})
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 2048; }}
        http {{
          access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          upstream up {{ server 127.0.0.1:{static}; keepalive 64; }}
          server {{
            listen 127.0.0.1:{static}; default_type application/json;
            location = /v1/models {{ return 200 '{models}'; }}
            location / {{ return 200 '{REPLY}'; }}
          }}
          server {{
            listen 127.0.0.1:{relay};
            location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }}
          }}
        }}"""
    )
    with running(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], relay):
        yield static, relay


@contextmanager
def proxy(folder: Path, upstream: int, name: str, tree: Path | None = None) -> Iterator[tuple[int, int]]:
    """Run `dami serve`, or that of another checkout; yields its port and process id."""
    port = free_port()
    config = folder / f"{name}.yml"
    config.write_text(
        "variants: [{id: v-l000, lambda: 0}]\nestimator: {chain: [], fixed: 0}\napi_keys_env: BENCH_KEY\n"
        "limits: {concurrency: 1000}\n"
        f'backends: [{{variant: v-l000, url: "http://127.0.0.1:{upstream}", protocol: openai}}]\n'
    )
    command = [str(Path(sys.executable).parent / "dami"), "serve", str(config), "--port", str(port)]
    code = {"PYTHONPATH": os.pathsep.join(str(at) for at in (tree, *(tree / "plugins").iterdir()))} if tree else {}
    with running(command, port, code) as process:
        yield port, process


@contextmanager
def peer(folder: Path, upstream: int, litellm: str) -> Iterator[int]:
    """Run LiteLLM's proxy in front of the same server, with a master key."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: dami\n    litellm_params:\n      model: openai/v-l000\n      api_key: none\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\ngeneral_settings:\n  master_key: {KEY}\n"
    )
    with running([litellm, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"], port):
        yield port


@contextmanager
def running(command: list[str], port: int, variables: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a server until the block ends; yields its process id once it listens."""
    environment = {**os.environ, "BENCH_KEY": KEY, **(variables or {})}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        try:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} exited at once")
            yield process.pid
        finally:
            process.terminate()


def streams(folder: Path) -> dict[str, float]:
    """Measure the delay of the first chunk of one stream, and 500 concurrent streams."""
    with ExitStack() as stack:
        upstream = free_port()
        stack.enter_context(running([sys.executable, __file__, "--upstream", str(upstream)], upstream))
        ours, process = stack.enter_context(proxy(folder, upstream, "stream"))
        times: dict[int, list[float]] = {upstream: [], ours: []}
        for _ in range(30):
            for port, seen in times.items():
                seen.append(first_chunk(port))
        alone = asyncio.run(together(upstream, 500))
        through = asyncio.run(together(ours, 500))
        return {
            "first_chunk_added_ms": round((median(times[ours]) - median(times[upstream])) * 1e3, 3),
            "streams_500_direct_s": round(alone, 2),
            "streams_500_s": round(through, 2),
            "rss_500_streams_mb": rss_mb(process),
        }


def first_chunk(port: int) -> float:
    """Return the seconds from the request to the first byte of the stream."""
    body = json.dumps({**BODY, "stream": True}).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    begun = time.perf_counter()
    with urllib.request.urlopen(request, timeout=10) as reply:
        reply.readline()
        seconds = time.perf_counter() - begun
        reply.read()
    return seconds


async def together(port: int, count: int) -> float:
    """Read concurrent streams; each must be complete. Returns the seconds until the last one ends."""
    body = json.dumps({**BODY, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body)
        received = await reader.read(-1)
        writer.close()
        assert received.count(b"data:") == EVENTS, received[:300]

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return time.perf_counter() - begun


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve `/v1/models`, and streams of ten events."""
    try:
        while line := await reader.readline():
            head = line + await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            if line.startswith(b"GET"):
                body = b'{"object": "list", "data": [{"id": "v-l000"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
            for _ in range(EVENTS):
                writer.write(b"%x\r\n" % len(event) + event + b"\r\n")
                await asyncio.sleep(GAP)
            writer.write(b"0\r\n\r\n")
            if b"connection: close" in head.lower():
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def serve_drip(port: int) -> None:
    """Serve `drip` forever."""
    server = await asyncio.start_server(drip, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answered(port: int) -> float:
    """Return how many requests the proxy has answered so far."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        found = re.findall(rb"^dami_request_seconds_count ([\d.e+]+)$", reply.read(), re.MULTILINE)
    return float(found[0])


def cpu_ms(process: int) -> float:
    """Return the processor time of a process in milliseconds (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def cpu_per_request(process: int, before: float, requests: float) -> float:
    """Return the processor time per request in milliseconds."""
    return round((cpu_ms(process) - before) / requests, 3)


def rss_mb(process: int) -> float:
    """Return a process's resident memory in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return round(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024 / 1e6, 1)


def machine() -> str:
    """Describe the machine."""
    versions = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{versions}; server nginx, load wrk (1 thread)"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--upstream"]:
        asyncio.run(serve_drip(int(sys.argv[2])))
    sys.exit(main())
