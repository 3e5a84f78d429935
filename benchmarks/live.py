"""Measure the cost of rows at different λ against one merged model, and the cost of a change of λ.

    python benchmarks/live.py [--shape small] [--device cpu] [--dtype float32] [--rounds 5] [--clock cpu] [--json]
    python benchmarks/live.py --shape qwen3-4b --device cuda --dtype bfloat16 --rows 1 8 32 --json
    python benchmarks/live.py --shape qwen3-30b-a3b-12 --device cuda --dtype bfloat16 --rows 1 8 32 --json

Makes a pair with random weights in memory (nothing is written or downloaded) and runs the engine's own loop over
it: every row at its own λ (`mixed`), all rows at one λ from the merged buffer (`uniform`), and over a plain
model of Transformers with the merged weights (`plain`). Runs are interleaved; figures are medians. A GPU must hold
three models and the keys and values: 25 GB for qwen3-4b in bf16, 50 GB for qwen3-30b-a3b-12.

`mixed_decode_ratio`: tokens per second, mixed over plain, at the second of `--rows`. `lambda_change_over_stream`: the
time of a merge over the time of the simplest loop that reads two models and writes one. `bf16_error`: how far from
exact arithmetic the logits of mixed rows and of merged bf16 models are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.path import Uniform
from dami_merge.interpolation.setting import Constant
from dami_merge.live import Engine, Generation
from dami_merge.live.attention import ForwardStep, KeyValues, RowSpan, register
from dami_merge.live.blend import Blend, PairTensor
from dami_merge.live.pair_model import Batch, PairModel, PlainModel
from dami_merge.live.skeleton import exchange, parameter_names, skeleton
from dami_merge.live.spread import Spread

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 256, "layers": 4, "heads": 4, "kv": 2, "forward": 768, "vocabulary": 4096},
    "small": {"hidden": 1024, "layers": 8, "heads": 16, "kv": 8, "forward": 3072, "vocabulary": 32_768},
    "qwen3-0.6b": {"hidden": 1024, "layers": 28, "heads": 16, "kv": 8, "forward": 3072, "vocabulary": 151_936},
    "qwen3-4b": {"hidden": 2560, "layers": 36, "heads": 32, "kv": 8, "forward": 9728, "vocabulary": 151_936},
    "tiny-moe": {"hidden": 256, "layers": 2, "heads": 4, "kv": 2, "forward": 128, "vocabulary": 4096, "experts": 16},
    "qwen3-30b-a3b-12": {
        "hidden": 2048, "layers": 12, "heads": 32, "kv": 4, "forward": 768, "vocabulary": 151_936, "experts": 128,
    },
}  # fmt: skip
"""The last is 12 of the 48 layers of Qwen3-30B-A3B. `forward` of a mixture is an expert's; 8 are chosen for a token."""

TARGETS = {"mixed_decode_ratio": 0.45, "endpoint_weights_over_two_models": 1.0}
ON_A_GPU = {"lambda_change_ms": 10.0}
PROMPT, STEPS, LAMBDA = 64, 24, 0.6
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> int:
    """Measure and print; exit with 1 if a target is missed."""
    options = _options()
    if options.threads or options.clock == "cpu":
        torch.set_num_threads(options.threads or 1)
    with torch.inference_mode():
        figures = measure(options)
    print(json.dumps(figures, indent=2, ensure_ascii=False) if options.json else _text(figures))
    return 0 if all(figures["met"].values()) else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    before = _memory(device)
    pair = make_pair(SHAPES[options.shape], device, dtype)
    one_model = pair.nbytes["endpoints"] // 2
    loaded = _memory(device) - before
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "shape": options.shape,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "model_gb": round(one_model / 1e9, 3),
        "endpoints_gb": round(2 * one_model / 1e9, 3),
        "memory_for_endpoints_gb": round(loaded / 1e9, 3),
    }
    figures["mixed_peak_over_weights_gb"] = round(
        _peak_while(device, lambda: decode(pair, 8, "mixed", 4, time.perf_counter)) / 1e9, 3
    )
    clock = CLOCKS[options.clock]
    figures |= change(pair, options.rounds, clock)
    figures["merged_buffer_gb"] = round(pair.nbytes["merged"] / 1e9, 3)
    figures["decode"] = [compare(pair, plain_model(pair), rows, options.rounds, clock) for rows in options.rows]
    headline = figures["decode"][min(1, len(options.rows) - 1)]
    figures["mixed_decode_ratio"] = headline["mixed_ratio"]
    figures["uniform_decode_ratio"] = headline["uniform_ratio"]
    figures["endpoint_weights_over_two_models"] = round(pair.nbytes["endpoints"] / (2 * one_model), 3)
    targets = TARGETS | (ON_A_GPU if device.type == "cuda" and options.shape == "qwen3-4b" else {})
    figures["met"] = {
        name: (figures[name] >= target if "ratio" in name else figures[name] <= target)
        for name, target in targets.items()
    }
    figures["bf16_error"] = precision(device)
    return figures


def precision(device: torch.device) -> list[dict[str, float]]:
    """Return the error of bf16 logits, for mixed rows and for models merged to bf16.

    Exact: the endpoints' bf16 weights interpolated in fp64, not rounded, and run in fp64. The relative error
    in the 2-norm over 128 positions and all logits, on the `tiny` shape.
    """
    pair = make_pair(SHAPES["tiny"], device, torch.bfloat16)
    rows = []
    for lambda_ in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        exact = torch_model(
            pair, {p.name: (1 - lambda_) * p.ends[0].double() + lambda_ * p.ends[1].double() for p in pair.pairs}
        )
        reference = logits(exact, 0.0)
        pair.policy.mode = "mixed"
        mixed = logits(pair, lambda_)
        pair.merger.merge(pair.vector(lambda_))
        built = logits(plain_model(pair), 0.0)
        errors = {name: (found.double() - reference).norm() for name, found in (("mixed", mixed), ("built", built))}
        rows.append({"lambda": lambda_} | {n: round(float(e / reference.norm()), 5) for n, e in errors.items()})
    return rows


def logits(model: PlainModel, lambda_: float) -> torch.Tensor:
    """Return the logits of one row of 128 tokens."""
    ids = [(37 * i) % 1000 for i in range(128)]
    cache = KeyValues(model.device)
    cache.reserve(1, len(ids))
    batch = Batch(ids, ForwardStep([], [RowSpan(0, 0, len(ids))], cache), ((model.vector(lambda_), len(ids)),), 1)
    return model.forward(batch)(range(len(ids)))


def make_pair(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> PairModel:
    """Return a pair with random weights; the second endpoint is the first plus a little noise."""
    register()
    side = Checkpoint(ModelRef("random"), None, _config(shape), {})
    model = skeleton(side)
    shapes = parameter_names(model)
    spread = Spread({name: (name,) for name in shapes}, Anatomy.of(shapes, side.config), Constant(Uniform()))
    torch.manual_seed(0)
    pairs = {}
    for name, size in shapes.items():
        ends = torch.empty((2, *size), dtype=dtype, device=device)
        if len(size) == 1:
            ends.fill_(1.0)
        else:
            ends[0].normal_(std=0.02)
            ends[1].copy_(ends[0]).add_(torch.randn_like(ends[0]), alpha=0.002)
        pairs[name] = PairTensor(name, spread.groups[name], ends)
    blend = Blend()
    exchange(model, blend, pairs, device)
    return PairModel(model, blend, list(pairs.values()), spread, device, "auto")


def plain_model(pair: PairModel) -> PlainModel:
    """Return Transformers' own model on the weights in the pair's buffer, without copying them."""
    return torch_model(pair, {p.name: p.merged for p in pair.pairs if p.merged is not None})


def torch_model(pair: PairModel, weights: dict[str, torch.Tensor]) -> PlainModel:
    """Return Transformers' own model on these weights, with the pair's config."""
    model = skeleton(Checkpoint(ModelRef("random"), None, dict(pair.config), {}))
    parameters = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    model.load_state_dict(parameters, strict=False, assign=True)
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(pair.device)
    return PlainModel(model)


def compare(pair: PairModel, plain: PlainModel, rows: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Time decoding with the three models, interleaved."""
    ways: dict[str, Callable[[], float]] = {
        "mixed": lambda: decode(pair, rows, "mixed", STEPS, clock),
        "uniform": lambda: decode(pair, rows, "uniform", STEPS, clock),
        "plain": lambda: decode(plain, rows, "plain", STEPS, clock),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way())
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "rows": rows,
        **{f"{name}_tokens_per_s": round(rows / seconds, 2) for name, seconds in medians.items()},
        **{f"{name}_step_ms": round(seconds * 1e3, 2) for name, seconds in medians.items()},
        "mixed_ratio": round(medians["plain"] / medians["mixed"], 3),
        "uniform_ratio": round(medians["plain"] / medians["uniform"], 3),
    }


def decode(model: PlainModel, rows: int, way: str, steps: int, clock: Callable[[], float]) -> float:
    """Return the seconds of a step in which each of `rows` rows gets a token: the median of `steps`."""
    if isinstance(model, PairModel):
        model.policy.mode = "mixed" if way == "mixed" else "uniform"
    engine = Engine(model, max_length=PROMPT + steps + 8, max_rows=rows, prefill=rows * PROMPT)
    for i in range(rows):
        lambda_ = (i + 1) / (rows + 1) if way == "mixed" else LAMBDA
        engine.add(Generation([(7 * i + j) % 1000 for j in range(PROMPT)], lambda_, max_new_tokens=steps + 4))
    engine.step()
    engine.step()
    times = []
    for _ in range(steps):
        start = clock()
        engine.step()
        times.append(clock() - start)
    return statistics.median(times)


def change(pair: PairModel, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Time a change of λ, and a loop that reads and writes the same amount."""
    vectors = [pair.vector(0.1 + 0.01 * i) for i in range(rounds)]
    pair.merger.merge(pair.vector(LAMBDA))
    changes, streams = [], []
    for vector in vectors:
        changes.append(_timed(clock, pair.device, lambda v=vector: pair.merger.merge(v)))  # type: ignore[misc]
        streams.append(_timed(clock, pair.device, lambda: stream(pair)))
    pair.merger.merge(pair.vector(LAMBDA))
    change_s, stream_s = statistics.median(changes), statistics.median(streams)
    moved = 3 * pair.nbytes["endpoints"] / 2
    return {
        "lambda_change_ms": round(change_s * 1e3, 2),
        "stream_ms": round(stream_s * 1e3, 2),
        "stream_gb_per_s": round(moved / stream_s / 1e9, 1),
        "lambda_change_over_stream": round(change_s / stream_s, 3),
    }


def stream(pair: PairModel) -> None:
    """Read two models and write one, with one exclusive or per parameter."""
    for tensor in pair.pairs:
        assert tensor.merged is not None
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.ends.element_size()]
        torch.bitwise_xor(tensor.ends[0].view(kind), tensor.ends[1].view(kind), out=tensor.merged.view(kind))


def _timed(clock: Callable[[], float], device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    start = clock()
    work()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_while(device: torch.device, work: Callable[[], object]) -> int:
    """Return the peak increase of memory in bytes."""
    before = _memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    work()
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, 0)


def _config(shape: dict[str, int]) -> dict[str, Any]:
    kind: dict[str, Any] = {"model_type": "qwen3"}
    if "experts" in shape:
        kind = {
            "model_type": "qwen3_moe", "num_experts": shape["experts"], "num_experts_per_tok": 8,
            "norm_topk_prob": True, "moe_intermediate_size": shape["forward"],
        }  # fmt: skip
    return {
        **kind, "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"], "head_dim": 128,
        "num_key_value_heads": shape["kv"], "intermediate_size": shape["forward"],
        "vocab_size": shape["vocabulary"], "tie_word_embeddings": True, "max_position_embeddings": 4096,
    }  # fmt: skip


def _text(figures: dict[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in figures.items() if not isinstance(value, list | dict)]
    lines += [
        ", ".join(f"{name} {value}" for name, value in row.items())
        for row in [*figures["decode"], *figures["bf16_error"]]
    ]
    missed = [name for name, met in figures["met"].items() if not met]
    return "\n".join([*lines, f"missed: {', '.join(missed) or 'nothing'}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time of one thread, for a shared machine",
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU (default: torch's own)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
