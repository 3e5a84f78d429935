"""What a sweep does next: finer grids, λ that are dropped, rounds of questions, caps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_merge.sweep.sweep_plan import (
    SweepPlan,
    cap_ladder,
    clear_steps,
    clearly_dominated,
    default_lambda,
    finer,
    frontier_lambdas,
    half_width,
    rounds_of,
)
from dami_merge.sweep.sweep_results import RecipeFacts, family_name, noise_of, recipe_text
from dami_router.errors import MisuseError
from dami_router.rollouts.grid import Grid


def made(lambdas: tuple[float, ...], right: Callable[[float], float], cost: Callable[[float], float]) -> Grid:
    """A grid of 400 queries, each λ with its accuracy and mean tokens, as even as can be."""
    count = 400
    place = (np.arange(count)[:, None] * 0.618) % 1.0
    correct = (place < np.array([right(x) for x in lambdas])).astype(float)
    tokens = np.array([[cost(x) for x in lambdas]] * count) + np.arange(count)[:, None] % 3
    return Grid(tuple(f"q{i}" for i in range(count)), lambdas, correct, tokens, np.zeros_like(correct))


def drawn(seed: int) -> Grid:
    """A grid of 30 queries and five λ, drawn at random."""
    rng = np.random.default_rng(seed)
    correct = (rng.random((30, 5)) < rng.random(5)).astype(float)
    tokens = rng.integers(1, 50, (30, 5)).astype(float)
    return Grid(tuple(map(str, range(30))), (0.0, 0.25, 0.5, 0.75, 1.0), correct, tokens, correct)


def step(x: float) -> float:
    """Thinking sets in at 0.6."""
    return 0.4 if x < 0.6 else 0.9


def test_the_grid_becomes_finer_where_thinking_sets_in() -> None:
    """New λ are put beside the bend, not along the straight parts, until the least distance is reached."""
    grid = made((0.0, 0.25, 0.5, 0.75, 1.0), step, lambda x: 10 + 100 * x * (x >= 0.6))
    plan, seen = SweepPlan(most=20), set(grid.lambdas)
    while new := finer(grid, plan):
        assert len(new) <= 2
        seen |= set(new)
        grid = made(tuple(sorted(seen)), step, lambda x: 10 + 100 * x * (x >= 0.6))
    gaps = np.diff(sorted(seen))
    assert min(gaps) >= plan.step - 1e-9
    assert {0.625, 0.5625} <= seen
    assert max(gaps) == 0.25


def test_a_straight_line_needs_no_more_points() -> None:
    """Where accuracy and tokens grow together, the ends say it all; nor is the largest number of λ exceeded."""
    grid = made((0.0, 0.25, 0.5, 0.75, 1.0), lambda x: 0.2 + 0.4 * x, lambda x: 10 + 100 * x)
    assert finer(grid, SweepPlan()) == []
    bent = made((0.0, 0.25, 0.5, 0.75, 1.0), step, lambda x: 10 + 100 * x)
    assert len(finer(bent, SweepPlan(most=6))) == 1
    assert finer(bent, SweepPlan(most=5)) == []


def test_two_lambdas_are_refined_too() -> None:
    """A first grid of only the endpoints gets its middle."""
    assert finer(made((0.0, 1.0), step, lambda x: 10 + x), SweepPlan(lambdas=(0.0, 1.0))) == [0.5]


def test_only_what_is_beaten_beyond_chance_is_dropped() -> None:
    """A λ that costs more for less is dropped; one that is as good but for chance is kept, and so are the ends."""
    grid = made((0.0, 0.2, 0.6, 1.0), lambda x: {0.0: 0.5, 0.2: 0.3, 0.6: 0.8, 1.0: 0.79}[x], lambda x: 10 + 50 * x)
    assert frontier_lambdas(grid) == [0.0, 0.6]
    assert clearly_dominated(grid) == [0.2]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, (40, 3)).astype(float)
    tokens = rng.normal(100, 50, (40, 3)).clip(1)
    even = Grid(tuple(map(str, range(40))), (0.0, 0.5, 1.0), noise, tokens, noise)
    assert clearly_dominated(even) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200))
def test_what_is_dropped_is_never_on_the_frontier(seed: int) -> None:
    """Dropped λ are dominated by their means as well; the frontier is never empty."""
    grid = drawn(seed)
    front = frontier_lambdas(grid)
    assert front
    assert not set(clearly_dominated(grid)) & set(front)
    assert half_width(grid, front) >= 0


@given(st.integers(1, 5000))
def test_rounds_double_until_all_questions_are_asked(count: int) -> None:
    """The first round has a quarter, at least 50; every question is asked in the end."""
    rounds = rounds_of(count)
    assert rounds[-1] == count
    assert rounds == sorted(set(rounds))
    assert rounds[0] == min(count, max(50, -(-count // 4)))


@pytest.mark.parametrize(
    ("tokens", "caps"), [(62.0, (8, 16, 31)), (22_813.0, (2_900, 5_700, 11_000)), (3.0, (1, 2)), (1.0, ()), (0.0, ())]
)  # fmt: skip
def test_caps_come_from_the_cost_of_thinking(tokens: float, caps: tuple[int, ...]) -> None:
    """An eighth, a quarter and half of Thinking's mean tokens, in round numbers of at least one."""
    assert cap_ladder(tokens) == caps


@pytest.mark.parametrize(("lambdas", "most"), [((0.5,), 9), ((0.0, 1.5), 9), ((0.0, 0.5, 1.0), 2)])
def test_plans_that_make_no_sense_are_refused(lambdas: tuple[float, ...], most: int) -> None:
    """Fewer than two λ, λ out of range, and a limit below the first grid."""
    with pytest.raises(MisuseError):
        SweepPlan(lambdas, most)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen3-4B-2507", "Qwen3-4B-2507-DAMI"),
        ("my pair: v2", "my-pair-v2-DAMI"),
        ("Qwen3-DAMI", "Qwen3-DAMI"),
        ("--", "pair-DAMI"),
        ("a..b", "a.b-DAMI"),
    ],
)
def test_family_names_are_accepted_by_the_hub(name: str, family: str) -> None:
    """Whatever the pair is called, the recipe's family has a valid name."""
    assert family_name(name) == family


def test_the_recipe_holds_the_frontier_alone() -> None:
    """λ that are dominated are not in the family; the scores are comments; a path and a template are kept."""
    grid = made((0.0, 0.2, 0.6, 1.0), lambda x: {0.0: 0.5, 0.2: 0.3, 0.6: 0.8, 1.0: 0.79}[x], lambda x: 10 + 50 * x)
    text = recipe_text(grid, RecipeFacts("a/b", 'c"d', "N-DAMI", "late(0.5)", "thinking", "bfloat16"), "x\ny")
    assert "lambdas: [0, 0.6]" in text
    assert f"#   λ=0.6: {100 * grid.correct[:, 2].mean():.1f} % [" in text
    assert "# x y, n = 400" in text
    assert ('model: "c\\"d"' in text, 'path: "late(0.5)"' in text, 'chat_template: "thinking"' in text) == (True,) * 3


def test_gains_within_the_noise_are_named_and_not_the_default() -> None:
    """λ=1 is a hair better at more tokens: it stays in the family, but λ=0.6 is the recipe's own."""
    right = {0.0: 0.4, 0.2: 0.405, 0.6: 0.9, 1.0: 0.905}
    grid = made((0.0, 0.2, 0.6, 1.0), lambda x: right[x], lambda x: 10 + 100 * x)
    assert frontier_lambdas(grid) == [0.0, 0.2, 0.6, 1.0]
    facts = RecipeFacts("a", "b", "N-DAMI")
    grid.correct[:20] = [[1, 0, 0, 1], [0, 1, 1, 0]] * 10  # the answers of two λ differ by chance, in both directions
    assert clear_steps(grid) == [0.0, 0.6]
    text = recipe_text(grid, facts, "x")
    assert "  lambda: 0.6   #" in text
    assert "lambdas: [0, 0.2, 0.6, 1]" in text
    assert noise_of(grid) == "on n = 400, only λ = 0, 0.6 are clearly apart in accuracy"
    assert "# On n = 400, only λ = 0, 0.6 are clearly apart in accuracy (95 %, paired)." in text
    apart = made((0.0, 0.6), lambda x: right[x], lambda x: 10 + 100 * x)
    assert (clear_steps(apart), noise_of(apart), default_lambda(apart)) == ([0.0, 0.6], None, 0.6)
    alike = made((0.0, 0.2), lambda x: right[x], lambda x: 10 + 100 * x)
    alike.correct[:20] = [[1, 0], [0, 1]] * 10
    assert noise_of(alike) == "on n = 400, no two λ on the frontier are clearly apart in accuracy"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_clear_steps_are_of_the_frontier(seed: int) -> None:
    """Whatever the answers: a part of the frontier, rising in accuracy and tokens, with the cheapest first."""
    grid = drawn(seed)
    steps = [grid.lambdas.index(x) for x in clear_steps(grid)]
    assert {grid.lambdas[i] for i in steps} <= set(frontier_lambdas(grid))
    assert default_lambda(grid) in frontier_lambdas(grid)
    for values in (grid.correct.mean(axis=0), grid.tokens.mean(axis=0)):
        assert list(values[steps]) == sorted(set(values[steps]))
