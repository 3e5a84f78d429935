"""The settings of a server, as they stand in --additional-config."""

from __future__ import annotations

from typing import Any

import pytest

from dami_merge.interpolation.depth import Anatomy
from dami_router.errors import MisuseError
from vllm_dami.pair_settings import DEFAULT_LAMBDA, PairSettings

ANATOMY = Anatomy({"model.layers": 3})


def settings(**fields: Any) -> PairSettings:
    return PairSettings.of({"dami": {"thinking": "T", **fields}})


def test_the_defaults() -> None:
    """Only Thinking must be given: λ is 0.5 everywhere, and the template Instruct's."""
    found = settings()
    assert found.thinking.path == "T"
    assert found.default == DEFAULT_LAMBDA
    assert found.default_text == "λ = 0.5"
    assert not found.chooses_template
    assert not found.thinks_at(1.0)


def test_a_recipes_own_settings() -> None:
    """Path, λ and template may be anything that a recipe has: a schedule, filters, from(λ)."""
    path = [{"filter": "mlp", "value": "late(0.5)"}, {"value": "uniform"}]
    found = settings(path=path, **{"lambda": "ramp(0, 1)", "chat_template": "from(0.6)"})
    assert [found.recipe.lambda_for(f"model.layers.{i}.mlp.up_proj.weight", ANATOMY) for i in range(3)] == [0, 0.5, 1]
    assert (found.default, found.default_text) == (None, "the recipe's λ")
    assert found.chooses_template
    assert [found.thinks_at(x) for x in (0.0, 0.59, 0.6, 1.0, None)] == [False, False, True, True, False]


@pytest.mark.parametrize(
    "config",
    [
        None, {}, {"dami": None}, {"dami": {}}, {"dami": {"thinking": 3}}, {"dami": {"thinking": ""}},
        {"dami": {"thinking": "T", "lamda": 0.5}}, {"dami": {"thinking": "T", "path": "lately(1)"}},
        {"dami": {"thinking": "T", "lambda": "x"}}, {"dami": {"thinking": "T", "chat_template": "none"}},
        {"dami": {"thinking": "T", "max_body": 0}}, {"dami": {"thinking": "T", "max_body": True}},
        {"dami": {"thinking": "T", "name": 3}}, {"dami": {"thinking": "T", "thinking_revision": 3}},
    ],
)  # fmt: skip
def test_anything_else_is_refused(config: object) -> None:
    """The message says which option it is about."""
    with pytest.raises(MisuseError, match="--additional-config"):
        PairSettings.of(config)
