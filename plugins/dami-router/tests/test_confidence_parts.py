"""The parts of `confidence`: what is computed, what is kept, how it is configured."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.backends.logprobs import made_probe, number
from dami_router.config.router_yml import parse_config
from dami_router.errors import DamiError, FailureError, MisuseError, RecipeError
from dami_router.estimators.calibrated import MOST_SCORES, CalibratedMap
from dami_router.estimators.chain import Chain
from dami_router.estimators.confidence import Confidence, digest
from dami_router.estimators.fixed import Fixed
from dami_router.estimators.log_probs import EstimationError, Probe, Servers, Token, UnableError
from dami_router.estimators.measures import confidence, discrepancy, entropy, entropy_ratio
from dami_router.estimators.quantile import QuantileMap
from dami_router.estimators.query import Estimate, Query
from dami_router.shared.memo import Memo

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=20)


def probe(logprobs: list[float], spoken: int | None = None, top: tuple[float, ...] = ()) -> Probe:
    """Return a probe with these log-probabilities."""
    tokens = tuple(Token("a", p, top) for p in logprobs)
    return Probe("a" * len(tokens), tokens, len(tokens) if spoken is None else spoken)


@given(LOGPROBS)
def test_confidence_is_the_geometric_mean(logprobs: list[float]) -> None:
    """c = (Π p)^{1/n}, in [0, 1], between the least and the most likely token."""
    c = confidence(probe(logprobs))
    assert math.exp(min(logprobs)) * (1 - 1e-9) <= c <= math.exp(max(logprobs)) * (1 + 1e-9)


@given(LOGPROBS, st.floats(-5, 0))
def test_discrepancy_is_the_mean_difference(logprobs: list[float], shift: float) -> None:
    """D is 0 for equal models, the shift for shifted ones, and looks only at the answer's own tokens."""
    assert discrepancy(probe(logprobs), logprobs) == pytest.approx(0, abs=1e-9)
    assert discrepancy(probe(logprobs), [p + shift for p in logprobs]) == pytest.approx(-shift, abs=1e-9)
    assert discrepancy(probe([*logprobs, -9.0], spoken=len(logprobs)), logprobs) == pytest.approx(0, abs=1e-9)


def test_discrepancy_needs_something_scored() -> None:
    """No scored token is no evidence."""
    with pytest.raises(EstimationError):
        discrepancy(probe([-1.0]), [])


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_entropy_is_a_lower_bound_with_the_rest_as_one_outcome(weights: list[float]) -> None:
    """Known probabilities and one rest: exact where nothing is left, never negative, at most log of the outcomes."""
    p = [w / (math.fsum(weights) * 1.25) for w in weights]
    found = entropy(probe([-1.0], top=tuple(map(math.log, p))))
    assert found == pytest.approx(math.fsum(-q * math.log(q) for q in (*p, 0.2)), abs=1e-6)
    assert 0 <= found <= math.log(len(p) + 1) + 1e-9


def test_entropy_without_likeliest_tokens_names_what_is_lacking() -> None:
    """A server that gives none cannot be asked for entropies."""
    with pytest.raises(UnableError) as caught:
        entropy(probe([-1.0]))
    assert caught.value.lacks == "top_n"


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_entropy_ratio_is_a_share(instruct: float, thinking: float) -> None:
    """r and its mirror add up to 1, the surer model has the larger share, and nothing overflows."""
    ratio = entropy_ratio(instruct, thinking)
    assert 0 <= ratio <= 1
    assert ratio + entropy_ratio(thinking, instruct) == pytest.approx(1)
    assert ratio >= 0.5 if thinking <= instruct else ratio <= 0.5


@pytest.mark.parametrize("value", [None, "x", True, 1.0, math.nan, math.inf, -math.inf, [], {}])
def test_what_is_no_log_probability_is_refused(value: Any) -> None:
    """Only finite numbers of at most 0 are believed."""
    with pytest.raises(UnableError):
        number(value, "log_probs")


@pytest.mark.parametrize(
    ("text", "tokens", "ended", "spoken"),
    [
        ("4", ["4", "<eos>"], True, 1),
        ("4", ["4"], False, 1),
        ("4", ["4"], True, 1),
        ("4", ["4", ""], True, 1),
        ("ab", ["a", "b"], False, 2),
    ],
)
def test_the_end_of_text_is_no_part_of_the_answer(text: str, tokens: list[str], ended: bool, spoken: int) -> None:
    """The last token of an ended answer counts only where it is part of the text."""
    assert made_probe(text, [Token(t, -1.0) for t in tokens], ended=ended).spoken == spoken


@pytest.mark.parametrize(("text", "tokens"), [("", ["<eos>"]), ("  ", [" ", " ", "<eos>"]), ("", [])])
def test_an_empty_answer_says_nothing(text: str, tokens: list[str]) -> None:
    """An answer without any text is refused, whatever its probability."""
    with pytest.raises(EstimationError, match="empty"):
        made_probe(text, [Token(t, -0.1) for t in tokens], ended=True)


def test_thoughts_are_recognised_in_the_text_and_beside_it() -> None:
    """A leading <think>, or thoughts that the server parted from the answer, are thinking; the word alone is not."""
    tokens = [Token("x", -0.1)]
    assert made_probe(" <think>7+5", tokens, ended=False).thinks
    assert made_probe("", tokens, ended=False, thinks=True).thinks
    assert not made_probe("the tag <think> opens", tokens, ended=False).thinks


def test_a_digest_tells_queries_apart_and_hides_them() -> None:
    """Equal messages have equal digests; form, length, kind and content change them; no text is inside."""
    chat = Query("4+4", messages=[{"role": "user", "content": "4+4"}])
    same = Query("4+4", messages=[{"content": "4+4", "role": "user"}])
    assert digest(chat, "instruct", 16) == digest(same, "instruct", 16) == digest(Query("4+4"), "instruct", 16)
    others = [
        digest(chat, "entropy", 16), digest(chat, "instruct", 8), digest(Query("4+4", prompt="4+4"), "instruct", 16),
        digest(Query("4+5"), "instruct", 16), digest(Query("\ud800"), "instruct", 16),
    ]  # fmt: skip
    assert len({digest(chat, "instruct", 16), *others}) == 6
    assert all(len(d) == 16 for d in others)


def test_a_query_never_shows_its_text_in_logs() -> None:
    """Messages and raw prompts are left out of a query's repr."""
    shown = repr(Query("hint", messages=[{"role": "user", "content": "secret"}], prompt="secret"))
    assert "secret" not in shown


class Counting:
    """Makes results, counts how often, and can be held up."""

    def __init__(self) -> None:
        self.made = self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.made += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.made


def test_one_computation_serves_all_who_ask_meanwhile() -> None:
    """Many callers, one computation; who leaves does not take it from the others; the last to leave ends it."""

    async def run() -> None:
        memo, make = Memo[int](2), Counting()
        waiting = [asyncio.create_task(memo.get(b"k", make)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        make.go.set()
        assert await asyncio.gather(*waiting[1:]) == [1] * 4
        assert await memo.get(b"k", make) == 1
        make.go.clear()
        lonely = asyncio.create_task(memo.get(b"other", make))
        await asyncio.sleep(0)
        lonely.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lonely
        await asyncio.sleep(0)
        assert (make.made, make.cancelled) == (2, 1)
        make.go.set()
        assert await memo.get(b"other", make) == 3

    asyncio.run(run())


def test_failures_and_makeshifts_are_not_kept() -> None:
    """An exception reaches everyone who waits and is tried again; so is a result that is not to be kept."""

    async def run() -> None:
        memo, calls = Memo[int](2), 0

        async def fail() -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            raise EstimationError("no")

        found = await asyncio.gather(memo.get(b"k", fail), memo.get(b"k", fail), return_exceptions=True)
        assert [type(f) for f in found] == [EstimationError] * 2
        with pytest.raises(EstimationError):
            await memo.get(b"k", fail)
        assert (calls, len(memo)) == (2, 0)
        make = Counting()
        make.go.set()
        assert [await memo.get(b"k", make, lambda _: False) for _ in range(2)] == [1, 2]

    asyncio.run(run())


@given(st.integers(0, 5), st.lists(st.integers(0, 9), max_size=60))
def test_a_memo_keeps_the_most_recently_used(size: int, keys: list[int]) -> None:
    """It never holds more than its size, and what it holds are the last used ones."""

    async def run() -> None:
        memo = Memo[int](size)
        for key in keys:

            async def make(value: int = key) -> int:
                return value

            assert await memo.get(bytes([key]), make) == key
            assert len(memo) <= size
        recent = list(dict.fromkeys(reversed(keys)))[:size]
        assert set(memo._kept) == {bytes([key]) for key in recent}

    asyncio.run(run())


def test_a_map_comes_back_from_its_file(tmp_path: Path) -> None:
    """Saved and read again it gives the same λ for every score; many scores are thinned to their quantiles."""
    scores = [((i * 7919) % 10007) / 10007 for i in range(10007)]
    made = CalibratedMap(16, {"instruct": QuantileMap.fit(scores, 0.3, 0.7)}, {"queries": 3})
    made.save(tmp_path / "map.json")
    read = CalibratedMap.load(tmp_path / "map.json")
    assert (read.tokens, dict(read.about), len(read.scores["instruct"].scores)) == (16, {"queries": 3}, MOST_SCORES)
    for i in range(101):
        assert read("instruct", i / 100) == pytest.approx(made("instruct", i / 100), abs=0.01)
    with pytest.raises(MisuseError, match="already exists"):
        made.save(tmp_path / "map.json")


GOOD_MAP: dict[str, Any] = {
    "schema_version": 1, "kind": "confidence-map", "tokens": 16, "about": {},
    "forms": {"instruct": {"mean_lambda": 0.3, "max_lambda": 0.6, "scores": [0.1, 0.5]}},
}  # fmt: skip


def changed(**fields: Any) -> str:
    """Return a map's file with other fields in its form."""
    return json.dumps(GOOD_MAP | {"forms": {"instruct": GOOD_MAP["forms"]["instruct"] | fields}})


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "null", json.dumps(GOOD_MAP | {"kind": "x"}), json.dumps(GOOD_MAP | {"extra": 1}),
        json.dumps(GOOD_MAP | {"tokens": 0}), json.dumps(GOOD_MAP | {"forms": {}}), changed(mean_lambda=0.9),
        changed(scores=[]), changed(scores=[-1.0]), changed(scores=["x"]), changed(scores=[float("nan")]),
        changed(scores=[0.5] * (MOST_SCORES + 1)), changed(max_lambda=1.5), '{"schema_version": 1' + "[" * 50_000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_map_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    """Damaged, foreign or out of range: a FailureError that names the file."""
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(FailureError, match=r"map\.json"):
        CalibratedMap.load(tmp_path / "map.json")


def configured(link: str, folder: Path = Path()) -> Chain:
    """Return the chain of a configuration with one link."""
    return parse_config(
        "variants: [{id: a, lambda: 0}]\n"
        'backends: [{variant: a, url: "http://h:1", protocol: openai}]\n'
        f"estimator: {{chain: [{link}]}}\n",
        {},
        folder,
    ).estimator


def test_settings_and_their_defaults(tmp_path: Path) -> None:
    """By its name alone it has the documented defaults; a map brings its own number of tokens."""
    assert configured("confidence").estimators[0] == Confidence()
    (tmp_path / "map.json").write_text(json.dumps(GOOD_MAP | {"tokens": 9}))
    found = configured("confidence: {form: auto, map: map.json, timeout: 3, cache: 5}", tmp_path).estimators[0]
    assert isinstance(found, Confidence)
    assert (found.form, found.tokens, found.timeout, found.cache) == ("auto", 9, 3.0, 5)


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("confidence: {from: auto}", "did you mean `form`"),
        ("confidence: {form: instrukt}", "did you mean `instruct`"),
        ("confidense", "did you mean `confidence`"),
        ("confidence: {tokens: 0}", "at least 1"),
        ("confidence: {tokens: 5000}", "at most 1024"),
        ("confidence: {tokens: 1.5}", "whole number"),
        ("confidence: {timeout: 0}", "at least 0.001"),
        ("confidence: [1]", "expected a mapping"),
        ("confidence: {map: none.json}", "dami calibrate"),
        ("confidence: {map: map.json, tokens: 8}", "probes of 16 tokens"),
        ("confidence: {map: map.json, form: entropy}", "no scores of entropy"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, link: str, says: str) -> None:
    """Every mistake in the settings is one message with file, line and advice."""
    (tmp_path / "map.json").write_text(json.dumps(GOOD_MAP))
    with pytest.raises(DamiError) as caught:
        configured(link, tmp_path)
    assert isinstance(caught.value, RecipeError)
    assert says in str(caught.value)
    assert "router.yml:3" in str(caught.value)


class Asks:
    """A stranger's estimator that asks servers, and takes its time."""

    name = "asks"
    servers: Servers | None = None

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def bind(self, servers: Servers) -> Asks:
        made = Asks(self.timeout)
        made.servers = servers
        return made

    async def estimate(self, query: Query) -> Estimate:
        await asyncio.sleep(0.1 if query.text == "patience" else 3600)
        return Estimate(0.75, self.name, {"bound": str(self.servers)})


def test_estimators_of_others_may_ask_servers_too() -> None:
    """A chain hands servers to whoever has `bind`, and lets an estimator's own time limit stand for the chain's."""
    chains = [Chain((Asks(own),), Fixed(0.5), timeout=0.01).bind("servers") for own in (60.0, 0.2)]  # type: ignore[arg-type]
    found = asyncio.run(chains[0].estimate(Query("patience")))
    assert (found.lambda_, found.evidence) == (0.75, {"bound": "servers"})
    assert asyncio.run(chains[1].estimate(Query("no end"))).estimator == "fixed"


def test_without_servers_it_has_nothing_to_say() -> None:
    """An estimator that nobody has bound passes every query on."""
    with pytest.raises(EstimationError, match="servers"):
        asyncio.run(Confidence().estimate(Query("4+4")))
