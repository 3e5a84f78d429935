"""Time the start of `dami`, and measure what the start-up hook costs every Python process.

    python benchmarks/startup.py [--runs 20] [--json]

Wall times are those of new processes with compiled bytecode (as after `pip install`), medians of
interleaved runs. `dami check` reads a generated local pair with the layers, tensor names and
vocabulary size of Qwen3-4B and small matrices. The hook is measured in bare virtual environments
that differ only in the start-up files. They are copied from the installation that runs the
benchmark: a wheel, an editable install or a checkout. Exits 1 if a budget is exceeded.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import dami_merge

LAYERS, VOCABULARY = 36, 151_936
_NEUTRAL = ("DAMI_NO_AUTOLOAD", "PYTHONDONTWRITEBYTECODE")
PACKAGE = Path(dami_merge.__file__).parent
HOOK = ("dami_merge_autoload.pth", "dami_merge_autoload.start")
_IMPORTED = re.compile(r"import time:\s+\d+ \|\s+(\d+) \| +dami_merge(?:\._autoload)?$", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """One measured time against its budget, both in milliseconds."""

    what: str
    median_ms: float
    fastest_ms: float | None
    runs: int
    budget_ms: float | None = None

    @property
    def over_budget(self) -> bool:
        """Whether the median exceeds the budget."""
        return self.budget_ms is not None and self.median_ms > self.budget_ms

    def row(self) -> str:
        """Return the figure as a line of a Markdown table."""
        budget = "" if self.budget_ms is None else f"< {self.budget_ms:g} ms{' (exceeded)' if self.over_budget else ''}"
        fastest = "" if self.fastest_ms is None else f"{self.fastest_ms:.2f} ms"
        return f"| {self.what} | {self.median_ms:.2f} ms | {fastest} | {self.runs} | {budget} |"


def main() -> int:
    """Measure and print; exit with 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs of each command (default 20, at least 10)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    arguments = parser.parse_args()
    runs = max(10, arguments.runs)
    with tempfile.TemporaryDirectory(prefix="dami-bench-") as folder:
        figures = [*commands(Path(folder), runs), *hook(Path(folder), 3 * runs)]
    if arguments.json:
        print(json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}, indent=2))
    else:
        print(f"{machine()}\n\n| what | median | fastest | runs | budget |\n|---|---|---|---|---|")
        print("\n".join(figure.row() for figure in figures))
    return int(any(figure.over_budget for figure in figures))


def commands(folder: Path, runs: int) -> list[Figure]:
    """Time `dami --help` and `dami check`, interleaved."""
    dami = str(Path(sys.executable).parent / "dami")
    recipe = write_pair(folder)
    times = interleaved({"help": [dami, "--help"], "check": [dami, "check", str(recipe)]}, runs)
    return [
        figure("`dami --help`", times["help"], budget_ms=500),
        figure("`dami check`, local pair", times["check"], budget_ms=1500),
    ]


def hook(folder: Path, runs: int) -> list[Figure]:
    """Time `python -c pass` with and without the hook, and the hook's import inside the process."""
    with_hook, without = bare_python(folder / "with", hooked=True), bare_python(folder / "without", hooked=False)
    times = interleaved(
        {"on": [with_hook, "-c", "pass"], "none": [without, "-c", "pass"], "off": [with_hook, "-c", "pass"]},
        runs,
        environments={"off": {"DAMI_NO_AUTOLOAD": "1"}},
    )
    # Runs of one round share the machine's state: paired differences are less noisy than a difference of medians.
    cost = [on - none for on, none in zip(times["on"], times["none"], strict=True)]
    return [
        figure("`python -c pass` without the hook", times["none"]),
        figure("`python -c pass` with the hook", times["on"]),
        figure("`python -c pass` with the hook, `DAMI_NO_AUTOLOAD=1`", times["off"]),
        Figure("hook: difference of paired runs", round(median(cost) * 1e3, 3), None, runs, 2),
        figure("hook: its imports, `-X importtime`", [import_time(with_hook) for _ in range(runs)], budget_ms=2),
    ]


def figure(what: str, times: Sequence[float], budget_ms: float | None = None) -> Figure:
    """Summarise times in seconds."""
    return Figure(what, round(median(times) * 1e3, 3), round(min(times) * 1e3, 3), len(times), budget_ms)


def interleaved(
    commands: Mapping[str, list[str]], runs: int, environments: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, list[float]]:
    """Run the commands in turn, `runs` rounds after a warm-up round; returns seconds by name."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            seconds = wall_time(command, (environments or {}).get(name, {}))
            if number:
                times[name].append(seconds)
    return times


def wall_time(command: list[str], environment: Mapping[str, str]) -> float:
    """Return the run time of a command in seconds; it must succeed."""
    inherited = {key: value for key, value in os.environ.items() if key not in _NEUTRAL}
    start = time.perf_counter()
    subprocess.run(command, env={**inherited, **environment}, check=True, capture_output=True)
    return time.perf_counter() - start


def bare_python(folder: Path, *, hooked: bool) -> str:
    """Create a virtual environment with dami_merge, with or without the hook; returns its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(PACKAGE, site / "dami_merge", ignore=shutil.ignore_patterns("__pycache__", "lab"))
    compileall.compile_dir(site / "dami_merge", quiet=1)
    for name in HOOK if hooked else ():
        shutil.copyfile(start_up_file(name), site / name)
    return str(folder / "bin" / "python")


def start_up_file(name: str) -> Path:
    """Return the path of a start-up file: in the package's sources, or at the root of site-packages.

    Raises SystemExit if it is in neither place.
    """
    places = [PACKAGE / "startup" / name, PACKAGE.parent / name]
    for place in places:
        if place.is_file():
            return place
    raise SystemExit(f"expected {name} at {places[0]} or {places[1]}, found neither; reinstall dami-merge")


def import_time(python: str) -> float:
    """Return the import time of the hook's modules in seconds, as Python reports it."""
    command = [python, "-X", "importtime", "-c", "pass"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = _IMPORTED.findall(report)
    if len(found) != 2:
        raise SystemExit(f"expected the hook to import dami_merge and dami_merge._autoload, found:\n{report}")
    return sum(map(int, found)) / 1e6


def write_pair(folder: Path) -> Path:
    """Write two endpoints with Qwen3-4B's tensor names and vocabulary, and a recipe for them."""
    import numpy as np
    from safetensors.numpy import save_file

    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": LAYERS,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    vocabulary = {f"token{i}": i for i in range(VOCABULARY)}
    random = np.random.default_rng(0)
    base = {name: random.standard_normal((64, 64)).astype(np.float16) for name in tensor_names()}
    for end in ("instruct", "thinking"):
        (folder / end).mkdir()
        moved = {name: value + np.float16(0.01 * (end == "thinking")) for name, value in base.items()}
        save_file(moved, folder / end / "model.safetensors")
        (folder / end / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / end / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")
    recipe = folder / "recipe.yml"
    recipe.write_text(
        f"merge_method: dami\nbase_model: {folder / 'instruct'}\nmodels:\n  - model: {folder / 'thinking'}\n"
        "parameters:\n  lambda: window(12, 35, inside=0.8, outside=0)\n",
        encoding="utf-8",
    )
    return recipe


def tensor_names() -> list[str]:
    """Return the tensor names of Qwen3-4B."""
    parts = [f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    layers = [f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in parts]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight"]


def machine() -> str:
    """Describe the machine."""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
