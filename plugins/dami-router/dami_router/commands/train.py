"""`dami train`: train an estimator of λ(q) on graded rollouts."""

from __future__ import annotations

from pathlib import Path

import click

from dami_router.cli import command
from dami_router.commands.rollout_files import read_grid
from dami_router.commands.shared_options import numbers
from dami_router.errors import MisuseError
from dami_router.output import Output


@command(
    "train",
    examples=(
        "dami train rollouts.jsonl --out estimator",
        "dami train rollouts.jsonl.gz --confidence confidence.json --budget 0.33 --out estimator",
    ),
    help="Train an estimator of λ(q) on rollouts: graded answers of every variant to every query. The more accurate of "
    "two variants is preferred; at equal accuracy, the cheaper one. The result is a folder (safetensors and JSON) "
    "for `router.yml` and `dami eval --estimator`. The same rollouts and seed give the same estimator.",
)
@click.argument("rollouts", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write; must not exist.")
@click.option(
    "--price", type=float, default=0.05, show_default=True,
    help="Accuracy (0 to 1) that a mean answer of the most expensive variant must gain; larger values choose cheaper "
    "variants.",
)  # fmt: skip
@click.option(
    "--budget", type=float,
    help="Instead of --price: at most this fraction (0 to 1) of the most expensive variant's mean tokens.",
)  # fmt: skip
@click.option("--margin", type=float, default=0.005, show_default=True, help="Differences below this are ties.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split into folds.")
@click.option(
    "--confidence", type=click.Path(path_type=Path), help="JSON object from query_id to Instruct's confidence, 0 to 1."
)
@click.option("--embeddings", metavar="MODEL", help="Use this model's embeddings, served at $DAMI_EMBEDDINGS_URL.")
@click.option("--lambdas", help="Train on these λ alone, such as 0,0.5: those that will be served. Default: all.")
@click.option("--drop-incomplete", is_flag=True, help="Skip queries that some variant did not answer.")
def train(
    output: Output, rollouts: Path, out: Path, price: float, budget: float | None, margin: float, seed: int,
    confidence: Path | None, embeddings: str | None, lambdas: str | None, drop_incomplete: bool,
) -> None:  # fmt: skip
    """Train an estimator and save it."""
    if out.exists():
        raise MisuseError(f"{out}: already exists", hint="choose a new folder, or remove it")
    grid = read_grid(rollouts, confidence, drop_incomplete=drop_incomplete, note=output.warning)
    if wanted := numbers(lambdas, "--lambdas"):
        grid = grid.at(wanted)
    from dami_router.estimators.store import save
    from dami_router.estimators.training import TrainingSettings
    from dami_router.estimators.training import train as fit

    settings = TrainingSettings(price=price, budget=budget, margin=margin, seed=seed)
    trained = fit(grid, settings, encoder=_encoder(embeddings), note=output.note)
    save(trained, out)
    about = dict(trained.about)
    levels = ", ".join(f"{x:g}" for x in trained.cuts.levels)
    evidence = ", ".join(("text", *trained.evidence))
    output.result(
        f"{out}: trained on {about['queries']} queries and {about['pairs']} preferences, from {evidence}\n"
        f"gives λ in {levels}; held-out loss {about['held_out_loss']:.3f}",
        {"estimator": str(out), "evidence": list(trained.evidence), **about},
    )
    output.hint(f"dami eval OTHER.jsonl --estimator {out}")


def _encoder(model: str | None):  # type: ignore[no-untyped-def]
    if model is None:
        return None
    import os

    from dami_router.estimators.embeddings import EndpointEncoder

    url = os.environ.get("DAMI_EMBEDDINGS_URL")
    if not url:
        raise MisuseError(
            "--embeddings needs the address of the model's server",
            hint="set DAMI_EMBEDDINGS_URL, for example to http://127.0.0.1:8080/v1",
        )
    return EndpointEncoder(url, model)
