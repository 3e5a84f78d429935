"""`router.yml`: what it takes, and what it says to mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.world import World
from hypothesis import given
from hypothesis import strategies as st

from dami_router.config.router_yml import parse_config
from dami_router.errors import DamiError, RecipeError
from dami_router.estimators.effort import EFFORTS, Effort

ROOT = Path(__file__).parents[4]
KEYS = {"TGI_KEY": "a", "DAMI_KEY": "b"}
GOOD = """\
variants:
  - {id: a, lambda: 0}
  - {id: b, lambda: 1}
backends:
  - {variant: a, url: "http://h:1/v1", protocol: openai}
  - {variant: b, url: ["http://h:2", "http://h:3/"], protocol: tgi}
"""


def test_the_examples_of_the_documentation_are_valid() -> None:
    """Every YAML block of docs/router.md is taken, and the long one states the defaults that it says it states."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "router.md").read_text(encoding="utf-8"), re.M | re.S)
    # The one with a family needs its manifest: tests/test_router_configs.py.
    plain, live, whole = (parse_config(block, KEYS) for block in blocks if not block.startswith("family:"))
    assert live.backends[0].pair is not None
    for field in ("timeouts", "retries", "breaker", "limits", "probe", "thinking"):
        assert getattr(plain, field) == getattr(whole, field)


def test_urls_are_taken_with_or_without_v1() -> None:
    """A base URL may end in /v1 or a slash; replicas are a list."""
    config = parse_config(GOOD, {})
    assert [b.url for b in config.backends] == ["http://h:1", "http://h:2", "http://h:3"]


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("backends:", "backend:"), 4, "did you mean `backends`"),
        (("protocol: tgi", "protocol: tig"), 6, "did you mean `tgi`"),
        (("{variant: b", "{variant: c"), 6, "expected a or b"),
        (("lambda: 1", "lambda: 1.5"), 3, "in [0, 1]"),
        (("lambda: 1", "lamda: 1"), 3, "did you mean `lambda`"),
        (("{id: b", "{id: a"), 3, "two variants are called a"),
        (("http://h:1/v1", "h:1"), 5, "expected http://"),
        (("http://h:1/v1", "http://u:p@h:1"), 5, "expected http://"),
        (('"http://h:3/"', '"http://h:2"'), 6, "given twice"),
        (('"http://h:3/"', '"HTTP://H:2/v1/"'), 6, "http://h:2 is given twice for b"),
        (("openai}", "openai, api_key_env: NOPE}"), 5, "NOPE is not set"),
    ],
)
def test_mistakes_name_their_line_and_the_way_out(change: tuple[str, str], line: int, says: str) -> None:
    """Each mistake is one RecipeError with the line where it stands."""
    text = GOOD.replace(*change)
    with pytest.raises(RecipeError) as caught:
        parse_config(text, {})
    assert f"router.yml:{line}:" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("policy: {choose: neerest}", "did you mean `nearest`"),
        ("policy: {lambda_min: 0.9, lambda_max: 0.1}", "above lambda_max"),
        ("policy: {budget: {mean_lambda: 0.5, mean_tokens: 9}}", "either mean_lambda or mean_tokens"),
        ("policy: {sticky: 1}", "expected true or false"),
        ("affinity: off", "expected a mapping, found false\n  hint: write `{enabled: false}`"),
        ("timeouts: {conect: 1}", "did you mean `connect`"),
        ("timeouts: {connect: 0}", "at least 0.001"),
        ("limits: {queue: 1.5}", "whole number"),
        ("estimator: {chain: [efort]}", "did you mean `effort`"),
        ("estimator: {chain: [effort: {hihg: 1}]}", "did you mean `high`"),
        ("estimator: {chain: [mine]}", "no estimator of this name is installed"),
        ("estimator: {chain: effort}", "expected a list of estimators"),
        ("estimator: {fixed: 2}", "in [0, 1]"),
        ("api_keys_env: KEY", "KEY is not set"),
        ("family: ./x", "either `family` or a list of `variants`"),
        ("thinking: [x]", "expected pass or split"),
    ],
)
def test_mistakes_in_settings_are_explained(extra: str, says: str) -> None:
    """Ranges, types, spelling and contradictions are found before anything is served."""
    with pytest.raises(RecipeError) as caught:
        parse_config(GOOD + extra, {})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('url: "http://h", model: m', 'url: "http://h", model: m'),
        ('url: "http://h:80/v1", model: m', 'url: "HTTP://H/", model: m'),
        ('url: "https://h:443//v1/", model: m', 'url: "https://h", model: m'),
        ('url: "http://[::1]:8000", model: m', 'url: ["http://h", "http://[::1]:8000/"], model: m'),
        ('url: "http://h", model: b', 'url: "http://h"'),
        ('url: "http://h"', 'url: "http://h", model: a'),
    ],
)
def test_one_model_at_one_url_is_one_variant(first: str, second: str) -> None:
    """Two variants at the same URL, however it is written, need two models: otherwise one answers as the other."""
    text = GOOD.split("backends:")[0] + "backends:\n"
    text += f"  - {{variant: a, protocol: openai, {first}}}\n  - {{variant: b, protocol: openai, {second}}}\n"
    with pytest.raises(RecipeError, match=r"router.yml:6: .*one model `[mab]` for two variants, a and b"):
        parse_config(text, {})


def test_two_models_at_one_url_are_two_variants() -> None:
    """A gateway's URL serves several variants where their models differ, by the variants' ids or by `model`."""
    for first, second in (("", ""), (", model: x", ""), (", model: x", ", model: y")):
        text = GOOD.split("backends:")[0] + "backends:\n"
        text += f"  - {{variant: a, protocol: openai, url: 'http://h'{first}}}\n"
        text += f"  - {{variant: b, protocol: openai, url: 'http://h:80/v1'{second}}}\n"
        assert [(b.url, b.shared) for b in parse_config(text, {}).backends] == [("http://h", True)] * 2


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("aliases: {fast: dami:low}\nestimator: {chain: [confidence]}", "add `effort` to estimator.chain"),
        ("aliases: {fast: dami:lo}", "did you mean `dami:low`"),
        ("aliases: {fast: gpt-4}", "`dami:` with an effort, or a variant's id, found gpt-4"),
        ("aliases: {dami:low: dami}", "is a name already"),
    ],
)
def test_an_alias_stands_for_a_name_that_answers(extra: str, says: str) -> None:
    """An alias of nothing is refused, as is one of an effort where no effort counts; with `effort` it is taken."""
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse_config(GOOD + extra, {})
    taken = [
        "aliases: {fast: dami:low}",
        "aliases: {fast: dami:max}\nestimator: {chain: []}\neffort_shift: {low: -0.3}",
    ]
    assert [parse_config(GOOD + one, {}).aliases["fast"] for one in taken] == ["dami:low", "dami:max"]


def test_no_secret_is_in_a_configuration_s_repr() -> None:
    """Keys are read from the environment, and do not show where a configuration is printed."""
    config = parse_config(GOOD.replace("openai}", "openai, api_key_env: K}") + "api_keys_env: K", {"K": "sk-secret"})
    assert config.backends[0].api_key == config.api_keys[0] == "sk-secret"
    assert "sk-secret" not in repr(config)


def test_efforts_may_be_given_other_lambdas() -> None:
    """A table in the chain replaces some of the defaults and keeps the others."""
    (effort,) = parse_config(GOOD + "estimator: {chain: [effort: {high: 0.8}]}", {}).estimator.estimators
    assert effort == Effort({**EFFORTS, "high": 0.8})


def test_a_trained_estimator_decides(tmp_path: Path) -> None:
    """`trained` names a folder that `dami train` wrote, beside router.yml; a missing one is an error with its line."""
    import asyncio

    from dami_router.estimators.query import Query

    rollouts = tmp_path / "rollouts.jsonl"
    lines = [
        {
            "query_id": str(i),
            "query": text,
            "lambda": lambda_,
            "correct": lambda_ == best,
            "tokens": 5 + int(90 * lambda_),
        }
        for i in range(60)
        for text, best in [("prove " * 9 + str(i), 1.0) if i % 2 else (f"hi {i}", 0.0)]
        for lambda_ in (0.0, 1.0)
    ]
    rollouts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-c", "from dami_router.cli import main; main()", "train", str(rollouts), "--out"]
    subprocess.run([*command, str(tmp_path / "EST")], check=True, capture_output=True)
    config = parse_config(GOOD + "estimator: {chain: [trained: EST]}", {}, tmp_path)
    easy, hard = (asyncio.run(config.estimator.estimate(Query(text))) for text in ("hi 99", "prove " * 9 + "99"))
    assert easy.estimator == hard.estimator != "fixed"
    assert easy.lambda_ < hard.lambda_
    with pytest.raises(RecipeError, match=r"router.yml:7: .*no estimator"):
        parse_config(GOOD + "estimator: {chain: [trained: NOWHERE]}", {}, tmp_path)


def install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution with an estimator `mine` on the path, as an installer would."""
    info = place / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dami.estimators]\nmine = mine_estimator:Mine\n")
    (place / "mine_estimator.py").write_text(
        "from dami_router.estimators.estimator import Estimate, EstimationError\n"
        "class Mine:\n"
        "    name = 'mine'\n"
        "    def __init__(self, proof=1.0):\n"
        "        self.proof = proof\n"
        "    async def estimate(self, query):\n"
        "        if 'crash' in query.text:\n"
        "            raise ZeroDivisionError\n"
        "        if 'prove' not in query.text:\n"
        "            raise EstimationError('nothing to say')\n"
        "        return Estimate(self.proof, self.name, {'proof': 'yes'})\n"
    )
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "mine_estimator", raising=False)


def test_another_distribution_s_estimator_decides(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the entry-point group `dami.estimators`, with options, decides in a proxy; failing, it is skipped."""
    install(tmp_path, monkeypatch)
    servers = zip(
        ("v-l000", "v-l050", "v-l100"), (world.upstream(f"v-l{x}") for x in ("000", "050", "100")), strict=True
    )
    client = world.router(*servers, extra="estimator: {chain: [mine: {proof: 0.9}], fixed: 0}")
    found = [client.chat(text) for text in ("prove it", "say it", "crash")]
    decided = [(answer.headers["x-dami-estimator"], answer.variant) for answer in found]
    assert decided == [("mine", "v-l100"), ("fixed", "v-l000"), ("fixed", "v-l000")]
    with pytest.raises(RecipeError, match=r"router.yml:7: .*`mine` cannot be created: TypeError"):
        parse_config(GOOD + "estimator: {chain: [mine: {prof: 1}]}", {})


FIELDS = (
    "api_key_env backoff budget cache chain choose concurrency confidence connect cooldown drain drop_dominated effort "
    "failures first_byte fixed form high id identity idle interval lambda lambda_max lambda_min map mean_lambda "
    "mean_tokens memory model opens_think protocol queue queue_wait sticky timeout tokens total trained url variant x"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS.split(" ")), inner, max_size=4),
    max_leaves=6,
)
NAMES = "variants backends estimator effort_shift policy timeouts retries breaker limits probe api_keys_env thinking"
SECTIONS = st.sampled_from(NAMES.split(" "))


@given(st.dictionaries(SECTIONS, VALUES, max_size=3))
def test_no_configuration_causes_anything_but_a_clear_error(extra: dict[str, object]) -> None:
    """Whatever stands in a section, the file is taken or refused with a DamiError."""
    import yaml

    data = {**yaml.safe_load(GOOD), **extra}
    try:
        parse_config(yaml.safe_dump(data, allow_unicode=True), {})
    except DamiError as error:
        assert str(error)
