"""Measure what λ per request costs inside vLLM, against the plain model on the same vLLM, and against `dami live`.

    python benchmarks/live_vllm.py [--shape small] [--rows 1 8 32] [--prompt 64] [--tokens 32] [--rounds 3] [--json]
    python benchmarks/live_vllm.py --device cuda --shape qwen3-4b --dtype bfloat16 --prompt 512 --json
    python benchmarks/live_vllm.py --device cuda --shape qwen3-4b --dtype bfloat16 --rows 32 --prompt 8000 \\
        --ways plain own --gpu-share 0.45 --json

Run it by a Python that has vLLM, vllm-dami and dami-merge. It writes a pair with random weights into --work, and starts
an engine for each way in a process of its own. The engines are asked in turns, so that all of them see the same load of
the machine; figures are medians over rounds, ratios medians of each round's ratio.

`plain`: one endpoint on vLLM without the plug-in. `own`: every row at its own λ. `one`: the same engine, all rows at
one λ. `uniform`: vLLM with interpolated weights. `live`: our own engine, every row at its own λ. Only decoding is
timed: the time of the whole minus the time of the same requests with one token. On a GPU that holds one engine at a
time, use --in-turns no: each way then runs all its rounds alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 256, "layers": 4, "heads": 4, "kv": 2, "forward": 768, "vocabulary": 4096},
    "small": {"hidden": 1024, "layers": 8, "heads": 16, "kv": 8, "forward": 3072, "vocabulary": 32_768},
    "qwen3-0.6b": {"hidden": 1024, "layers": 28, "heads": 16, "kv": 8, "forward": 3072, "vocabulary": 151_936},
    "qwen3-4b": {"hidden": 2560, "layers": 36, "heads": 32, "kv": 8, "forward": 9728, "vocabulary": 151_936},
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
WAYS = ("plain", "own", "one", "uniform", "live")
TARGETS = {"own_over_plain_at_1_row": 0.45, "own_over_live_at_32_rows": 3.0}
LAMBDA = 0.6
_PROCESSOR = "vllm_dami.lambda_requests:LambdaRequests"
_WORKER = "vllm_dami.uniform_worker.LambdaWorker"

Decode = Callable[[int, int, int], float]
"""Rows, tokens of each prompt, tokens of each answer → seconds of decoding."""


def main() -> int:
    """Measure and print; a worker serves one engine instead."""
    options = _options()
    if options.worker:
        _work(options)
        return 0
    with tempfile.TemporaryDirectory(prefix="dami-vllm-") as made:
        figures = measure(options, Path(options.work or made))
    print(json.dumps(figures, indent=2, ensure_ascii=False) if options.json else _text(figures))
    return 0


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return all figures."""
    write_pair(options, work)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "device": options.device, "python": platform.python_version(), "shape": options.shape, "dtype": options.dtype,
        "prompt": options.prompt, "tokens": options.tokens, "rounds": options.rounds, "eager": options.eager,
        "clock": options.clock,
    }  # fmt: skip
    seconds = _in_turns(options, work) if options.in_turns == "yes" else _one_by_one(options, work)
    found["decode"] = [_compared(options, rows, seconds) for rows in options.rows]
    found["load_at_the_end"] = round(os.getloadavg()[0], 1)
    by_rows = {row["rows"]: row for row in found["decode"]}
    figures = {
        "own_over_plain_at_1_row": by_rows.get(1, {}).get("own_over_plain"),
        "own_over_live_at_32_rows": by_rows.get(32, {}).get("own_over_live"),
    }
    return found | {"targets": {name: {"found": figures[name], "aim": aim} for name, aim in TARGETS.items()}}


Seconds = dict[tuple[str, int], list[float]]


def _in_turns(options: argparse.Namespace, work: Path) -> Seconds:
    seconds: Seconds = {}
    with ExitStack() as stack:
        asks = {way: stack.enter_context(_engine(options, work, way)) for way in _processes(options.ways)}
        for _ in range(options.rounds + 1):  # the first warms up
            for rows in options.rows:
                for way in options.ways:
                    taken = asks["own" if way == "one" else way](way, rows)
                    seconds.setdefault((way, rows), []).append(taken)
    return {key: taken[1:] for key, taken in seconds.items()}


def _one_by_one(options: argparse.Namespace, work: Path) -> Seconds:
    seconds: Seconds = {}
    for process in _processes(options.ways):
        with _engine(options, work, process) as ask:
            for way in (way for way in options.ways if way == process or (way, process) == ("one", "own")):
                for rows in options.rows:
                    seconds[way, rows] = [ask(way, rows) for _ in range(options.rounds + 1)][1:]
    return seconds


def _processes(ways: list[str]) -> list[str]:
    return list(dict.fromkeys("own" if way == "one" else way for way in ways))


def _compared(options: argparse.Namespace, rows: int, seconds: Seconds) -> dict[str, Any]:
    tokens = rows * (options.tokens - 1)
    found: dict[str, Any] = {"rows": rows}
    for way in options.ways:
        found[f"{way}_tokens_per_second"] = round(tokens / statistics.median(seconds[way, rows]), 1)
    for over in ("plain", "live"):
        for way in options.ways:
            if way != over and over in options.ways:
                ratios = [b / a for a, b in zip(seconds[way, rows], seconds[over, rows], strict=True)]
                found[f"{way}_over_{over}"] = round(statistics.median(ratios), 3)
    return found


@contextmanager
def _engine(options: argparse.Namespace, work: Path, way: str) -> Iterator[Callable[[str, int], float]]:
    """Start an engine in a process of its own; yields what asks it for one measurement."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", way, "--work", str(work)]
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(options.kv_gb), **os.environ, **settings}
    with (
        (work / f"{way}.log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(kind: str, rows: int) -> float:
            process.stdin.write(json.dumps([kind, rows]) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            for line in process.stdout:  # type: ignore[union-attr]
                if line.startswith("seconds "):
                    return float(line.split()[1])
            raise SystemExit(f"{way} ended; see {work / way}.log:\n{(work / f'{way}.log').read_text()[-2000:]}")

        yield ask
        process.stdin.close()
        process.wait(120)


def _work(options: argparse.Namespace) -> None:
    """Serve one engine: a line on stdin is a measurement, a line on stdout its result."""
    decode = _live(options) if options.worker == "live" else _vllm(options)
    for line in sys.stdin:
        way, rows = json.loads(line)
        taken = decode(way, rows, options.tokens) - decode(way, rows, 1)
        print(f"seconds {max(taken, 1e-9)}", flush=True)


def _lambdas(way: str, rows: int) -> list[float]:
    return [LAMBDA] * rows if way == "one" else [(i + 0.5) / rows for i in range(rows)]


def _prompts(options: argparse.Namespace, rows: int) -> list[list[int]]:
    return [[(37 * i + 101 * row) % 1000 + 3 for i in range(options.prompt)] for row in range(rows)]


def _vllm(options: argparse.Namespace) -> Callable[[str, int, int], float]:
    from vllm import LLM, SamplingParams

    from vllm_dami.plugin import register

    register()
    way, work = options.worker, Path(options.work)
    more: dict[str, Any] = {}
    if way != "plain":
        architecture = ("DamiUniform" if way == "uniform" else "Dami") + "Qwen3ForCausalLM"
        more = {
            "hf_overrides": {"architectures": [architecture]},
            "additional_config": {"dami": {"thinking": str(work / "thinking"), "lambda": LAMBDA}},
        }
        more |= {"worker_extension_cls": _WORKER} if way == "uniform" else {"logits_processors": [_PROCESSOR]}
    if options.device == "cuda":
        more["gpu_memory_utilization"] = options.gpu_share
    llm = LLM(
        str(work / "instruct"), skip_tokenizer_init=True, dtype=options.dtype, enforce_eager=options.eager,
        max_model_len=options.prompt + options.tokens + 1, max_num_seqs=max(options.rows),
        enable_prefix_caching=False, **more,
    )  # fmt: skip

    def decode(way: str, rows: int, tokens: int) -> float:
        params = []
        for lambda_ in _lambdas(way, rows):
            extra = {"lambda": lambda_} if way in ("own", "one") else None
            params.append(
                SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
            )
        prompts = [{"prompt_token_ids": ids} for ids in _prompts(options, rows)]
        clock = CLOCKS[options.clock]
        start = clock()
        llm.generate(cast("Any", prompts), params, use_tqdm=False)
        return clock() - start

    return decode


def _live(options: argparse.Namespace) -> Callable[[str, int, int], float]:
    from dami_merge.live import Engine, Generation

    work = Path(options.work)
    engine = Engine.load(
        str(work / "instruct"), str(work / "thinking"), dtype=options.dtype, device=options.device, mode="mixed",
        max_rows=max(options.rows),
    )  # fmt: skip

    def decode(way: str, rows: int, tokens: int) -> float:
        clock = CLOCKS[options.clock]
        start = clock()
        for lambda_, ids in zip(_lambdas(way, rows), _prompts(options, rows), strict=True):
            engine.add(Generation(ids, lambda_, max_new_tokens=tokens, temperature=0.0, ignore_eos=True))
        while engine.busy:
            engine.step()
        return clock() - start

    return decode


def write_pair(options: argparse.Namespace, work: Path) -> None:
    """Write two checkpoints of the shape with random weights, unless they are there already."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SHAPES[options.shape]
    config = Qwen3Config(
        hidden_size=shape["hidden"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"], head_dim=128 if shape["hidden"] >= 1024 else 64,
        intermediate_size=shape["forward"], vocab_size=shape["vocabulary"], tie_word_embeddings=True,
        max_position_embeddings=32_768,
    )  # fmt: skip
    for seed, side in enumerate(("instruct", "thinking")):
        if not (work / side / "config.json").exists():
            torch.manual_seed(seed)
            with torch.device(options.device):
                model = Qwen3ForCausalLM._from_config(config, dtype=getattr(torch, options.dtype))
            model.cpu().save_pretrained(work / side)
            del model


def _text(figures: dict[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in figures.items() if name not in ("decode", "targets")]
    rows = [", ".join(f"{name} {value}" for name, value in row.items()) for row in figures["decode"]]
    return "\n".join([*lines, *rows, str(figures["targets"])])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine and one thread"
    )
    parser.add_argument("--in-turns", choices=["yes", "no"], default="yes", help="all engines at the same time")
    parser.add_argument("--gpu-share", type=float, default=0.2, help="the part of a GPU's memory for each vLLM")
    parser.add_argument("--kv-gb", type=int, default=1, help="keys and values of each vLLM on a CPU")
    parser.add_argument("--eager", action="store_true", help="without torch.compile and CUDA graphs")
    parser.add_argument("--work", help="a folder for the pair; it is kept, and used again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
