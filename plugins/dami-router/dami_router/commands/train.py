"""`dami train`: train an estimator of λ(q) on graded rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dami_router.cli import command
from dami_router.commands.rollout_files import read_grid
from dami_router.commands.shared_options import numbers, training_options
from dami_router.errors import MisuseError
from dami_router.output import Output
from dami_router.shared.suggestions import amount

if TYPE_CHECKING:
    from dami_router.estimators.training import Method


@command(
    "train",
    examples=(
        "dami train rollouts.jsonl --out estimator",
        "dami train rollouts.jsonl.gz --confidence confidence.json --budget 0.33 --out estimator",
        "dami train rollouts.jsonl --hidden live.yml --out estimator",
    ),
    help="Train an estimator of λ(q) on rollouts: graded answers of every variant to every query. The more accurate of "
    "two variants is preferred; at equal accuracy, the cheaper one. The result is a folder (safetensors and JSON) "
    "for `router.yml` and `dami eval --estimator`. The same rollouts and seed give the same estimator.",
)
@click.argument("rollouts", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write; must not exist.")
@training_options
def train(
    output: Output, rollouts: Path, out: Path, method: Method, price: float, budget: float | None, seed: int,
    confidence: Path | None, probe_tokens: float | None, embeddings: str | None, hidden: Path | None,
    lambdas: str | None,     drop_incomplete: bool,
) -> None:  # fmt: skip
    """Train an estimator and save it."""
    if out.exists():
        raise MisuseError(f"{out}: already exists", hint="choose a new folder, or remove it")
    grid = read_grid(
        rollouts, confidence, probe_tokens=probe_tokens, drop_incomplete=drop_incomplete, note=output.warning
    )
    if wanted := numbers(lambdas, "--lambdas"):
        grid = grid.at(wanted)
    from dami_router.commands.hidden_states_of import chosen_encoder
    from dami_router.estimators.store import save
    from dami_router.estimators.training import TrainingSettings
    from dami_router.estimators.training import train as fit

    settings = TrainingSettings(method=method, price=price, budget=budget, seed=seed)
    encoder = chosen_encoder(embeddings, hidden, rollouts, output.note)
    trained = fit(grid, settings, encoder=encoder, note=output.note)
    save(trained, out)
    about = dict(trained.about)
    levels = ", ".join(f"{x:g}" for x in about["levels"])
    evidence = ", ".join(("text" if hidden is None else "hidden states", *trained.evidence))
    accuracy, tokens = about["held_out_accuracy"], about["held_out_tokens"]
    output.result(
        f"{out}: trained on {amount(about['queries'], 'query', 'queries')}, from {evidence}\n"
        f"gives λ in {levels}; on the held-out folds that its price was chosen on, {accuracy:.1%} correct at"
        f" {tokens:,.1f} tokens",
        {"estimator": str(out), "evidence": list(trained.evidence), **about},
    )
    output.hint(
        f"dami eval {rollouts}   (same options: the accuracy to expect, as each fold's price comes from other folds)"
    )
    output.hint(f"dami eval OTHER.jsonl --estimator {out}")
