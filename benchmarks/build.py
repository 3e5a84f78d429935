"""Measure `dami build` against `cp` and `mergekit-yaml`, and how it scales.

    python benchmarks/build.py --work DIR [--runs 3] [--layers 28] [--skip-mergekit] [--json]

Generates a pair (Qwen3, hidden 1024, vocabulary 151,936, bf16, tied; 28 layers give 0.6B
parameters, 1.2 GB each) in DIR, which needs about 20 GB, and measures in interleaved runs:
a family of five variants; `cp` of its five weight files, with and without a `sync` after it (a
build is synced to disk when it ends); and one `mergekit-yaml` run with `linear` for each of the five
λ. Then families of 1 to 9 variants, and smaller models. Figures are medians. Each command is a new
process, with its start-up included. Everything generated is removed at the end. Exits 1 if a target is missed; the
targets of time are those of 28 layers, as fewer are mostly start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
HIDDEN, FORWARD, VOCABULARY, LAYERS = 1024, 3072, 151_936, 28
TARGETS = {"ratio_to_cp": 1.1, "speedup_over_mergekit": 8.0, "peak_rss_mb": 600.0}
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    """One process: wall seconds and the largest resident size in megabytes."""

    seconds: float
    peak_rss_mb: float


def main() -> int:
    """Measure, print and clean up; exit with 1 if a target is missed."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(work, options)
    finally:
        for path in work.glob("bench-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    print(json.dumps(figures, indent=2) if options.json else _text(figures))
    return 0 if all(figures["met"].values()) else 1


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    pair = generate(work / "bench-pair", options.layers)
    main_runs = compare(work, pair, options)
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "python": platform.python_version(),
        "runs": options.runs,
        "model_gb": round((pair / "instruct/model.safetensors").stat().st_size / 1e9, 3),
        **{f"{name}_seconds": _spread(runs) for name, runs in main_runs.items() if not name.endswith("_rss")},
    }
    build, cp, synced = (statistics.median(main_runs[n]) for n in ("build", "cp", "cp_and_sync"))
    figures["ratio_to_cp"] = round(build / cp, 3)
    figures["ratio_to_cp_and_sync"] = round(build / synced, 3)
    if "mergekit" in main_runs:
        figures["speedup_over_mergekit"] = round(statistics.median(main_runs["mergekit"]) / build, 2)
        figures["mergekit_peak_rss_mb"] = round(max(main_runs["mergekit_rss"]))
    figures["peak_rss_mb"] = round(max(main_runs["build_rss"]))
    figures["by_variants"] = by_variants(work, pair, options)
    shutil.rmtree(pair)
    figures["by_size"] = by_size(work, options)
    figures["met"] = {
        name: (figures[name] >= target if name.startswith("speedup") else figures[name] <= target)
        for name, target in TARGETS.items()
        if name in figures and (name == "peak_rss_mb" or options.layers >= LAYERS)
    }
    return figures


def compare(work: Path, pair: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Time build, cp and mergekit in interleaved runs, `--runs` times."""
    times: dict[str, list[float]] = {
        n: [] for n in ("build", "build_rss", "cp", "cp_and_sync", "mergekit", "mergekit_rss")
    }
    family = work / "bench-family"
    for turn in range(options.runs):
        built = build(work, pair, family, LAMBDAS)
        times["build"].append(built.seconds)
        times["build_rss"].append(built.peak_rss_mb)
        files = sorted(family.glob("*/model.safetensors"))
        # Interleaved: a later run finds memory warmed by an earlier one.
        for name, sync in (("cp", False), ("cp_and_sync", True))[:: -1 if turn % 2 else 1]:
            copies = work / "bench-copies"
            copies.mkdir()
            times[name].append(copy(files, copies, sync=sync))
            shutil.rmtree(copies)
        shutil.rmtree(family)
        if not options.skip_mergekit:
            runs = [mergekit(work, pair, value) for value in LAMBDAS]
            times["mergekit"].append(sum(run.seconds for run in runs))
            times["mergekit_rss"].append(max(run.peak_rss_mb for run in runs))
    return {name: values for name, values in times.items() if values}


def by_variants(work: Path, pair: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Time families of 1 to 9 variants."""
    rows = []
    for count in (1, 3, 5, 9):
        lambdas = [round((i + 1) / (count + 1), 3) for i in range(count)]
        rows.append({"variants": count, **_repeat(lambda v=lambdas: _once(work, pair, v), options.runs)})  # type: ignore[misc]
    return rows


def by_size(work: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Time families of five from models of fewer layers."""
    rows = []
    for layers in sorted({2, max(2, options.layers // 2), options.layers}):
        pair = generate(work / "bench-pair", layers)
        size = (pair / "instruct/model.safetensors").stat().st_size / 1e9
        rows.append({"layers": layers, "model_gb": round(size, 3), **_repeat(lambda: _once(work, pair), options.runs)})  # noqa: B023
        shutil.rmtree(pair)
    return rows


def _once(work: Path, pair: Path, lambdas: Sequence[float] = LAMBDAS) -> Run:
    family = work / "bench-family"
    run = build(work, pair, family, lambdas)
    shutil.rmtree(family)
    return run


def _repeat(once: Callable[[], Run], runs: int) -> dict[str, float]:
    done = [once() for _ in range(runs)]
    return {
        "seconds": round(statistics.median(run.seconds for run in done), 2),
        "peak_rss_mb": round(max(run.peak_rss_mb for run in done)),
    }


def build(work: Path, pair: Path, out: Path, lambdas: Sequence[float]) -> Run:
    """Run `dami build` in a new process."""
    document = {
        "merge_method": "dami", "base_model": str(pair / "instruct"), "models": [{"model": str(pair / "thinking")}],
        "parameters": {"lambda": 0.5}, "dtype": "bfloat16", "family": {"name": "Bench", "lambdas": list(lambdas)},
    }  # fmt: skip
    recipe = work / "bench-recipe.yml"
    recipe.write_text(json.dumps(document))
    return process(BIN / "dami", "build", recipe, out)


def mergekit(work: Path, pair: Path, lambda_: float) -> Run:
    """Run `mergekit-yaml` with its own linear method at one λ."""
    models = [("instruct", 1 - lambda_), ("thinking", lambda_)]
    document = {
        "merge_method": "linear", "dtype": "bfloat16",
        "models": [{"model": str(pair / side), "parameters": {"weight": weight}} for side, weight in models],
    }  # fmt: skip
    recipe, out = work / "bench-recipe.yml", work / "bench-merged"
    recipe.write_text(json.dumps(document))
    run = process(BIN / "mergekit-yaml", recipe, out, "--quiet")
    shutil.rmtree(out)
    return run


def copy(files: Sequence[Path], target: Path, *, sync: bool) -> float:
    """Time `cp` of files in the page cache; with `sync`, until the copies are on disk."""
    for file in files:
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
    os.sync()  # pending writes of others must not count
    started = time.perf_counter()
    for file in files:
        subprocess.run(["cp", file, target / f"{file.parent.name}.safetensors"], check=True)
    if sync:
        subprocess.run(["sync", "-f", target], check=True)
    return time.perf_counter() - started


def process(*command: object) -> Run:
    """Run a command to its end; the kernel reports its peak resident size."""
    os.sync()  # pending writes of others must not count
    started = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert child.stderr is not None
    talk = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[0]} failed:\n{talk.decode(errors='replace')[-2000:]}")
    return Run(seconds, _megabytes(usage))


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def generate(folder: Path, layers: int) -> Path:
    """Write the pair in a separate process: a child's peak memory includes its parent's."""
    subprocess.run([sys.executable, __file__, "--generate", str(folder), str(layers)], check=True)
    return folder


def write_pair(folder: Path, layers: int) -> None:
    """Write two endpoints that differ like two fine-tunes of one base."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    sides: dict[str, dict[str, torch.Tensor]] = {"instruct": {}, "thinking": {}}
    for name, shape in _shapes(layers).items():
        base = 0.02 * torch.randn(shape, generator=generator)
        for tensors in sides.values():
            tensors[name] = (base + 0.001 * torch.randn(shape, generator=generator)).bfloat16()
    for side, tensors in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / side / "model.safetensors", metadata={"format": "pt"})
        (folder / side / "config.json").write_text(json.dumps(_config(layers)))
        _tokenizer(folder / side)


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        inside = {
            "self_attn.q_proj": (2048, HIDDEN), "self_attn.k_proj": (1024, HIDDEN), "self_attn.v_proj": (1024, HIDDEN),
            "self_attn.o_proj": (HIDDEN, 2048), "self_attn.q_norm": (128,), "self_attn.k_norm": (128,),
            "mlp.gate_proj": (FORWARD, HIDDEN), "mlp.up_proj": (FORWARD, HIDDEN), "mlp.down_proj": (HIDDEN, FORWARD),
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return {**shapes, "model.norm.weight": (HIDDEN,)}


def _config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": FORWARD,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
    }


def _tokenizer(folder: Path) -> None:
    data: dict[str, Any] = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(1000)}, "unk_token": "t0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _spread(values: Sequence[float]) -> dict[str, float]:
    ends = {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}
    return {name: round(value, 2) for name, value in ends.items()}


def _text(figures: dict[str, Any]) -> str:
    lines = [f"{name:24} {value}" for name, value in figures.items() if not isinstance(value, list)]
    for name in ("by_variants", "by_size"):
        lines += [name, *(f"  {row}" for row in figures[name])]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder on the disk to measure, with 20 GB free")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS, help="number of layers; fewer for a trial")
    parser.add_argument("--skip-mergekit", action="store_true", help="skip the slowest part")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--generate"]:
        write_pair(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
