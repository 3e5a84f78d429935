"""The quantile map: its formula, its mean, and what happens at ties, at the edges and to scores that are none."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.errors import MisuseError
from dami_router.estimators.quantile import QuantileMap

EVEN = [i / 100 for i in range(100)]
SCORES = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=40)
TOPS = st.sampled_from([0.3, 0.5, 0.8, 1.0])
SHARES = st.sampled_from([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])


def by_the_book(scores: list[float], share: float, top: float, score: float) -> float:
    """λ_max · clip(½ + (q − r)/w, 0, 1) with w = min(¼, 2q, 2(1−q)), in exact arithmetic."""
    q = Fraction(share * top) / Fraction(top)
    below, equal = sum(s < score for s in scores), sum(s == score for s in scores)
    rank = Fraction(2 * below + equal, 2 * len(scores))
    width = min(Fraction(1, 4), 2 * q, 2 * (1 - q))
    return top * float(min(max(Fraction(1, 2) + (q - rank) / width, Fraction(0)), Fraction(1)))


@given(SCORES, SHARES, TOPS, st.integers(-22, 22).map(float) | st.floats(-25, 25))
def test_lambda_is_the_documented_formula(scores: list[float], share: float, top: float, score: float) -> None:
    """For any calibration and any score, seen or not, below all of them or above."""
    made = QuantileMap.fit(scores, share * top, top)
    assert made(score) == pytest.approx(by_the_book(scores, share, top, score), abs=1e-9)


@given(SHARES, TOPS, st.integers(1, 5))
def test_the_mean_over_the_calibration_is_the_wanted_one(share: float, top: float, each: int) -> None:
    """Queries like those of the calibration get the wanted mean λ, also where several have the same score."""
    scores = [score for score in EVEN for _ in range(each)]
    made = QuantileMap.fit(scores, share * top, top)
    assert math.fsum(map(made, scores)) / len(scores) == pytest.approx(share * top, abs=top / 100)


@given(SCORES, SHARES, st.tuples(st.floats(-25, 25), st.floats(-25, 25)))
def test_a_more_confident_query_never_gets_a_larger_lambda(
    scores: list[float], share: float, pair: tuple[float, float]
) -> None:
    """λ falls with confidence, and stays in [0, the largest λ]."""
    made = QuantileMap.fit(scores, share, 1.0)
    unsure, sure = (made(score) for score in sorted(pair))
    assert 0.0 <= sure <= unsure <= 1.0


@given(SCORES, SHARES)
def test_only_the_order_of_the_scores_matters(scores: list[float], share: float) -> None:
    """Any increasing change of all scores leaves λ as it was."""
    plain, curved = (QuantileMap.fit(values, share) for values in (scores, [math.exp(s / 5) for s in scores]))
    assert [plain(s) for s in scores] == [curved(math.exp(s / 5)) for s in scores]


def test_equal_scores_share_the_middle_of_their_ranks() -> None:
    """Where all are equal nobody is sent to an end; of three groups each gets its own place."""
    assert QuantileMap.fit([0.5] * 8, 0.5)(0.5) == 0.5
    made = QuantileMap.fit([1.0] * 4 + [2.0] * 4 + [3.0] * 4, 0.5)
    assert [made(s) for s in (1.0, 2.0, 3.0)] == [1.0, 0.5, 0.0]
    assert (made(1.5), made(2.5)) == (1.0, 0.0)


def test_the_ends_get_all_or_nothing() -> None:
    """Less confident than all of the calibration is the largest λ, more confident is 0, also infinitely so."""
    made = QuantileMap.fit(EVEN, 0.4, 0.8)
    assert (made(-1.0), made(2.0), made(-math.inf), made(math.inf)) == (0.8, 0.0, 0.8, 0.0)


@pytest.mark.parametrize(("share", "first", "last"), [(0.5, 38, 61), (0.05, 0, 9), (0.95, 90, 99)])
def test_the_edge_is_soft_and_no_wider_than_either_side(share: float, first: int, last: int) -> None:
    """Strictly between the ends lie the scores within w/2 of the wanted share, and no others."""
    made = QuantileMap.fit(EVEN, share)
    soft = [i for i, score in enumerate(EVEN) if 0.0 < made(score) < 1.0]
    assert (soft[0], soft[-1]) == (first, last)
    assert soft == list(range(first, last + 1))


def test_scores_are_sorted_when_fitted_and_the_largest_lambda_is_1_by_default() -> None:
    """A map keeps what it was fitted on."""
    made = QuantileMap.fit(iter([3.0, 1.0, 2.0]), 0.25)
    assert made == QuantileMap((1.0, 2.0, 3.0), 0.25, 1.0)
    assert QuantileMap.fit([1.0], 0.25, 0.5).max_lambda == 0.5


@pytest.mark.parametrize("scores", [[], [math.nan], [0.1, math.inf], [-math.inf, 0.2]])
def test_what_is_no_score_is_refused(scores: list[float]) -> None:
    """No score at all, NaN and infinities make no map."""
    with pytest.raises(MisuseError, match="at least one confidence, and finite numbers"):
        QuantileMap.fit(scores, 0.5)


@pytest.mark.parametrize(("mean", "top"), [(0.0, 1.0), (0.5, 0.5), (0.6, 0.5), (0.5, 1.01), (-0.1, 1.0), (1.0, 1.0)])
def test_a_mean_must_lie_between_0_and_the_largest_lambda(mean: float, top: float) -> None:
    """Both ends and everything beyond are refused with the two numbers."""
    with pytest.raises(MisuseError, match=rf"mean {mean:g}, largest {top:g}"):
        QuantileMap.fit([0.1, 0.2], mean, top)


def test_a_score_that_is_not_a_number_has_no_lambda() -> None:
    """NaN is refused; it would be sorted anywhere."""
    with pytest.raises(MisuseError, match="found NaN"):
        QuantileMap.fit([0.1, 0.2], 0.5)(math.nan)


@given(SCORES, st.integers(1, 98))
def test_a_larger_wanted_mean_never_lowers_any_lambda(scores: list[float], percent: int) -> None:
    """A larger wanted mean moves the edge towards more confident queries."""
    low, high = (QuantileMap.fit(scores, p / 100) for p in (percent, percent + 1))
    assert all(low(s) <= high(s) + 1e-12 for s in scores)
