"""`dami eval`: compare estimators with static variants, random mixing, query length and the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dami_router.cli import command
from dami_router.commands.rollout_files import read_grid
from dami_router.commands.shared_options import numbers, training_options
from dami_router.errors import MisuseError
from dami_router.output import Output, table
from dami_router.shared.suggestions import amount

if TYPE_CHECKING:
    from dami_router.estimators.features import Encoder
    from dami_router.estimators.training import Method, TrainingSettings
    from dami_router.evaluating.comparison import Comparison
    from dami_router.manifest.family import Family
    from dami_router.rollouts.grid import Grid


@command(
    "eval",
    examples=(
        "dami eval rollouts.jsonl",
        "dami eval test.jsonl --estimator estimator --report report",
        "dami eval rollouts.jsonl --write-manifest family/dami_family.json --benchmark gsm8k",
    ),
    help="Evaluate an estimator of λ(q) on rollouts: compare its accuracy and tokens with every static variant, random "
    "mixing at equal cost, the query's length and the oracle. Without --estimator, train and test the default "
    "estimator by cross-validation over queries. With it, evaluate a trained estimator on the queries that it was not "
    "trained on. Also lists the dominated variants.",
)
@click.argument("rollouts", type=click.Path(path_type=Path))
@click.option("--estimator", "estimators", multiple=True, help="A trained folder or an installed name; repeatable.")
@click.option("--folds", type=int, default=5, show_default=True, help="Folds of the cross-validation over queries.")
@training_options
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML report with plots into this folder.")
@click.option(
    "--write-manifest", "manifest", type=click.Path(path_type=Path),
    help="Write each variant's accuracy and mean tokens into this dami_family.json.",
)  # fmt: skip
@click.option("--benchmark", help="The benchmark's name for --write-manifest. Default: the rollouts' file name.")
def evaluate(
    output: Output, rollouts: Path, estimators: tuple[str, ...], folds: int, method: Method, price: float,
    budget: float | None, seed: int, confidence: Path | None, probe_tokens: float | None, embeddings: str | None,
    hidden: Path | None, lambdas: str | None, drop_incomplete: bool, report: Path | None, manifest: Path | None,
    benchmark: str | None,
) -> None:  # fmt: skip
    """Evaluate estimators on rollouts."""
    if benchmark and not manifest:
        raise MisuseError("--benchmark needs --write-manifest")
    grid = read_grid(
        rollouts, confidence, probe_tokens=probe_tokens, drop_incomplete=drop_incomplete, note=output.warning
    )
    if wanted := numbers(lambdas, "--lambdas"):
        grid = grid.at(wanted)
    from dami_router.commands.hidden_states_of import chosen_encoder
    from dami_router.estimators.training import TrainingSettings

    settings = TrainingSettings(method=method, price=price, budget=budget, seed=seed)
    family = _family(manifest, grid) if manifest else None
    encoder = chosen_encoder(embeddings, hidden, rollouts, output.note)
    found = _compare(output, grid, estimators, folds, settings, encoder)
    data = found.as_dict()
    if report:
        from dami_router.evaluating.report import write_report

        data["report"] = str(write_report(found, report, title=f"Routing on {rollouts.name}"))
    if manifest and family:
        from dami_router.evaluating.measured import write_measured

        data["benchmark"] = benchmark or rollouts.name.split(".")[0]
        write_measured(family, manifest, grid, str(data["benchmark"]))
        data["manifest"] = str(manifest)
    _show(output, found, data)


def _compare(
    output: Output, grid: Grid, places: tuple[str, ...], folds: int, settings: TrainingSettings, encoder: Encoder | None
) -> Comparison:
    from dami_router.estimators.hidden_encoder import HiddenEncoder
    from dami_router.estimators.installed import named
    from dami_router.estimators.training import evidence_of
    from dami_router.evaluating.comparison import (
        compare,
        cross_validated,
        length_of_query,
        unseen,
        with_estimator,
        with_states,
    )

    made = {place: named(place) for place in places}
    if isinstance(encoder, HiddenEncoder):
        made = {place: with_states(estimator, encoder) for place, estimator in made.items()}
    kept = unseen(grid, list(made.values()))
    if len(kept.queries) < len(grid.queries):
        seen = amount(len(grid.queries) - len(kept.queries), "query", "queries")
        output.warning(f"skipped {seen} used for training")
    contenders = [with_estimator(place, estimator, kept) for place, estimator in made.items()]
    if len(kept.lambdas) > 1:
        if not made:
            contenders.append(cross_validated(kept, settings, folds, output.note, encoder=encoder))
            if evidence_of(kept, None):
                # The ablation: is the confidence worth its probe?
                contenders.append(
                    cross_validated(kept, settings, folds, output.note, encoder=encoder, use_confidence=False)
                )
        contenders.append(length_of_query(kept, settings, folds))
    else:
        output.warning(f"only one variant, λ={kept.lambdas[0]:g}: nothing to choose from")
    return compare(kept, contenders)


def _family(manifest: Path, grid: Grid) -> Family:
    from dami_router.manifest.family import load_family

    family = load_family(manifest)
    known = [variant.lambda_ for variant in family.variants]
    if not any(abs(x - y) < 1e-6 for x in known for y in grid.lambdas):
        raise MisuseError(f"{manifest}: no variant has a λ of these rollouts; nothing was evaluated")
    return family


def _validated(found: Comparison) -> list[str]:
    """Say how estimators were trained here, since `dami train` reports a more favourable figure of its own."""
    folds = next((len(c.folds) for c in found.contenders if c.folds), 0)
    if not folds:
        return []
    return [f"cross-validation: each query's λ comes from an estimator, and a price, of the other {folds - 1} folds"]


def _show(output: Output, found: Comparison, data: dict[str, object]) -> None:
    from dami_router.evaluating.report import HEADER, rows

    gone = ", ".join(f"λ={x:g}" for x in found.dominated) or "none"
    queries = amount(len(found.grid.queries), "query", "queries")
    # The first estimator's figures are also at the top level, for scripts.
    first = data["estimators"][0] if found.contenders else {}  # type: ignore[index]
    text = table(HEADER, rows(found))
    said = "\n".join([
        text, f"{queries}; dominated variants: {gone}", *_validated(found), *found.headlines,
    ])  # fmt: skip
    output.result(said, {**first, **data, "headlines": found.headlines})
    if "report" in data:
        output.note(f"report: {data['report']}")
    if "manifest" in data:
        output.note(f"wrote accuracy and mean tokens on `{data['benchmark']}` into {data['manifest']}")
