"""From what each variant is expected to gain and to cost on a query, to λ(q): one price for a token decides.

For each query, the variant with the largest gain − price·cost is chosen; of equal ones, the cheaper. A lower price
never chooses fewer expected tokens, for any query, so that a larger budget never thinks less. Queries of which nothing
different is known are told apart by a hash of their text: they switch one after another, and a budget is spent even
where many queries are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_price", "choose", "price_within", "prices_of_switches", "tie_breaks"]

Floats = NDArray[np.float64]
_PRICES = 400
"""Most prices that are tried, before the last one is refined."""
_JITTER = 1e-6
_REFINED = 40
_LARGEST = 1e9


def tie_breaks(fingerprints: Sequence[str]) -> Floats:
    """Return one number in (0, 1) for each query, from the fingerprint of its text."""
    return np.array([(int(one[:12], 16) + 0.5) / 16**12 for one in fingerprints])


def choose(gain: Floats, cost: Floats, price: float, ties: Floats) -> NDArray[np.intp]:
    """Return the chosen column of each query, from `gain` and `cost` (queries, variants) and `ties` (queries,)."""
    # The tie break moves the price by a millionth: it orders equal queries, and no others.
    own = price * (1.0 + _JITTER * (ties - 0.5))
    utility = gain - own[:, None] * cost
    best = utility >= utility.max(axis=1, keepdims=True) - 1e-12
    cheapest: NDArray[np.intp] = np.argmin(np.where(best, cost, np.inf), axis=1)
    return cheapest


def prices_of_switches(gain: Floats, cost: Floats, count: int) -> Floats:
    """Return up to `count` falling prices at which queries switch variants, evenly over all switches; the last is 0."""
    i, j = np.triu_indices(gain.shape[1], 1)
    up = cost[:, j] - cost[:, i]
    with np.errstate(divide="ignore", invalid="ignore"):
        switch = (gain[:, j] - gain[:, i]) / up
    found = np.sort(switch[np.isfinite(switch) & (switch > 0) & (switch < _LARGEST)])
    if not len(found):
        return np.zeros(1)
    picked = found[np.linspace(0, len(found) - 1, min(count - 2, len(found))).astype(int)]
    # Just above the largest switch, every query has its cheapest variant.
    return np.concatenate([[2.0 * found[-1]], np.unique(picked)[::-1], [0.0]])


def best_price(gain: Floats, cost: Floats, utility: Floats, ties: Floats) -> float:
    """Return the price whose choices have the highest mean of the actual `utility` (queries, variants).

    It makes up for expectations that are too wide or too narrow. Of equally good prices, the middle one.
    """
    switches, rows = prices_of_switches(gain, cost, _PRICES), np.arange(len(gain))
    prices = np.concatenate([switches[:1], (switches[1:] + switches[:-1]) / 2, [0.0]])
    found = np.array([utility[rows, choose(gain, cost, price, ties)].mean() for price in prices])
    best = np.flatnonzero(found >= found.max() - 1e-12)
    return float(prices[best[(len(best) - 1) // 2]])


def price_within(gain: Floats, cost: Floats, tokens: Floats, allowed: float, ties: Floats) -> float | None:
    """Return the lowest price at which the mean of the actual `tokens` (queries, variants) is at most `allowed`.

    Every higher price keeps `allowed` too, which makes the price fall as `allowed` rises. None if no price keeps it.
    """
    rows = np.arange(len(gain))

    def spent(price: float) -> float:
        return float(tokens[rows, choose(gain, cost, price, ties)].mean())

    kept = None
    for price in prices_of_switches(gain, cost, _PRICES):
        if spent(price) <= allowed:
            kept = float(price)
            continue
        return None if kept is None else _refined(spent, kept, float(price), allowed)
    return kept


def _refined(spent: Callable[[float], float], kept: float, over: float, allowed: float) -> float:
    """Return a price between one that keeps `allowed` and a lower one that does not, as low as bisection finds."""
    for _ in range(_REFINED):
        middle = (kept + over) / 2
        if spent(middle) <= allowed:
            kept = middle
        else:
            over = middle
    return kept
