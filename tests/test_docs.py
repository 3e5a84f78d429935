"""The documents against the project: examples are valid, tables are right, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

from dami_merge.interpolation.depth import Place
from dami_merge.interpolation.path import parse_path
from dami_merge.interpolation.schedule import SCHEDULES, parse_lambda
from dami_merge.lab import copy_pair
from dami_merge.recipes.recipe import parse_recipe
from dami_router.cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*_configs/*.md"), *ROOT.glob("plugins/*/*.md")]
)
WHOLE = {"merge_method": "dami", "base_model": "a", "models": [{"model": "b"}], "parameters": {"lambda": 0.5}}
LAYERS = 36


def relative(path: Path) -> str:
    """Name a document in a test's id."""
    return str(path.relative_to(ROOT))


def recipes(document: str) -> list[str]:
    """Return the YAML blocks of a document; fragments of a recipe are completed by a plain one."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
    return [block + yaml.safe_dump(missing(block)) for block in blocks]


def missing(block: str) -> dict[str, object]:
    """Return what a fragment lacks of a whole recipe."""
    found = yaml.safe_load(block)
    if "merge_method" in found:
        return {"dtype": "bfloat16"} if "dtype" not in found else {"out_dtype": "bfloat16"}
    return {key: value for key, value in WHOLE.items() if key not in found}


@pytest.mark.parametrize(("document", "at_least"), [("README.md", 1), ("docs/recipes.md", 8)])
def test_yaml_examples_are_valid_recipes(document: str, at_least: int) -> None:
    """Every YAML block that a reader may copy passes the strict reader."""
    blocks = recipes(document)
    assert len(blocks) >= at_least
    for block in blocks:
        parse_recipe(block)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(section: str) -> list[str]:
    """Return the lines of all fenced blocks of a section of the README."""
    text = README.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return [line for _, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def test_the_readme_is_short() -> None:
    """The README has at most 120 lines, and its table of results at most four rows."""
    assert len(README.splitlines()) <= 120
    results = README.split("\n| result |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    assert 1 <= len(results) <= 4
    assert all(re.search(r"\bn = [\d,]+", row) or "the same" in row for row in results)


def test_the_quickstarts_have_at_most_six_lines() -> None:
    """Who merges, who serves and who writes an app each copy at most six lines, merging first."""
    sections = re.findall(r"^## (I .+)$", README, re.M)
    assert sections == ["I merge", "I serve", "I write an app"]
    assert all(1 <= len(fenced(section)) <= 6 for section in sections)


def test_the_quickstarts_agree_with_the_project() -> None:
    """The recipe is the picture's pair, the variants served are those of router.yml, and the app calls the router."""
    recipe = parse_recipe("\n".join(fenced("I merge")[:-2]))
    assert str(recipe.thinking) == "Qwen/Qwen3-4B-Thinking-2507"
    serving = "\n".join(fenced("I serve"))
    config = yaml.safe_load((ROOT / re.findall(r"dami serve (\S+)", serving)[0]).read_text(encoding="utf-8"))
    started = {(model.rsplit("/")[-1], int(port)) for model, port in re.findall(r"serve (\S+) --port (\d+)", serving)}
    assert started == {(b["variant"], int(re.findall(r":(\d+)", b["url"])[0])) for b in config["backends"]}
    assert {re.findall(r"http://127.0.0.1:\d+/v1", text)[0] for text in (serving, README.split("## I write")[1])} == {
        "http://127.0.0.1:8000/v1"
    }


def test_the_first_quickstart_merges(tmp_path: Path) -> None:
    """The README's recipe and its two commands work as they stand, with the lab pair for the large one."""
    copy_pair(tmp_path / "lab")
    *recipe, check, merge = fenced("I merge")
    names = {"Qwen/Qwen3-4B-Instruct-2507": "./lab/instruct", "Qwen/Qwen3-4B-Thinking-2507": "./lab/thinking"}
    text = re.sub("|".join(names), lambda found: names[found[0]], "\n".join(recipe))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for line in (check, merge):
        program, *arguments = line.split("#")[0].split()
        command = [Path(sys.executable).parent / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_index_lists_every_page() -> None:
    """docs/README.md links every page and schema of docs, in the order tutorial, how-to, reference, explanation."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == ["Tutorial", "How-to", "Reference", "Explanation"]
    linked = set(re.findall(r"\]\(([\w.-]+?)(?:#[\w-]+)?\)", text))
    pages = {path.name for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.json")]}
    assert pages - {"README.md"} <= linked
    assert "docs/README.md" in README


def test_the_index_names_every_command() -> None:
    """docs/README.md says in a word what each command is for."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {name for name in COMMANDS if f"`dami {name}`" not in text} == set()


def test_the_picture_of_the_architecture_is_what_its_script_draws() -> None:
    """docs/images/architecture.svg is up to date."""
    code = "import architecture_picture; print(*architecture_picture.picture(), sep='\\n')"
    drawn = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, check=True, env=clean()
    ).stdout.decode("utf-8")
    assert (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8") == drawn


PYTHON = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("document", PYTHON, ids=relative)
def test_python_examples_import_what_exists(document: Path) -> None:
    """Every Python block is valid, and the names that it imports from our packages are there."""
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("dami_merge", "dami_router")):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_dotted_paths_of_modules_exist(document: Path) -> None:
    """A module or one of its names that a page writes as `dami_router.a.b` can be imported."""
    for dotted in re.findall(r"`((?:dami_merge|dami_router)(?:\.\w+)+)", document.read_text(encoding="utf-8")):
        parts = dotted.split(".")
        if importlib.util.find_spec(".".join(parts[:-1])) and hasattr(
            importlib.import_module(".".join(parts[:-1])), parts[-1]
        ):
            continue
        assert importlib.util.find_spec(dotted) is not None, f"{relative(document)}: {dotted}"


RIDDLES = (
    r"(?:is|are) passed over", r"stood in for", r"\bdear(?:er|est)?\b", r"\bnobody\b", r"makes? no sense",
    r"written over", r"counts for nothing", r"nothing to say", r"(?:a|the) wish\b", r"gone on with", r"who is asked",
    r"what (?:it|they|an? \w+) (?:is|are) worth", r"\bsurer\b", r"asked of (?:every|clients|it)",
)  # fmt: skip
"""What a reader has to guess; the field has words for each: skipped, falls back, expensive, off by default, invalid."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_pages_use_the_words_of_the_field(document: Path) -> None:
    """No page has a phrase of the kind that stands for a usual technical word."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`|\*[^*\n]*\*", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert re.findall("|".join(RIDDLES), prose) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_to_files_and_headings_lead_somewhere(document: Path) -> None:
    """A relative link names a file of the repository, and an anchor a heading of its file."""
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{relative(document)}: {link}"
        assert not anchor or anchor in anchors(target), f"{relative(document)}: {link}"


def anchors(document: Path) -> set[str]:
    """Return the anchors of a Markdown file's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_command_reference_is_up_to_date() -> None:
    """docs/commands.md says what the commands themselves say."""
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_command_reference_needs_no_torch() -> None:
    """Generating the reference, and so `dami COMMAND --help`, imports neither torch nor mergekit."""
    code = "import sys, generate; generate.reference(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True, env=clean()
    )
    imported = set(done.stdout.split())
    assert "dami_merge.commands.explain" in imported
    assert not imported & {"torch", "mergekit", "transformers", "matplotlib"}


def clean() -> dict[str, str]:
    """Return the environment without what changes Python's own search path."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def test_a_stale_command_reference_is_noticed(tmp_path: Path) -> None:
    """The check exits 1 with the way out where the reference differs, and changes nothing."""
    copy = tmp_path / "generate.py"
    copy.write_bytes((ROOT / "docs" / "generate.py").read_bytes())
    stale = tmp_path / "commands.md"
    stale.write_text("# Commands\n", encoding="utf-8")
    result = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, stale.read_text(encoding="utf-8")) == (1, "# Commands\n")
    assert "run `make docs`" in result.stderr


PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml")), ROOT / "requirements-dev.txt"]


@pytest.mark.parametrize("project", PROJECTS, ids=relative)
def test_every_dependency_has_its_reason(project: Path) -> None:
    """docs/dependencies.md names every package that a distribution or its development needs."""
    documented = set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")))
    needed = requirements(project)
    assert needed or project.parent.name == "hf-dami"
    assert needed <= documented


def requirements(path: Path) -> set[str]:
    """Return the names of the packages that a pyproject.toml or a requirements file asks for."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        found = [line for line in text.splitlines() if line and not line.startswith("#")]
    else:
        project = tomllib.loads(text)["project"]
        found = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    return {name for name in (re.split(r"[^\w-]", line)[0] for line in found) if name != project_name(path)}


def project_name(path: Path) -> str:
    """Return a distribution's own name, which its extras may refer to."""
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"]) if path.suffix == ".toml" else ""


def test_the_table_of_deployments_is_computed() -> None:
    """docs/deploy.md has what its script computes, and the pairs have the sizes that they are known for."""
    script = ROOT / "docs" / "deploy_table.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    spec = importlib.util.spec_from_file_location("deploy_table", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy_table"] = module
    spec.loader.exec_module(module)
    assert [pair.parameters for pair in module.PAIRS] == [4_022_468_096, 30_532_122_624, 235_093_634_560]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table in docs/recipes.md whose header starts with these words."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def place(layer: int) -> Place:
    """Return the place of a layer in a model of 36."""
    return Place(layer, LAYERS, layer / (LAYERS - 1))


def test_the_table_of_schedules_is_right() -> None:
    """The values and the drawing of every schedule in docs/recipes.md are what the code computes."""
    table = rows("schedule | layers 0 to 34")
    assert {re.split(r"\W", row[0].strip("`"))[0] for row in table} == set(SCHEDULES)
    for name, drawing, *values in table:
        schedule = parse_lambda(name.strip("`"))
        assert not isinstance(schedule, float)
        found = [schedule.lambda_at(place(layer)) for layer in range(LAYERS)]
        assert drawing.strip("`") == "".join("▁▂▃▄▅▆▇█"[round(7 * value)] for value in found[::2])
        assert values == [f"{found[layer]:.2f}" for layer in (0, 6, 12, 18, 24, 30, 35)]


def test_the_table_of_paths_is_right() -> None:
    """The λ of every path in docs/recipes.md is what the code computes."""
    for name, *cells in rows("path | λ = 0.25"):
        path = parse_path(name.strip("`"))
        for lambda_, cell in zip((0.25, 0.5, 0.75), cells, strict=True):
            assert cell == ", ".join(f"{path.lambda_at(lambda_, place(layer)):.2f}" for layer in (0, 12, 24, 35))


def test_the_numbers_of_the_picture_are_those_of_the_text() -> None:
    """The plotted sweep and the table in docs/science.md say the same."""
    text = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| ([\d.]+) \| ([\d.]+) at ([\d,]+) \|", text, re.M)
    plotted = re.findall(r"^    \(([\d.]+), ([\d.]+), ([\d_]+)\),$", (ROOT / "docs" / "frontier.py").read_text(), re.M)
    assert [(float(a), float(b), int(c.replace(",", ""))) for a, b, c in listed] == [
        (float(a), float(b), int(c)) for a, b, c in plotted
    ]
    assert len(plotted) == 9


@pytest.mark.parametrize(
    "package",
    ["dami_merge", "plugins/dami-router/dami_router", "plugins/litellm-dami/litellm_dami", "plugins/hf-dami/hf_dami"],
)
def test_the_module_map_is_complete(package: str) -> None:
    """docs/architecture.md has a line on every module and package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or any(path.glob("*.p*"))]
    modules = {path.stem for path in found if not path.stem.startswith("__")}
    assert {name for name in modules if f"`{name}`" not in text} == set()
