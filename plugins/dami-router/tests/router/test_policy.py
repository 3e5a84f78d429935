"""Choosing: rules, dominated variants, budgets and conversations, as mathematics and through the proxy."""

from __future__ import annotations

from dataclasses import replace

from fakes.world import World, router_yml
from hypothesis import given
from hypothesis import strategies as st

from dami_router.choosing.budget import Budget
from dami_router.choosing.conversations import Conversations
from dami_router.choosing.policy import Figures, choose, dominated, fallbacks
from dami_router.config.router_schema import PolicySpec
from dami_router.config.router_yml import parse_config
from dami_router.router import Router

UNIT = st.floats(0.0, 1.0)
LAMBDAS = st.lists(UNIT, min_size=1, max_size=6, unique=True)


@given(UNIT, LAMBDAS, st.floats(0.0, 1.0, exclude_max=True))
def test_each_rule_keeps_its_promise(lambda_: float, lambdas: list[float], draw: float) -> None:
    """`nearest` is nearest; `at-least` and `at-most` keep to their side where they can; `dithered` is a neighbour."""
    assert abs(choose(lambda_, lambdas) - lambda_) == min(abs(v - lambda_) for v in lambdas)
    above, below = choose(lambda_, lambdas, "at-least"), choose(lambda_, lambdas, "at-most")
    assert above >= lambda_ or above == max(lambdas)
    assert below <= lambda_ or below == min(lambdas)
    assert not any(lambda_ <= v < above for v in lambdas)
    assert not any(below < v <= lambda_ for v in lambdas)
    assert choose(lambda_, lambdas, "dithered", draw) in (above, below)


@given(UNIT, LAMBDAS)
def test_dithering_meets_the_mean(lambda_: float, lambdas: list[float]) -> None:
    """Over evenly spread draws the mean λ is λ(q), as far as the variants reach."""
    draws = 2000
    mean = sum(choose(lambda_, lambdas, "dithered", (i + 0.5) / draws) for i in range(draws)) / draws
    assert abs(mean - min(max(lambda_, min(lambdas)), max(lambdas))) <= 1 / draws


@given(UNIT, LAMBDAS)
def test_fallbacks_are_all_variants_the_nearest_first(first: float, lambdas: list[float]) -> None:
    """Nobody is left out, nobody is asked before a nearer one."""
    order = fallbacks(first, lambdas)
    assert sorted(order) == sorted(lambdas)
    assert [abs(v - first) for v in order] == sorted(abs(v - first) for v in lambdas)


def test_a_dominated_variant_is_known_by_its_figures() -> None:
    """arXiv 2510.10977, Qwen3-4B on AIME25: λ=0.2 costs more than 0.6 and answers worse; 1 is beaten by 0.8."""
    sweep = {
        "0": (46.7, 15_100),
        "0.2": (52.0, 15_500),
        "0.6": (73.4, 13_800),
        "0.8": (80.5, 17_600),
        "1": (80.4, 22_800),
    }
    measured = {name: {"aime25": Figures(a / 100, t)} for name, (a, t) in sweep.items()}
    assert dominated(measured) == {"0", "0.2", "1"}
    measured["1"]["gpqa"] = Figures(0.9, 1)
    assert dominated(measured) == {"0", "0.2"}
    assert dominated({"a": {}, "b": {"x": Figures(1, 1)}}) == set()


FIGURES = st.dictionaries(st.sampled_from("ab"), st.builds(Figures, UNIT, st.floats(0, 100)), max_size=2)


@given(st.dictionaries(st.sampled_from("pqrst"), FIGURES, min_size=1))
def test_somebody_is_never_dominated(measured: dict[str, dict[str, Figures]]) -> None:
    """However the figures lie, not all variants are left out."""
    assert dominated(measured) < set(measured)


COSTS = st.dictionaries(st.sampled_from("pqrst"), st.floats(0, 10), min_size=1)


@given(COSTS, st.floats(0, 10), st.integers(1, 8), st.lists(st.randoms(use_true_random=False), max_size=60))
def test_a_budget_is_kept_wherever_the_cheapest_variant_allows(
    costs: dict[str, float], mean: float, window: int, choices: list[object]
) -> None:
    """After every request the window's mean is within the budget, or the cheapest choice at hand was taken."""
    budget = Budget("lambda", mean, window, costs)
    for random in choices:
        order = random.sample(sorted(costs), len(costs))  # type: ignore[attr-defined]
        allowed = budget.allow(order)
        assert sorted(allowed) == sorted(order)
        assert costs[allowed[0]] <= costs[order[0]]
        budget.spend(allowed[0])
        assert budget.spent <= mean + 1e-6 or costs[allowed[0]] == min(costs.values())


def test_a_token_budget_learns_what_answers_cost() -> None:
    """The window holds true tokens once they are known, and expectations follow them."""
    budget = Budget("tokens", 100, 10, {"small": 10.0, "large": 90.0})
    entry = budget.spend("large")
    assert budget.spent == 90
    budget.settle(entry, "large", 190)
    assert (budget.spent, budget.expected["large"]) == (190, 95)
    assert budget.allow(["large", "small"])[0] == "small"
    unknown = budget.spend("small")
    budget.settle(unknown, "large", None)
    assert budget.spent == (190 + 95) / 2


def test_conversations_are_remembered_up_to_a_limit() -> None:
    """The longest unused one is forgotten; of an unknown one nothing is known."""
    known = Conversations(2)
    for key in (b"a", b"b"):
        known.answered(key, 0.5)
    known.answered(b"a", 0.7)
    known.answered(b"c", 1.0)
    known.answered(None, 1.0)
    assert [known.last(key) for key in (b"a", b"b", b"c", None)] == [0.7, None, 1.0, None]


def test_dithering_is_decided_by_the_request(world: World) -> None:
    """The same request goes the same way; different ones spread over both neighbours."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="policy: {choose: dithered}")
    first = [client.chat(str(i)).variant for i in range(40)]
    assert [client.chat(str(i)).variant for i in range(40)] == first
    assert 8 < first.count("v-l100") < 32


def test_limits_keep_lambda_inside(world: World) -> None:
    """What the estimators and pins say is cut to the operator's limits."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    client = world.router(*servers, extra="policy: {lambda_min: 0.4, lambda_max: 0.6}")
    assert {client.chat(reasoning_effort=e).variant for e in ("none", "high")} == {"v-l050"}
    assert client.chat(model="dami:1").headers["x-dami-lambda"] == "0.6"


def test_a_mean_lambda_budget_holds_over_the_proxy(world: World) -> None:
    """Everybody asks for high effort; the mean λ of what is answered stays at the budget, and pins are free."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    client = world.router(*servers, extra="policy: {budget: {mean_lambda: 0.4, window: 10}}")
    lambdas = [int(client.chat(reasoning_effort="high").variant[-3:]) / 100 for _ in range(40)]
    assert all(sum(lambdas[max(0, i - 9) : i + 1]) / min(i + 1, 10) <= 0.4 + 1e-9 for i in range(40))
    assert sum(lambdas) / 40 > 0.3
    assert client.chat(model="dami:1").variant == "v-l100"


def test_a_conversation_only_goes_up(world: World) -> None:
    """A follow-up is never answered below its conversation's last λ; another conversation is free."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    client = world.router(*servers, extra="policy: {sticky: true}")

    def turn(effort: str, *texts: str) -> str:
        roles = ("user", "assistant") * 3
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return client.post("/v1/chat/completions", {"messages": messages, "reasoning_effort": effort}).variant

    assert turn("medium", "hi") == "v-l050"
    assert turn("none", "hi", "hello", "and?") == "v-l050"
    assert turn("high", "hi", "hello", "and?", "so", "prove it") == "v-l100"
    assert turn("none", "hi", "hello", "and?", "so", "thanks") == "v-l100"
    assert turn("none", "other", "hello", "and?") == "v-l000"
    assert turn("none", "hi") == "v-l000"


def test_a_dominated_variant_is_asked_only_where_no_other_is_left(world: World) -> None:
    """By the figures of its manifest λ=0.5 is dearer and worse than λ=0: it is passed over, and still a last resort."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    config = parse_config(router_yml(*servers), {})
    figures = {"v-l000": Figures(0.5, 10), "v-l050": Figures(0.4, 20), "v-l100": Figures(0.9, 30)}
    measured = tuple(replace(v, figures={"b": figures[v.id]}) for v in config.variants)

    async def route(spec: PolicySpec) -> tuple[str, ...]:
        async with Router(replace(config, variants=measured, policy=spec)) as router:
            return (await router.route("hi", model="dami:0.5")).order

    assert world.loop.run(route(PolicySpec())) == ("v-l000", "v-l100", "v-l050")
    assert world.loop.run(route(PolicySpec(drop_dominated=False)))[0] == "v-l050"
    for name, server in servers:
        if name != "v-l050":
            world.loop.run(server.stop())
    assert world.loop.run(route(PolicySpec()))[0] == "v-l050"
