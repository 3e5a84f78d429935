"""Fitting a map to a wanted mean: which queries are held out, what is searched, and what is reported of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router.calibration.costs import LambdaCost, TokenCosts
from dami_router.calibration.fitting import Fitted, Sample, WantedMean, fit
from dami_router.errors import MisuseError
from dami_router.estimators.quantile import QuantileMap


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Return queries with scores spread over (0, 1)."""
    rng = Random(seed)
    return [Sample(f"q{i}", rng.random(), rng.random()) for i in range(count)]


def any_lambda(lambda_: float, draw: float) -> float:
    """A live server: λ itself."""
    return lambda_


def lambda_wish(mean: float, largest: float = 1.0) -> WantedMean:
    """Return a wish for a mean λ."""
    return WantedMean("lambda", mean, largest)


class Watched:
    """A cost that is λ plus an offset for each query, and remembers each query's last λ."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.asked: dict[str, list[float]] = {}

    def __call__(self, query: str, lambda_: float) -> float:
        self.asked.setdefault(query, []).append(lambda_)
        return lambda_ + self.offset * (int(query[1:]) % 7)

    def held_out(self) -> list[str]:
        """The queries that were not searched on."""
        return [query for query, lambdas in self.asked.items() if len(lambdas) == 1]


@settings(max_examples=20)
@given(st.floats(0.05, 0.95), st.sampled_from([0.5, 0.8, 1.0]), st.integers(0, 5))
def test_a_mean_lambda_that_can_be_had_is_met_closely(share: float, largest: float, seed: int) -> None:
    """Where any λ can be served the mean on the fitted queries is the wish, and no λ is above the largest."""
    wish = lambda_wish(share * largest, largest)
    found = fit("instruct", samples(400, seed), wish, LambdaCost(), any_lambda)
    assert found.fitted == pytest.approx(wish.mean, abs=largest / 1000)
    assert max(value for value, _ in found.histogram) <= largest
    assert found.map.max_lambda == largest
    assert found.wish == wish
    assert 0 < found.map.mean_lambda < largest


def test_the_report_is_about_the_held_out_queries() -> None:
    """Mean, interval, mean λ and shares are those of the queries that were neither fitted nor searched on."""
    cost, some = Watched(0.1), samples(200)
    found = fit("entropy", some, lambda_wish(0.6), cost, any_lambda)
    held = [sample for sample in some if sample.query in set(cost.held_out())]
    assert (found.fitted_on, found.held_out, len(held)) == (140, 60, 60)
    lambdas = [found.map(sample.score) for sample in held]
    costs = [x + 0.1 * (int(s.query[1:]) % 7) for s, x in zip(held, lambdas, strict=True)]
    half = NormalDist().inv_cdf(0.975) * stdev(costs) / math.sqrt(60)
    assert found.mean == pytest.approx(fmean(costs))
    assert found.low == pytest.approx(found.mean - half, rel=1e-4)
    assert found.high == pytest.approx(found.mean + half, rel=1e-4)
    assert found.mean_lambda == pytest.approx(fmean(lambdas))
    assert found.form == "entropy"
    assert set(found.map.scores) == {sample.score for sample in some} - {sample.score for sample in held}
    assert list(found.map.scores) == sorted(found.map.scores)


def test_the_mean_that_was_met_is_that_of_the_fitted_queries() -> None:
    """`fitted` is what the map gives on the queries that it was fitted on, each at the cost of its variant."""
    cost, some = Watched(0.1), samples(100)
    found = fit("instruct", some, lambda_wish(0.6), cost, any_lambda)
    fitted_on = [sample for sample in some if sample.query not in set(cost.held_out())]
    assert found.fitted == pytest.approx(fmean(found.map(s.score) + 0.1 * (int(s.query[1:]) % 7) for s in fitted_on))


@pytest.mark.parametrize(("held_out", "count"), [(0.3, 6), (0.5, 10), (0.0, 1), (0.02, 1), (0.33, 7)])
def test_a_share_is_held_out_and_never_nothing(held_out: float, count: int) -> None:
    """Twenty queries are enough; of them the wanted share is held out, at least one."""
    found = fit("instruct", samples(20), lambda_wish(0.5), LambdaCost(), any_lambda, held_out)
    assert (found.fitted_on, found.held_out) == (20 - count, count)
    if count == 1:
        assert found.low == found.mean == found.high


def test_two_held_out_queries_have_an_interval() -> None:
    """An interval needs two values, no more."""
    cost = Watched(1.0)
    found = fit("instruct", samples(20), lambda_wish(0.5), cost, any_lambda, 0.1)
    a, b = (cost.asked[query][0] + int(query[1:]) % 7 for query in cost.held_out())
    assert found.high - found.mean == pytest.approx(1.96 * abs(a - b) / 2)


def test_fewer_than_twenty_queries_are_refused_with_their_number() -> None:
    """Nineteen make no map, and the message says how many there were and must be."""
    with pytest.raises(MisuseError, match=r"^19 .* 20$"):
        fit("instruct", samples(19), lambda_wish(0.5), LambdaCost(), any_lambda)


def test_scores_that_are_none_are_refused() -> None:
    """NaN among the scores is a MisuseError, not a map that sorts it anywhere."""
    with pytest.raises(MisuseError, match="finite numbers"):
        fit(
            "instruct",
            [Sample(f"q{i}", math.nan, i / 40) for i in range(40)],
            lambda_wish(0.5),
            LambdaCost(),
            any_lambda,
        )


def test_queries_with_one_draw_are_parted_by_their_text() -> None:
    """The parts do not depend on the order even where all draws are equal."""
    some = [Sample(f"q{i}", i / 40, 0.5) for i in range(40)]
    first, second = (fit("instruct", p, lambda_wish(0.5), LambdaCost(), any_lambda) for p in (some, some[::-1]))
    assert first == second


def test_the_rule_sees_each_query_s_own_draw() -> None:
    """What a dithered query gets depends on its draw, so fitting and checking must use it."""
    some = samples(100)
    draws = {sample.draw for sample in some}
    seen: set[float] = set()

    def rule(lambda_: float, draw: float) -> float:
        seen.add(draw)
        return 1.0 if draw < lambda_ else 0.0

    found = fit("instruct", some, lambda_wish(0.4), LambdaCost(), rule)
    assert seen == draws
    assert found.fitted == pytest.approx(0.4, abs=0.02)


def test_of_maps_that_meet_the_wish_alike_the_one_with_the_smallest_lambda_is_taken() -> None:
    """Where every λ costs the same, there is no reason to think harder."""
    found = fit("instruct", samples(100), WantedMean("tokens", 7.0, 0.8), lambda query, lambda_: 7.0, any_lambda)
    assert found.map.mean_lambda <= 0.8 / 800
    assert (found.fitted, found.mean, found.low, found.high, found.reach) == (7.0, 7.0, 7.0, 7.0, (7.0, 7.0))


@pytest.mark.parametrize(("wish", "mean_lambda"), [(-5.0, 0.0), (50.0, 1.0)])
def test_a_wish_beyond_reach_gives_the_nearest_end(wish: float, mean_lambda: float) -> None:
    """The reach is from about the cost at λ=0 to that at the largest, and `fitted` is the end of it."""
    found = fit("instruct", samples(200), WantedMean("tokens", wish, 1.0), lambda query, x: 10 * x, any_lambda)
    assert found.map.mean_lambda == pytest.approx(mean_lambda, abs=1 / 750)
    assert found.reach == pytest.approx((0.0, 10.0), abs=0.3)
    assert found.fitted == found.reach[0 if wish < 0 else 1]


def shares(found: Fitted) -> float:
    """Return the histogram's sum."""
    return math.fsum(share for _, share in found.histogram)


def held_out_at(values: Sequence[float]) -> Fitted:
    """Fit where λ is a query's draw, so that the held-out half is given each of some values forty times."""
    low = [Sample(f"q{i}", i / 1000, values[i % len(values)]) for i in range(40 * len(values))]
    high = [Sample(f"r{i}", i / 1000, 1.0) for i in range(len(low))]
    return fit("instruct", [*high, *low], lambda_wish(0.5), LambdaCost(), lambda lambda_, draw: draw, 0.5)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_shares_are_by_variant(count: int) -> None:
    """Up to twelve values of λ each have their own share."""
    values = [i / 13 for i in range(count)]
    found = held_out_at(values)
    assert found.histogram == tuple((value, pytest.approx(1 / count)) for value in values)
    assert found.mean_lambda == pytest.approx(fmean(values))


def test_many_values_are_shown_by_tenths() -> None:
    """More than twelve values, as of a live server, are rounded to tenths; a tenth without a query is left out."""
    found = held_out_at([0.01 * i for i in (1, 2, 3, 4, 8, 9, 10, 11, 12, 41, 42, 43, 96)])
    assert [(value, round(share * 13)) for value, share in found.histogram] == [(0.0, 4), (0.1, 5), (0.4, 3), (1.0, 1)]
    assert math.fsum(share for _, share in found.histogram) == pytest.approx(1)


def test_a_mean_of_tokens_includes_the_probe() -> None:
    """A target in tokens is met with what the probe takes; one in λ is not touched by it."""
    some = [Sample(f"q{i}", i / 400, (37 * i % 400) / 400) for i in range(400)]
    probed = [replace(sample, probe=5.0) for sample in some]
    cost = TokenCosts({0.0: 10.0, 1.0: 50.0})
    free, paid = (
        fit("instruct", one, WantedMean("tokens", 30.0, 1.0), cost, lambda x, _: float(x > 0.5))
        for one in (some, probed)
    )
    assert (free.fitted, paid.fitted) == pytest.approx((30.0, 30.0), abs=0.5)
    assert (free.probe_tokens, paid.probe_tokens) == (0.0, 5.0)
    assert paid.mean_lambda == pytest.approx(free.mean_lambda - 5 / 40, abs=0.04)
    wish = WantedMean("lambda", 0.4, 1.0)
    by_lambda = [fit("instruct", one, wish, LambdaCost(), lambda x, _: x) for one in (some, probed)]
    assert by_lambda[0].map == by_lambda[1].map


def test_a_report_is_json_without_the_scores() -> None:
    """Everything but the map, under the names that `dami calibrate --json` prints."""
    shares, reach = ((0.0, 0.25), (1.0, 0.75)), (0.125, 0.75)
    wish = WantedMean("tokens", 9.0, 0.8)
    made = Fitted("entropy", QuantileMap((0.1,), 0.5), wish, 14, 8.5, 6, 8.0, 7.0, 9.5, 0.375, shares, reach, 3.5)
    assert json.loads(json.dumps(made.as_dict())) == {
        "form": "entropy", "unit": "tokens", "wish": 9.0, "max_lambda": 0.8, "fitted_on": 14, "fitted": 8.5,
        "held_out": 6, "mean": 8.0, "low": 7.0, "high": 9.5, "mean_lambda": 0.375, "reach": [0.125, 0.75],
        "probe_tokens": 3.5, "histogram": [{"lambda": 0.0, "share": 0.25}, {"lambda": 1.0, "share": 0.75}],
    }  # fmt: skip
