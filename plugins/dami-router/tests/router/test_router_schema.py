"""The models of router.yml: what they write they read, what they refuse has a line, and editors agree with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dami_router.commands.check import kind_of
from dami_router.config.router_schema import RouterFile, router_json_schema
from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError
from dami_router.shared.strict_model import Wrong, reading
from dami_router.shared.strict_yaml import parse

DOCS = Path(__file__).parents[4] / "docs"
KEYS = {"KEY": "a", "OTHER_KEY": "b"}
YAML_BLOCK = r"^```yaml\n(.*?)^```"
URL = "backends:\n- {variant: a, protocol: tgi, url: URL}"
EDITOR = Draft202012Validator(router_json_schema())
"""What an editor with the published schema checks."""

LAMBDAS = st.floats(0, 1) | st.integers(0, 1)
SECONDS = st.floats(0.001, 1e6) | st.integers(1, 100)
COUNTS = st.integers(1, 10**9) | st.integers(1, 99).map(float)
EFFORTS = st.sampled_from(["none", "minimal", "low", "medium", "high"])
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda name: name != "live")


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


CONFIDENCE = some(
    form=st.sampled_from(["auto", "instruct", "discrepancy", "entropy"]),
    tokens=st.none() | st.integers(1, 1024), map=st.none(), timeout=SECONDS, cache=st.integers(0, 10),
)  # fmt: skip
LINKS = (
    st.sampled_from(["effort", "confidence"])
    | st.fixed_dictionaries({"effort": st.none() | st.dictionaries(EFFORTS, LAMBDAS)})
    | st.fixed_dictionaries({"confidence": st.none() | CONFIDENCE})
)
SETTINGS = some(
    estimator=some(chain=st.none() | st.lists(LINKS, max_size=3), fixed=LAMBDAS, timeout=SECONDS),
    effort_shift=st.none() | st.dictionaries(EFFORTS, st.floats(-1, 1)),
    timeouts=some(connect=SECONDS, first_byte=SECONDS, idle=SECONDS, total=SECONDS, keepalive=SECONDS),
    retries=some(attempts=COUNTS, backoff=st.floats(0, 9)),
    breaker=some(failures=COUNTS, open_s=SECONDS),
    limits=some(
        concurrency=COUNTS, queue=st.integers(0, 9), queue_wait=SECONDS, body_bytes=COUNTS, drain=st.floats(0, 9)
    ),
    probe=some(interval=SECONDS, timeout=SECONDS),
    api_keys_env=st.sampled_from([None, "KEY", ["KEY", "OTHER_KEY"], []]),
    thinking=st.sampled_from(["pass", "split"]),
)


@st.composite
def policies(draw: st.DrawFn, live: bool) -> dict[str, Any]:
    """A policy that holds for any variants."""
    found = draw(some(choose=st.sampled_from(["nearest", "at-least", "at-most", "dithered"]), sticky=st.booleans()))
    low, high = sorted((draw(LAMBDAS), draw(LAMBDAS)))
    budgets = [st.none(), st.fixed_dictionaries({"mean_lambda": st.just(1.0)}, optional={"window": COUNTS})]
    budgets += [] if live else [st.fixed_dictionaries({"mean_tokens": st.floats(1, 1e6)})]
    return {**found, "lambda_min": low, "lambda_max": high, "budget": draw(st.one_of(budgets))}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """A valid router.yml: variants on servers of their own, or live servers alone."""
    about = some(api_key_env=st.sampled_from([None, "KEY"]), identity=st.sampled_from(["check", "off"]))
    url = "http://h:{}/v1".format
    if live := draw(st.booleans()):
        pair = st.fixed_dictionaries({"instruct": NAMES, "thinking": NAMES}) | st.just({})
        served: dict[str, Any] = {
            "backends": [
                {"protocol": "live", "url": url(i + 1), **draw(about), **draw(pair)}
                for i in range(draw(st.integers(1, 2)))
            ]
        }
    else:
        ids = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
        served = {
            "variants": [{"id": id, "lambda": draw(LAMBDAS), **draw(some(opens_think=st.booleans()))} for id in ids],
            "backends": [
                {
                    "variant": id, "url": draw(st.sampled_from([url(i + 1), [url(i + 1), url(i + 11)]])),
                    "protocol": draw(st.sampled_from(["tgi", "openai"])),
                    **draw(about), **draw(some(model=st.none() | NAMES)),
                }
                for i, id in enumerate(ids)
            ],
        }  # fmt: skip
    return {**served, **draw(SETTINGS), **draw(some(policy=policies(live)))}


WORDS = st.sampled_from(
    [
        "backends", "variants", "url", "protocol", "live", "tgi", "estimator", "chain", "effort", "confidence",
        "trained", "form", "tokens", "policy", "choose", "budget", "mean_lambda", "mean_tokens", "window", "timeouts",
        "connect", "limits", "queue", "probe", "api_keys_env", "thinking", "off", "x", "<live>", "KEY",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every key and index of a document, with the container that holds it."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    """A valid file with one to three random changes: a value, a key's name, a key more, a key or an entry less."""
    data = deepcopy(draw(files()))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(data))
        if not found:
            break
        inside, key = found[draw(st.integers(0, len(found) - 1))]
        change = draw(st.sampled_from(["value", "rename", "more", "less"]))
        if change == "value" or isinstance(inside, list):
            inside[key] = draw(VALUES)
        elif change == "more":
            inside[draw(WORDS)] = draw(VALUES)
        else:
            value = inside.pop(key)
            if change == "rename":
                inside[draw(WORDS | st.just(key[:-1] + "x"))] = value
    return data


def written(data: Any) -> str:
    """Write YAML of one value a line."""
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False, default_flow_style=False)


@given(files())
def test_a_valid_file_is_read_the_same_when_written_again(data: dict[str, Any]) -> None:
    """What the models hold is the file: written as YAML and read again, it is equal, before and after resolving."""
    file = RouterFile.model_validate(parse(written(data)).data)
    again = file.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert RouterFile.model_validate(again) == file
    assert parse_config(written(again), KEYS) == parse_config(written(data), KEYS)


@given(files())
def test_an_editor_accepts_a_valid_file(data: dict[str, Any]) -> None:
    """A file that the router reads has no red underline in an editor that knows the schema."""
    EDITOR.validate(data)


@given(mutants())
def test_a_changed_file_is_read_or_refused_with_its_line(data: dict[str, Any]) -> None:
    """Whatever is changed in a valid file, it is read, or one RecipeError names a line of it."""
    text = written(data)
    try:
        parse_config(text, KEYS)
    except RecipeError as error:
        line = re.match(r"router\.yml:(\d+): ", error.message)
        assert line, error.message
        assert 1 <= int(line[1]) <= len(text.splitlines())
        return
    # YAML 1.1 reads a bare `off` as false, which we take as the word; YAML 1.2, which editors read, does not.
    if not any(isinstance(inside[key], bool) and key in ("identity", "thinking") for inside, key in places(data)):
        EDITOR.validate(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retrys: {attempts: 2}", "1: retrys: unknown key\n  hint: did you mean `retries`?"),
        ("timeouts:\n  total: 5m", "2: timeouts.total: expected a number of seconds, at least 0.001, found '5m'"),
        ("thinking: true", "1: thinking: expected pass or split, found 'on'"),
        ("variants:\n- {id: 5, lambda: 0}", "2: variants[0].id: expected text, found 5"),
        ("limits: {queue: true}", "1: limits.queue: expected a whole number, at least 0, found true"),
        ("limits: 5", "1: limits: expected a mapping, found 5"),
        ("variants: {a: 1}", "1: variants: expected a list, found a mapping"),
        ("variants: []", "1: variants: expected at least one, found an empty list"),
        (
            f"estimator: {{fixed: 0x{16**9000:x}}}",
            "1: estimator.fixed: expected a number in [0, 1], found a huge number",
        ),
        ("backends:\n- url: http://h\n  protocol: opnai", "2: backends[0].variant: is missing"),
        (URL.replace("URL", "[x]"), "2: backends[0].url[0]: expected http://HOST[:PORT][/PATH], found x"),
        (URL.replace("URL", "x"), "2: backends[0].url: expected http://HOST[:PORT][/PATH], found x"),
        ("probe: {interval: none}\nbreaker: {failures: 0}", "1: probe.interval: expected a number of seconds"),
        ("breaker: {failures: 0}\nprobe: {interval: none}", "1: breaker.failures: expected a whole number, at least 1"),
    ],
)
def test_a_mistake_says_where_what_was_expected_and_what_was_found(text: str, message: str) -> None:
    """File, line, key, expected, found, hint; of several mistakes the first in the file."""
    with pytest.raises(RecipeError) as caught:
        parse_config(text, {})
    assert str(caught.value).startswith(f"router.yml:{message}")


def test_a_bare_off_is_the_word() -> None:
    """YAML 1.1 reads `off` as false; `identity: off` still means off."""
    text = 'backends:\n- {url: "http://h:1", protocol: live, identity: off}'
    assert parse_config(text, {}).backends[0].identity is False


def test_a_mistake_found_while_resolving_has_its_line_too() -> None:
    """Checks that need more than the file raise the same error with a place."""
    document = parse("policy:\n  budget: {mean_lambda: 0.1}", "router.yml")
    with pytest.raises(RecipeError, match=r"^router\.yml:2: policy\.budget: too low\n  hint: more$"), reading(document):
        raise Wrong(("policy", "budget"), "too low", "more")


def test_every_key_is_described() -> None:
    """Whatever an editor completes, it can explain: each key has a description, its own or its section's."""
    schema = router_json_schema()
    sections = {f"#/$defs/{name}": section for name, section in schema["$defs"].items()}
    for name, section in [("", schema), *sections.items()]:
        for key, said in section["properties"].items():
            described = {**sections.get(said.get("$ref"), {}), **said}
            assert described.get("description") or "const" in said, f"{name}: {key}"


def test_the_published_schema_accepts_the_documentation_s_examples() -> None:
    """docs/router.schema.json, as published, takes every router.yml in the documentation, and is a valid schema."""
    published = json.loads((DOCS / "router.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(published)
    texts = {page.name: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
    found = [(name, block) for name, text in texts.items() for block in re.findall(YAML_BLOCK, text, re.M | re.S)]
    routers = [(name, data) for name, block in found if kind_of(data := parse(block).data) == "router"]
    assert {"router.md", "estimators.md", "tutorial.md"} <= {name for name, _ in routers}
    for _, data in routers:
        Draft202012Validator(published).validate(data)


def test_an_editor_refuses_what_the_router_refuses() -> None:
    """Misspelt keys, wrong types and values out of range are underlined."""
    good = {
        "variants": [{"id": "a", "lambda": 0}],
        "backends": [{"variant": "a", "url": "http://h", "protocol": "tgi"}],
    }
    assert EDITOR.is_valid(good)
    for bad in (
        {"retrys": {}}, {"timeouts": {"total": "5m"}}, {"limits": {"queue": 1.5}}, {"thinking": "splt"},
        {"variants": []}, {"variants": [{"id": "a", "lambda": 2}]}, {"estimator": {"chain": [{"effort": {"hihg": 1}}]}},
        {"backends": [{"url": "http://h", "protocol": "live", "variant": "a"}]},
    ):  # fmt: skip
        assert not EDITOR.is_valid({**good, **bad}), bad
