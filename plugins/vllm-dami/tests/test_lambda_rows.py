"""λ of rows and tokens, without vLLM: the tensors that the layers read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.path import parse_path
from dami_merge.interpolation.setting import Constant
from dami_merge.live.spread import Spread
from dami_merge.recipes.recipe import Recipe, parse_recipe
from vllm_dami.lambda_rows import LambdaRows

NAMES = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
RECIPE: Recipe = parse_recipe(
    "merge_method: dami\nbase_model: I\nmodels: [{model: T}]\nparameters: {lambda: 'ramp(0.1, 0.9)'}"
)


@pytest.fixture
def rows() -> LambdaRows:
    """Rows for three layers along the path late(0.5)."""
    made = LambdaRows()
    path = Constant(parse_path("late(0.5)"))
    spread = Spread({name: [name] for name in NAMES}, Anatomy.of(NAMES), path, RECIPE)
    made.allocate(spread, 6, 32, torch.device("cpu"))
    return made


def test_lambda_is_written_on_the_host_whatever_the_default_device(rows: LambdaRows) -> None:
    """A model that is made with another default device has its λ in the host's memory, and sends it from there."""
    assert rows._spread is not None
    with torch.device("meta"):
        rows.allocate(rows._spread, 6, 32, torch.device("cpu"))
    rows.put(0, 0.3)
    rows.fill(torch.tensor([0, 4]), 4)
    assert rows.tokens[:, :4].T.tolist() == [pytest.approx(expected(0.3))] * 4


def expected(lambda_: float | None) -> list[float]:
    if lambda_ is None:
        return [RECIPE.lambda_for(name, Anatomy.of(NAMES)) for name in NAMES]
    path = parse_path("late(0.5)")
    return [path.lambda_at(lambda_, Anatomy.of(NAMES).place(name)) for name in NAMES]


def test_each_token_has_the_lambda_of_its_row(rows: LambdaRows) -> None:
    """One scalar spreads over the layers as the path says; a request without one has the recipe's schedule."""
    lambdas = [0.3, None, 1.0]
    for row, lambda_ in enumerate(lambdas):
        rows.put(row, lambda_)
    rows.fill(torch.tensor([0, 2, 5, 6], dtype=torch.int32), 6)
    for token, row in enumerate([0, 0, 1, 1, 1, 2]):
        assert rows.tokens[:, token].tolist() == pytest.approx(expected(lambdas[row]))


def test_rows_that_move_take_their_lambda_along(rows: LambdaRows) -> None:
    """After any series of moves and swaps, every row has the λ of the request that sits in it."""
    shuffle = random.Random(1)
    seated: list[float] = [shuffle.random() for _ in range(6)]
    for row, lambda_ in enumerate(seated):
        rows.put(row, lambda_)
    for _ in range(50):
        a, b = shuffle.sample(range(6), 2)
        swap = shuffle.random() < 0.5
        seated[a], seated[b] = (seated[b], seated[a]) if swap else (seated[a], seated[a])
        rows.move(a, b, swap=swap)
        rows.fill(torch.arange(7, dtype=torch.int32), 6)
        assert rows.tokens[0, :6].tolist() == pytest.approx([expected(lambda_)[0] for lambda_ in seated])


def test_rows_without_tokens_and_padding_behind_the_last(rows: LambdaRows) -> None:
    """A row may have no token in a step; tokens behind the last row take its λ and no other memory."""
    for row, lambda_ in enumerate((0.2, 0.4, 0.6)):
        rows.put(row, lambda_)
    rows.fill(torch.tensor([0, 1, 1, 3], dtype=torch.int32), 8)
    assert rows.tokens[2, :8].tolist() == pytest.approx([expected(0.2)[2], *[expected(0.6)[2]] * 7])


def test_rows_in_other_seats(rows: LambdaRows) -> None:
    """vLLM's V2 runner keeps a request's row and says for each step which rows its batch has."""
    for row in range(6):
        rows.put(row, row / 10)
    rows.fill(torch.tensor([0, 1, 3], dtype=torch.int32), 3, torch.tensor([4, 1], dtype=torch.int32))
    assert rows.tokens[1, :3].tolist() == pytest.approx([expected(0.4)[1], *[expected(0.1)[1]] * 2])


def test_the_tensor_of_the_tokens_stays_in_its_place(rows: LambdaRows) -> None:
    """A captured graph reads the same memory at every step."""
    before = rows.tokens.data_ptr()
    for lambda_ in (0.1, 0.9):
        rows.put(0, lambda_)
        rows.fill(torch.tensor([0, 4], dtype=torch.int32), 4)
        assert rows.tokens[0, 0].item() == pytest.approx(expected(lambda_)[0])
    assert rows.tokens.data_ptr() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lambda_travels_with_the_hidden_state_bit_by_bit(rows: LambdaRows, dtype: torch.dtype) -> None:
    """Whatever rows are picked, in whatever order, they come with their own λ in full fp32."""
    rows.tokens[rows.head, :32] = torch.rand(32)
    hidden = torch.randn(32, 16).to(dtype)
    picked = torch.randperm(32)[:20]
    found, lambdas = rows.detach(rows.attach(hidden)[picked])
    assert torch.equal(found, hidden[picked])
    assert torch.equal(lambdas[:, 0], rows.tokens[rows.head, picked])


def test_one_engine_has_one_object() -> None:
    """Model, processor and runner meet by the engine's configuration; another engine has rows of its own."""

    class Config:
        def __init__(self) -> None:
            self.compilation_config = object()

    one, other = Config(), Config()
    found: Any = LambdaRows.of(one)
    assert LambdaRows.of(one) is found
    assert LambdaRows.of(other) is not found
