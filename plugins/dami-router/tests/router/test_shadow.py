"""`shadow`: a second decision is counted, and changes and sends nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.waiting import until
from fakes.world import World, patient, router_yml

from dami_router.choosing.policy import Figures
from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError
from dami_router.proxy import Proxy


def test_what_a_shadow_would_change_is_counted(world: World) -> None:
    """λ, variants and expected tokens; every answer is that of the real decision, and each query is sent once."""
    low, high = world.pair()
    extra = "estimator: {chain: [], fixed: 0}\nshadow: {estimator: effort, fixed: 0.0, share: 1}"
    config = parse_config(patient(router_yml(("v-l000", low), ("v-l100", high), extra=extra)), {})
    figures = {"v-l000": Figures(0.5, 100), "v-l100": Figures(0.9, 900)}
    measured = tuple(replace(v, figures={"b": figures[v.id]}) for v in config.variants)
    client = world.serve(Proxy(replace(config, variants=measured)))
    for fields in ({"reasoning_effort": "high"}, {"reasoning_effort": "none"}, {"model": "dami:1"}):
        client.chat(**fields)
    until(lambda: client.metric('dami_shadow_total{chosen="v-l000",shadow="v-l100"}') == 1)
    until(lambda: client.metric('dami_shadow_total{chosen="v-l000",shadow="v-l000"}') == 1)
    assert client.metric('dami_shadow_lambda_total{decision="chosen"}') == 0
    assert client.metric('dami_shadow_lambda_total{decision="shadow"}') == 1
    assert client.metric('dami_shadow_tokens_total{decision="chosen"}') == 200
    assert client.metric('dami_shadow_tokens_total{decision="shadow"}') == 1000
    assert (len(low.calls), len(high.calls)) == (2, 1)


def test_a_share_of_the_requests_is_decided_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a draw for each request; the budget does not notice."""
    extra = "shadow: {estimator: [effort], share: 0.25}\npolicy: {budget: {mean_lambda: 1}}"
    client = world.router(("v-l000", world.upstream("v-l000")), extra=extra)
    draws = iter((0.2, 0.3, 0.9, 0.1))
    monkeypatch.setattr("dami_router.proxy.shadow.random.random", lambda: next(draws))
    for _ in range(4):
        client.chat()
    until(lambda: client.metric('dami_shadow_total{chosen="v-l000",shadow="v-l000"}') == 2)
    budget: Any = client.app.router.ordering.budget
    assert len(budget._entries) == 4


@pytest.mark.parametrize(
    ("section", "said"),
    [("{estimator: nothing}", "shadow.estimator[0].nothing"), ("{estimator: effort, share: 0}", "shadow.share"),
     ("{share: 0.1}", "shadow.estimator"), ("{estimator: {trained: none}}", "shadow.estimator[0].trained")],
)  # fmt: skip
def test_a_mistake_in_the_section_is_named_by_its_place(section: str, said: str) -> None:
    """As in `estimator`."""
    text = "variants: [{id: a, lambda: 0}]\nbackends: [{variant: a, url: 'http://h', protocol: openai}]\n"
    with pytest.raises(RecipeError) as caught:
        parse_config(f"{text}shadow: {section}")
    assert said in caught.value.message
