"""`dami calibrate`: fit a map from confidence to λ on unlabelled queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.commands.shared_options import dataset_options
from dami_router.errors import FailureError, MisuseError
from dami_router.output import Output, table

if TYPE_CHECKING:
    from dami_router.calibration.costs import Cost, Unit
    from dami_router.calibration.fitting import Fitted
    from dami_router.estimators.calibrated import Form
    from dami_router.estimators.confidence import Choice
    from dami_router.estimators.query import Query

__all__ = ["calibrate"]

_ENOUGH = 0.9
_FAR = 0.05


@command(
    "calibrate",
    examples=(
        "dami calibrate router.yml --queries questions.jsonl --mean-lambda 0.4",
        "dami calibrate router.yml --queries questions.jsonl --mean-tokens 900 --max-lambda 0.7 --out map.json",
        "dami calibrate router.yml --queries q.jsonl --mean-tokens 25 --rollouts r.jsonl --confidence confidence.json",
    ),
    help="Measure the confidence of the served endpoints on a set of queries, and fit the map from confidence to λ "
    "that reaches a target mean λ, or mean tokens, on such queries. No labels are used. The map is fitted on one part "
    "of the queries and checked on the rest. Writes the map for the estimator `confidence` and prints the lines to add "
    "to router.yml. If it is interrupted, run the same command again to resume.",
)
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--queries", required=True, help="A JSONL, CSV, parquet or .txt (one query per line) file, or a Hub id.")
@dataset_options
@click.option("--mean-lambda", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="The target mean λ.")
@click.option("--mean-tokens", type=click.FloatRange(0, min_open=True), help="The target mean tokens per answer.")
@click.option(
    "--max-lambda", type=click.FloatRange(0, 1, min_open=True),
    help="The λ of the least confident queries. Default: the largest λ that is served.",
)  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The map to write; must not exist. Default: confidence.json beside CONFIG.",
)
@click.option(
    "--form", type=click.Choice(["auto", "instruct", "discrepancy", "entropy"]),
    help="What to measure; auto: everything the servers support. Default: the form that CONFIG sets for `confidence`.",
)  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 1024), help="Tokens of the probe. Default: as in CONFIG.")
@click.option("--timeout", type=click.FloatRange(0.001), default=30.0, show_default=True, help="Seconds per query.")
@click.option("--rollouts", type=click.Path(path_type=Path), help="Rollouts that give the cost for --mean-tokens.")
@click.option(
    "--confidence", type=click.Path(path_type=Path),
    help="Also write each query's confidence and its probe's tokens, as JSON by query_id, for `dami train`.",
)  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Queries in flight.")
def calibrate(
    output: Output, config_file: Path, queries: str, config: str | None, split: str | None, query_column: str | None,
    limit: int | None, mean_lambda: float | None, mean_tokens: float | None, max_lambda: float | None,
    out: Path | None, form: str | None, tokens: int | None, timeout: float, rollouts: Path | None,
    confidence: Path | None, concurrency: int,
) -> None:  # fmt: skip
    """Calibrate."""
    import asyncio

    if (mean_lambda is None) == (mean_tokens is None):
        raise MisuseError("expected exactly one of --mean-lambda and --mean-tokens")
    if rollouts and mean_tokens is None:
        raise MisuseError("--rollouts needs --mean-tokens")
    place = out or config_file.parent / "confidence.json"
    for path in (place, confidence):
        if path is not None and path.exists():
            raise MisuseError(f"{path}: already exists; no server was called", hint="choose another file, or remove it")
    found = _queries(queries, limit, query_column=query_column, config=config, split=split)
    run = _Run(output, config_file, place, found, concurrency)
    run.set_up(form, tokens, timeout)
    run.wish("lambda" if mean_lambda else "tokens", mean_lambda or mean_tokens or 0.0, max_lambda, rollouts)
    asyncio.run(run.ask())
    run.finish(confidence)


def _queries(place: str, limit: int | None, **columns: str | None) -> dict[str, Query]:
    """Return the queries by id, in order."""
    from dami_router.datasets import load_dataset
    from dami_router.estimators.query import Query

    if place.endswith(".txt"):
        if given := next((name for name, value in columns.items() if value is not None), None):
            raise MisuseError(f"{place}: --{given.replace('_', '-')} does not apply to a text file")
        try:
            lines = [line.strip() for line in Path(place).read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise MisuseError(f"{place}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise MisuseError(f"{place}: is no UTF-8 text, from byte {error.start:,} on") from None
        found = {str(i): Query(line) for i, line in enumerate((line for line in lines if line), 1)}
        return dict(list(found.items())[:limit])
    return {q.id: Query(q.text, messages=q.messages) for q in load_dataset(place, limit=limit, **columns).questions}


class _Run:
    """One call of the command, step by step."""

    def __init__(self, output: Output, config: Path, out: Path, queries: dict[str, Query], concurrency: int) -> None:
        from dami_router.router import Router

        self._output, self._file, self._out, self._queries = output, config, out, queries
        self._partial = out.with_name(f"{out.name}.partial")
        self._concurrency = concurrency
        self._router = Router.from_file(config)
        self._confidence: dict[str, dict[str, float]] = {}
        self._fitted: list[Fitted] = []

    def set_up(self, form: str | None, tokens: int | None, timeout: float) -> None:
        """Take the estimator's settings from the configuration; command-line options override them."""
        from dataclasses import replace
        from typing import cast

        from dami_router.estimators.confidence import Confidence

        links = self._router.config.estimator.estimators
        found = next((link for link in links if isinstance(link, Confidence)), Confidence())
        self._form: Choice = cast("Choice", form or found.form)
        self._estimator = replace(found, map=None, memo=None, cache=0, tokens=tokens or found.tokens, timeout=timeout)

    def wish(self, unit: Unit, mean: float, max_lambda: float | None, rollouts: Path | None) -> None:
        """Check the target against what is served, before any server is called."""
        from dami_router.calibration.costs import LambdaCost, tokens_of_rollouts, tokens_of_variants
        from dami_router.calibration.fitting import WantedMean
        from dami_router.calibration.served_lambda import largest, rule_of
        from dami_router.messages.pinning import LIVE
        from dami_router.rollouts.records import read_rollouts

        top = max_lambda or largest(self._router)
        if unit == "lambda" and mean >= top:
            raise MisuseError(f"--mean-lambda {mean:g} is not below the largest λ, {top:g}")
        self._wish, self._rule = WantedMean(unit, mean, top), rule_of(self._router)
        self._cost: Cost = LambdaCost()
        if unit == "tokens":
            between = bool(self._router.fleet.of(LIVE))
            rows = read_rollouts(rollouts, self._output.warning) if rollouts else None
            variants = self._router.config.variants
            measured = tokens_of_variants(variants, between=between) if rows is None else None
            self._cost = measured or tokens_of_rollouts(rows or (), between=between)
            for lambda_ in {self._rule(i / 100, 0.5) for i in range(round(100 * top) + 1)}:
                self._cost("", lambda_)

    async def ask(self) -> None:
        """Measure the missing queries and fit; raises FailureError if too few queries could be measured."""
        from dataclasses import replace

        from dami_router.calibration.measuring import collect, forms_of
        from dami_router.calibration.probe_journal import journal

        settings = {
            "tokens": self._estimator.tokens, "form": self._form,
            "backends": [[b.variant, b.url] for b in self._router.config.backends],
        }  # fmt: skip
        async with self._router as router:
            router.require_usable()
            if router.endpoints is None:
                raise MisuseError(f"{self._file}: has no backends")
            router.endpoints.instruct.require_alive(self._check())
            estimator = replace(self._estimator, servers=router.endpoints)
            with journal(self._partial, settings) as opened:
                if opened.done:
                    self._output.note(f"{len(opened.done):,} queries were already measured")
                forms = await forms_of(estimator, self._form, next(iter(self._queries.values())))
                if not forms:
                    raise FailureError("the servers return no log-probabilities", hint=self._check())
                self._output.note(f"{len(self._queries):,} queries; measuring {', '.join(forms)}")
                asked = list(self._queries.values())
                outcome = await collect(estimator, forms, asked, opened, self._concurrency, self._output.note)
                self._take(opened.done, outcome.failures, forms)

    def _take(self, done: Any, failures: Any, forms: tuple[Form, ...]) -> None:
        """Fit each form on the measurements; a repeated query counts as often as it occurs."""
        from dami_router.calibration.fitting import Sample, fit
        from dami_router.calibration.measuring import key_of

        keys = {id: key_of(query) for id, query in self._queries.items()}
        known = {id: done[key] for id, key in keys.items() if key in done}
        for reason, count in failures.most_common(5):
            self._output.warning(f"{count:,} × {reason}")
        if len(known) < _ENOUGH * len(keys):
            again = f"{self._check()}, then run the same command again: it measures only the missing ones"
            raise FailureError(
                f"{len(keys) - len(known):,} of {len(keys):,} queries could not be measured",
                hint=again if known else f"{self._check()} shows whether the servers answer, with log-probabilities",
            )
        self._confidence = {
            id: {"confidence": found.scores["instruct"], "tokens": found.tokens["instruct"]}
            for id, found in known.items()
        }
        for form in forms:
            samples = [
                Sample(self._queries[id].text, one.scores[form], int(keys[id][:12], 16) / (1 << 48), one.tokens[form])
                for id, one in known.items()
                if form in one.scores
            ]
            self._fitted.append(fit(form, samples, self._wish, self._cost, self._rule))

    def finish(self, confidence: Path | None) -> None:
        """Write the map and report its results."""
        import json

        from dami_router.estimators.calibrated import CalibratedMap
        from dami_router.shared.durable import write_atomically
        from dami_router.version import __version__

        results = [fitted.as_dict() for fitted in self._fitted]
        about = {"created_with": f"dami-router {__version__}", "results": results}
        CalibratedMap(self._estimator.tokens, {f.form: f.map for f in self._fitted}, about).save(self._out)
        if confidence is not None:
            write_atomically(confidence, json.dumps(self._confidence, indent=0).encode() + b"\n")
        self._partial.unlink(missing_ok=True)
        data = {"map": str(self._out), "tokens": self._estimator.tokens, "results": results}
        self._output.result(f"{self._table()}\n\nwrote {self._out}; add to router.yml:\n\n{self._lines()}", data)
        for fitted in self._fitted:
            self._warn(fitted)
        self._output.hint(f"dami route {self._file} QUERY")

    def _warn(self, fitted: Fitted) -> None:
        wish, (low, high) = fitted.wish, fitted.reach
        if abs(fitted.fitted - wish.mean) > _FAR * wish.mean:
            self._output.warning(
                f"{fitted.form}: a mean of {wish.mean:g} {self._unit} is impossible with λ up to {wish.max_lambda:g}; "
                f"possible means: {low:.4g} to {high:.4g}"
            )

    def _table(self) -> str:
        rows = []
        for f in self._fitted:
            got = f"{f.mean:.4g} [{f.low:.4g}, {f.high:.4g}]"
            rows.append([f.form, str(f.fitted_on), str(f.held_out), f"{f.wish.mean:g}", got, f"{f.mean_lambda:.3f}"])
        probe = "" if self._wish.unit == "lambda" else ", with probe"
        wanted = f"target {self._unit}", f"held-out {self._unit}{probe}"
        means = table(("form", "fitted on", "held out", *wanted, "mean λ"), rows)
        return f"{means}\n\nheld-out queries by the λ that answers:\n\n{self._histograms()}"

    def _histograms(self) -> str:
        shares = [dict(f.histogram) for f in self._fitted]
        lambdas = sorted({x for share in shares for x in share})
        rows = [[f"{x:g}", *(f"{share[x]:.0%}" if x in share else "-" for share in shares)] for x in lambdas]
        return table(("λ", *(f.form for f in self._fitted)), rows)

    @property
    def _unit(self) -> str:
        return "λ" if self._wish.unit == "lambda" else "tokens"

    def _lines(self) -> str:
        import os

        name = os.path.relpath(self._out, self._file.parent)
        form = "" if self._form == "instruct" else f"form: {self._form}, "
        return f"estimator:\n  chain:\n    - effort\n    - confidence: {{{form}map: {name}}}"

    def _check(self) -> str:
        return f"dami serve {self._file} --check"
