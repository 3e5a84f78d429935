"""Every ready router.yml: valid, in agreement with its recipe and its own commands, and recognised by its servers."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import World
from jsonschema import Draft202012Validator

from dami_merge.build.build_plan import variant_id
from dami_merge.recipes.recipe import Recipe, load_recipe
from dami_router.cli import main
from dami_router.config.router_yml import load_config
from dami_router.config.specs import RouterConfig
from dami_router.manifest.family import parse_family

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "router_configs"
NAMES = [path.name for path in sorted(FOLDER.glob("*.yml"))]
KEYS = {"SERVER_KEY": "a", "DAMI_KEY": "b"}


@dataclass(frozen=True)
class Started:
    """A server that a command in a file's comments starts: its port, its model, and its kind."""

    port: int
    model: str
    kind: str


def commands(name: str) -> list[list[str]]:
    """Return the commands in a file's comments."""
    lines = re.findall(r"^#   (\S.*)$", (FOLDER / name).read_text(encoding="utf-8"), re.M)
    return [[word for word in shlex.split(line) if "CUDA_VISIBLE_DEVICES=" not in word] for line in lines]


def started(name: str) -> list[Started]:
    """Return the servers that the comments start."""
    found = []
    for words in commands(name):
        if words[0] == "docker":
            port = int(words[words.index("-p") + 1].split(":")[0])
            found.append(Started(port, words[words.index("--model-id") + 1], "tgi"))
        elif words[:2] in (["vllm", "serve"], ["transformers", "serve"]):
            found.append(Started(int(words[words.index("--port") + 1]), words[2], "openai"))
        elif words[:2] == ["dami", "live"]:
            found.append(Started(int(words[words.index("--port") + 1]), "live", "live"))
    return found


def recipe_of(name: str) -> Recipe:
    """Return the recipe that a file names in its comments."""
    return load_recipe(ROOT / re.findall(r"^# Recipe: (\S+\.yml)", (FOLDER / name).read_text(), re.M)[0])


def manifest(recipe: Recipe) -> str:
    """Return the manifest that `dami build` would write for a recipe, without hashes of files that are not here."""
    assert recipe.family is not None
    name = recipe.family.name
    endpoint = {"source": "x", "architecture": "X", "parameters": 1, "dtype": "BF16", "files": {}}
    variants = [
        {
            "id": variant_id(name, x), "lambda": x, "resolved": [], "folder": variant_id(name, x), "files": {},
            "chat_template": {"source": "instruct", "sha256": None, "opens_think": False},
            "sampling": {"source": None, "values": {}},
        }
        for x in recipe.family.lambdas
    ]  # fmt: skip
    data = {
        "schema_version": 1, "name": name, "created_with": {"tool": "t", "version": "1"}, "path": "uniform",
        "endpoints": {"instruct": endpoint, "thinking": endpoint}, "recipe": recipe.document.source,
        "variants": variants,
    }  # fmt: skip
    return parse_family(json.dumps(data)).text()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like the repository after the commands have run; the keys are set."""
    (tmp_path / "router_configs").mkdir()
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    return tmp_path / "router_configs"


def laid_out(name: str, place: Path, ports: dict[int, int] | None = None) -> Path:
    """Copy a file beside its family's manifest, with other ports where they are given."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    for family in re.findall(r"^family: \.\./(\S+)", text, re.M):
        (place.parent / family).mkdir()
        (place.parent / family / "dami_family.json").write_text(manifest(recipe_of(name)))
    for old, new in (ports or {}).items():
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (place / name).write_text(text, encoding="utf-8")
    return place / name


def check(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main(["check", str(path), "--json", *options])
    return int(stopped.value.code or 0), json.loads(out.getvalue())


def test_there_is_an_example_of_each_kind() -> None:
    """TGI, vLLM, both, the lab and live are all here, so no test below is empty."""
    assert NAMES == ["lab.yml", "live.yml", "mixed.yml", "tgi.yml", "vllm.yml"]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_read_strictly(name: str, place: Path) -> None:
    """`dami check` takes each; the only warning is about variants and identities that the file says so itself."""
    code, found = check(laid_out(name, place))
    codes = {finding["code"] for finding in found["findings"]}
    assert code == 0
    assert codes == ({"identity_off", "no_server"} if name == "lab.yml" else set())


@pytest.mark.parametrize("name", NAMES)
def test_each_names_the_schema_that_accepts_it(name: str) -> None:
    """The first line tells editors where the published schema lies, and an editor finds no mistake in the file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert found
    schema = json.loads((FOLDER / found[1]).read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(yaml.safe_load(text))


@pytest.mark.parametrize("name", NAMES)
def test_each_agrees_with_its_recipe(name: str, place: Path) -> None:
    """The variants are those of the recipe's family, by id and λ; a live server's endpoints are the recipe's."""
    config, recipe = load_config(laid_out(name, place)), recipe_of(name)
    assert recipe.family is not None
    known = {variant_id(recipe.family.name, x): x for x in recipe.family.lambdas}
    assert {v.id: v.lambda_ for v in config.variants}.items() <= known.items()
    if name == "live.yml":
        (backend,) = config.backends
        assert backend.pair is not None
        ends = [f"./{end.name}" for end in (backend.pair.instruct, backend.pair.thinking)]
        assert ends == [str(recipe.instruct), str(recipe.thinking)]
    else:
        assert {b.variant for b in config.backends} <= known.keys()
        assert len(config.variants) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_each_backend_is_started_by_a_command(name: str, place: Path) -> None:
    """Ports, protocols and models of the commands in the comments are those of the backends."""
    config = load_config(laid_out(name, place))
    found = {(s.port, s.kind, s.model.rsplit("/", 1)[-1]) for s in started(name)}
    assert found == {(int(b.url.rsplit(":", 1)[1]), b.protocol, b.variant) for b in config.backends}
    assert all(
        b.model in (None, s.model) for b in config.backends for s in started(name) if b.url.endswith(f":{s.port}")
    )


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_what_exists(name: str) -> None:
    """Each `dami` command is one of ours, names this file or its recipe, and builds the variants that are served."""
    recipe = recipe_of(name)
    for words in commands(name):
        if words[:2] == ["dami", "build"]:
            assert (ROOT / words[2]).is_file()
            assert load_recipe(ROOT / words[2]).document.source == recipe.document.source
            only = [float(value) for option, value in pairwise(words) if option == "--only"]
            assert recipe.family is not None
            built = {variant_id(recipe.family.name, x) for x in only or recipe.family.lambdas}
            assert {s.model.rsplit("/", 1)[-1] for s in started(name)} <= built
        elif words[0] == "dami" and words[1] in ("check", "serve", "ask"):
            assert words[2] == f"router_configs/{name}"


@pytest.fixture
def world() -> Iterator[World]:
    with World.alone() as made:
        yield made


@pytest.mark.parametrize("name", [n for n in NAMES if n != "live.yml"])
def test_servers_started_so_are_recognised(name: str, place: Path, world: World) -> None:
    """Servers that call their models as the commands do pass --probe, and a swapped pair is refused."""
    servers = [world.tgi(s.model) if s.kind == "tgi" else world.upstream(s.model) for s in started(name)]
    ports = {s.port: server.port for s, server in zip(started(name), servers, strict=True)}
    path = laid_out(name, place, ports)
    code, found = check(path, "--probe")
    assert (code, {s["health"] for s in found["servers"]}) == (0, {"alive"})
    if name != "lab.yml":
        first, last = started(name)[0].port, started(name)[-1].port
        swapped = path.read_text().replace(f":{ports[first]}", ":0").replace(f":{ports[last]}", f":{ports[first]}")
        path.write_text(swapped.replace(":0", f":{ports[last]}"))
        assert check(path, "--probe")[0] == 1


def test_the_family_example_of_the_guide_is_valid(tmp_path: Path) -> None:
    """docs/router.md's example with a manifest is read strictly beside a manifest of that name."""
    text = (ROOT / "docs" / "router.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(family: .*?)^```", text, re.M | re.S)
    recipe = load_recipe(ROOT / "merge_configs" / "qwen3-4b-2507-family.yml")
    folder = tmp_path / re.findall(r"^family: (\S+)", block)[0]
    folder.mkdir()
    (folder / "dami_family.json").write_text(manifest(recipe))
    (tmp_path / "router.yml").write_text(block)
    config: RouterConfig = load_config(tmp_path / "router.yml", {})
    assert config.name == "Qwen3-4B-2507-DAMI"
    assert len(config.backends) == 4


def test_the_readme_lists_every_example() -> None:
    """router_configs/README.md has a line on each file, and on none that is not there."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[([\w.-]+\.yml)\]", text, re.M) == [
        "tgi.yml",
        "vllm.yml",
        "mixed.yml",
        "lab.yml",
        "live.yml",
    ]
    assert set(NAMES) == set(re.findall(r"^\| \[([\w.-]+\.yml)\]", text, re.M))
