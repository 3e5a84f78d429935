"""`dami lab`: the tiny Instruct/Thinking pair, shipped or trained anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output

if TYPE_CHECKING:
    from dami_merge.lab.training_pair import Progress


@command(
    "lab",
    examples=("dami lab lab", "dami lab lab32 --head-size 32", "dami lab lab-seed-1 --train --seed 1"),
    help="Write the tiny Instruct/Thinking pair (Qwen3, 215,000 parameters, one-digit arithmetic) into a "
    "folder, as `instruct/` and `thinking/`: two real checkpoints for trying everything out. With --train, "
    "train a new pair from scratch instead of copying the shipped one; about five minutes on one core.",
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--train", is_flag=True, help="Train a new pair instead of copying the shipped one.")
@click.option(
    "--head-size",
    type=click.Choice(["16", "32", "64"]),
    help="The size of the attention heads (default: 16). Wider ones compute the same, for vLLM on a CPU: 32.",
)
@click.option("--seed", type=click.IntRange(min=0), help="The training's seed (with --train).")
def lab(output: Output, directory: Path, train: bool, head_size: str | None, seed: int | None) -> None:
    """Write the pair."""
    if seed is not None and not train:
        raise MisuseError("--seed is for training", hint=f"dami lab {directory} --train --seed {seed}")
    if train and head_size is not None:
        raise MisuseError("--head-size is for the shipped pair", hint=f"dami lab {directory} --head-size {head_size}")
    if train:
        from dami_merge.lab.training_pair import train_pair

        train_pair(seed or 0, directory, progress=_bar())
        instruct, thinking = directory / "instruct", directory / "thinking"
    else:
        from dami_merge.lab import copy_pair

        instruct, thinking = copy_pair(directory, head_size=int(head_size or 16))
    output.result(
        f"instruct (λ=0): {instruct}\nthinking (λ=1): {thinking}",
        {"instruct": str(instruct), "thinking": str(thinking), "trained": train, "seed": seed},
    )
    if head_size not in (None, "16"):
        output.hint(f"dami live {instruct} {thinking}")
    elif directory == Path("lab"):
        output.hint("mergekit-yaml merge_configs/lab.yml out")
    else:
        output.hint(f"a recipe with base_model: ./{instruct} and the other model: ./{thinking}, or: dami demo")


def _bar() -> Progress:
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, unit="step", mininterval=1.0)
        bar = bars[stage]
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress
