"""`dami check` on a router.yml: read strictly, described, and its servers asked where that is wanted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import World, router_yml

from dami_router.cli import main
from dami_router.commands import check as checking
from dami_router.config.config_advice import advise
from dami_router.config.router_schema import RouterFile
from dami_router.config.router_yml import parse_config

GOOD = """\
variants: [{id: a, lambda: 0}, {id: b, lambda: 1, opens_think: true}]
backends:
  - {variant: a, url: "http://127.0.0.1:1/v1", protocol: openai}
  - {variant: b, url: "http://127.0.0.1:2", protocol: tgi}
"""


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Check a configuration given as text; returns exit code, stdout and stderr."""

    def check(text: str, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "router.yml"
        path.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["check", str(path), *options])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return check


def codes(run: Any, text: str) -> list[str]:
    code, out, err = run(text, "--json")
    assert (code, err) == (0, "")
    return [finding["code"] for finding in json.loads(out)["findings"]]


def test_a_router_yml_is_described(run: Any) -> None:
    """Variants with their servers, the chain of estimators, the policy; nothing is asked of any server."""
    code, out, err = run(GOOD)
    assert code == 0
    for text in ("http://127.0.0.1:1 (openai)", "effort, then fixed 0.5", "nearest, λ from 0 to 1", "ready to serve"):
        assert text in out
    assert "--probe" in err
    data = json.loads(run(GOOD, "--json")[1])
    assert (data["ok"], data["findings"], data["estimators"]) == (True, [], ["effort", "fixed"])
    assert [v["id"] for v in data["variants"]] == ["a", "b"]


def test_mistakes_are_one_message_with_their_line(run: Any) -> None:
    """An unknown key is misuse (2) with line and advice, as in a recipe."""
    code, out, err = run(GOOD.replace("backends:", "backend:"))
    assert (code, out) == (2, "")
    assert "router.yml:2: backend: unknown key" in err
    assert "did you mean `backends`" in err


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("estimator: {chain: [], fixed: 0.3}", "constant"),
        ("effort_shift: {low: -0.2}", "shift_unused"),
        ("policy: {lambda_min: 0.4, lambda_max: 0.6}", "out_of_limits"),
        ("timeouts: {first_byte: 60, total: 30}", "first_byte"),
    ],
)
def test_settings_that_surprise_are_warned_about(run: Any, extra: str, code: str) -> None:
    """What is valid but does nothing, or something else than it seems, has a warning of its own."""
    assert codes(run, GOOD + extra) == [code]


def test_servers_that_surprise_are_warned_about(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant without a server, a single one, a key in the clear outside a cluster, an unchecked identity."""
    monkeypatch.setenv("K", "secret")
    one = GOOD.replace('  - {variant: b, url: "http://127.0.0.1:2", protocol: tgi}\n', "")
    assert codes(run, one) == ["no_server", "one_variant"]
    far = GOOD.replace("http://127.0.0.1:2", "http://far:2")
    assert codes(run, far) == []
    assert codes(run, far.replace("tgi}", "tgi, api_key_env: K}")) == ["key_in_clear"]
    for host in ("a-istio.kserve.svc.cluster.local", "a.b.svc"):
        assert codes(run, far.replace("tgi}", "tgi, api_key_env: K}").replace("far", host)) == []
    assert codes(run, GOOD.replace("tgi}", 'tgi, identity: "off"}')) == ["identity_off"]
    assert "secret" not in "".join(map(str, run(far.replace("tgi}", "tgi, api_key_env: K}"))))


def test_a_server_trusted_by_one_entry_alone_is_warned_about() -> None:
    """Entries of one server have one certificate: `ca` on one and not on the other is a mistake in either."""
    text = GOOD.replace("http://127.0.0.1:1", "https://h/a").replace("http://127.0.0.1:2", "https://h/b")
    config = parse_config(text, {})
    first, second = config.backends
    known = replace(first, ca=Path("authority.pem"))
    (found,) = advise(replace(config, backends=(known, second)))
    assert (found.code, "not for b" in found.message) == ("ca_missing", True)
    assert advise(replace(config, backends=(known, replace(second, url="https://other")))) == []


def test_models_of_one_name_on_two_servers_are_warned_about(run: Any) -> None:
    """A name is all that identifies a model of an OpenAI server: one name for two variants hides swapped servers."""
    text = GOOD.replace("tgi}", "openai, model: m}")
    assert codes(run, text) == []
    same = text.replace('/v1", protocol: openai}', '/v1", protocol: openai, model: m}')
    assert codes(run, same) == ["same_model"]
    assert "a and b are both called `m` on their servers" in run(same)[1]


def test_only_where_there_are_replicas_is_their_choice_told(run: Any) -> None:
    """Conversations and sessions decide between several servers of a variant; with one each there is no such line."""
    assert "replicas" not in run(GOOD)[1]
    two = GOOD.replace('"http://127.0.0.1:2"', '["http://127.0.0.1:2", "http://127.0.0.1:3"]')
    assert "replicas     a conversation stays on one; sessions by x-session-id" in run(two)[1]
    assert "replicas     the least busy one" in run(two + "affinity: {enabled: false}")[1]


def test_a_live_server_has_every_lambda(run: Any) -> None:
    """With a live server no variant is missing, and it is shown as one of any λ."""
    text = 'backends:\n  - {url: "http://127.0.0.1:1", protocol: live}\n'
    assert codes(run, text) == []
    assert re.search(r"^live\s+any\s+http://127.0.0.1:1 \(live\)", run(text)[1], re.M)


def test_a_section_of_dami_live_is_checked_as_it_reads_it(run: Any) -> None:
    """Without `family`, `variants` and `backends` a file is for `dami live --router`, which has every λ."""
    code, out, err = run("thinking: split\n")
    assert (code, "ready to serve" in out) == (0, True)
    assert "dami live INSTRUCT THINKING --router" in err
    assert codes(run, "estimator: {chain: [], fixed: 0.3}") == ["constant"]
    code, _, err = run("estimator: {chian: []}\n")
    assert (code, "did you mean `chain`" in err) == (2, True)
    code, _, err = run("policy: {lambda_min: 0.2}\n", "--probe")
    assert (code, "names no servers" in err) == (2, True)


def test_probe_asks_every_server(world: World, run: Any) -> None:
    """--probe is what `dami serve --check` finds out: exit 1 where a server is another model's."""
    good, wrong = world.tgi("v-l000"), world.tgi("v-l050")
    text = router_yml(("v-l000", good), ("v-l100", wrong))
    code, out, _ = run(text, "--probe")
    assert (code, "serves v-l050, expected v-l100" in out) == (1, True)
    assert "not ready" in out
    wrong.model_id = "v-l100"
    code, out, _ = run(text, "--probe", "--json")
    assert (code, [server["health"] for server in json.loads(out)["servers"]]) == (0, ["alive"] * 2)


def test_the_keys_tell_recipes_and_routers_apart() -> None:
    """Both kinds have `family`; misspelt keys still count for their kind."""
    kinds = {
        "{family: x, backends: []}": "router",
        "{family: x, bakends: [], polcy: {}}": "router",
        "{variants: []}": "router",
        "{thinking: split}": "router",
        "{api_keys_env: K, effort_shift: {}}": "router",
        "{merge_method: dami, base_model: a, models: [], parameters: {}, family: {}}": "recipe",
        "{merge_metod: dami, modles: []}": "recipe",
        "{}": "recipe",
        "{family: x}": "recipe",
    }
    assert {text: checking.kind_of(yaml.safe_load(text)) for text in kinds} == kinds


def test_every_key_of_a_router_yml_tells_it_from_a_recipe() -> None:
    """A file with any one key of the schema is taken for a router.yml; `family` alone could be either."""
    keys = [field.alias or name for name, field in RouterFile.model_fields.items() if name != "family"]
    assert {key: checking.kind_of({key: None}) for key in keys} == dict.fromkeys(keys, "router")


def test_without_dami_merge_a_recipe_is_nobodys(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router-only installation checks router.yml, and says what to install for recipes."""
    monkeypatch.setattr(checking, "entry_points", lambda group: [])
    code, _, err = run("merge_method: dami\nbase_model: a\n")
    assert (code, "pip install dami-merge" in err) == (2, True)
    assert run(GOOD)[0] == 0


def test_recipes_are_not_probed(run: Any) -> None:
    """--probe on a recipe is misuse."""
    code, _, err = run("merge_method: dami\nbase_model: a\n", "--probe")
    assert (code, "is a recipe" in err) == (2, True)
