"""The `dami` shell: exit codes, errors without traceback, commands of absent distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.pairs import Pair

from dami_router import cli


def dami(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in its own process."""
    program = Path(sys.executable).with_name("dami")
    env = {**os.environ, **environment}
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


def test_help_lists_every_command() -> None:
    """`dami --help` names every command with its line, and exits 0."""
    done = dami("--help")
    assert done.returncode == 0
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text.split()[0] in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """Listing and describing commands imports neither torch nor transformers nor mergekit."""
    code = (
        "import sys; from dami_router import cli\n"
        "try: cli.main(['check', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'numpy', 'matplotlib', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_has_examples_that_name_it() -> None:
    """Each command's --help ends in examples, and each example is a call of that command."""
    import click

    for name in cli.COMMANDS:
        command = cli.dami.get_command(click.Context(cli.dami), name)
        assert command is not None
        examples = getattr(command, "examples", ())
        assert examples
        assert all(example.startswith(f"dami {name}") for example in examples), name


def test_an_unknown_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo is misuse (2) and gets one line of advice, no traceback."""
    code, out, err = run(capsys, "explian")
    assert (code, out) == (2, "")
    assert "did you mean `dami explain`?" in err
    assert "Traceback" not in err


def test_a_missing_distribution_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With dami-router alone, `dami merge` says what to install."""
    monkeypatch.setattr(cli, "_installed", dict)
    code, _, err = run(capsys, "merge", "a.yml", "--cuda")
    assert code == 2
    assert "pip install dami-merge" in err
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "[pip install" in out


def test_a_stranger_s_command_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that another distribution registers runs like our own."""
    from importlib.metadata import EntryPoint

    point = EntryPoint("hello", "support.stranger:hello", "dami.commands")
    monkeypatch.setattr(cli, "_installed", lambda: {"hello": point})
    assert run(capsys, "hello")[:2] == (0, "hello\n")
    assert "hello" in run(capsys, "--help")[1]


def test_an_unexpected_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug shows its kind and how to see more; DAMI_DEBUG=1 shows the traceback."""
    from importlib.metadata import EntryPoint

    point = EntryPoint("crash", "support.stranger:crash", "dami.commands")
    monkeypatch.setattr(cli, "_installed", lambda: {"crash": point})
    code, _, err = run(capsys, "crash")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "DAMI_DEBUG=1" in err
    monkeypatch.setenv("DAMI_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["crash"])


def test_misuse_of_options_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown options and missing arguments are misuse."""
    assert run(capsys, "check", "--nonsense")[0] == 2
    assert run(capsys, "check")[0] == 2


def test_check_accepts_a_sound_recipe(recipe_file: Path) -> None:
    """`dami check` on a sound pair says so on stdout and exits 0, with nothing but a hint on stderr."""
    done = dami("check", recipe_file)
    assert done.returncode == 0, done.stderr
    assert "ready to merge" in done.stdout
    assert "Qwen3ForCausalLM" in done.stdout
    assert done.stderr.startswith("next: dami explain")


def test_check_writes_json(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json gives one object with the facts and findings, and no hint."""
    code, out, err = run(capsys, "check", recipe_file, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["ok"] is True
    assert data["architecture"] == "Qwen3ForCausalLM"
    assert data["findings"] == []
    assert err == ""


def test_check_refuses_what_does_not_fit(tmp_path: Path, qwen3: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Endpoints that do not fit exit 1 with findings; a recipe that is wrong exits 2 with one message."""
    path = tmp_path / "r.yml"
    path.write_text(Pair(qwen3.instruct, tmp_path / "none").recipe())
    code, out, err = run(capsys, "check", path)
    assert (code, out) == (1, "")
    assert "no such folder" in err
    path.write_text(qwen3.recipe(lambda_="ramp(0, 2)"))
    code, _, err = run(capsys, "check", path)
    assert code == 2
    assert "expected a number in [0, 1]" in err
    path.write_text(qwen3.recipe(lambda_="window(0, 4)"))
    code, _, err = run(capsys, "check", path)
    assert code == 2
    assert "layer index from 0 to 3" in err


@pytest.mark.parametrize(
    ("lambda_", "code"),
    [
        ([0, 1], "gradient_end"),
        ([{"filter": "layers.1", "value": 1}, {"value": 0}], None),
        ([{"filter": "atention", "value": 1}, {"value": 0}], "filter_unused"),
    ],
)
def test_check_warns_of_mergekit_traps(
    tmp_path: Path, qwen3: Pair, capsys: pytest.CaptureFixture[str], lambda_: object, code: str | None
) -> None:
    """A gradient's odd end and a filter that matches nothing are warned about."""
    path = tmp_path / "r.yml"
    path.write_text(qwen3.recipe(lambda_))
    exit_code, out, _ = run(capsys, "check", path, "--json")
    found = [f["code"] for f in json.loads(out)["findings"]]
    assert exit_code == 0
    assert found == ([code] if code else [])


def test_check_warns_of_a_path_filter_that_matches_nothing(
    tmp_path: Path, qwen3: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """A filter in a family's path is looked at like one in λ."""
    path = tmp_path / "r.yml"
    options = [{"filter": "atention", "value": "power(2)"}, {"value": "uniform"}]
    path.write_text(qwen3.recipe(family={"name": "x", "lambdas": [0, 1], "path": options}))
    found = json.loads(run(capsys, "check", path, "--json")[1])["findings"]
    assert [f["code"] for f in found] == ["filter_unused"]


@pytest.mark.parametrize(
    ("prefix", "code"), [("", "ambiguous_path"), ("./", None), ("~/", "home_path")], ids=["bare", "dot", "home"]
)
def test_check_knows_how_mergekit_reads_local_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, prefix: str, code: str | None
) -> None:
    """`a/b` could be a Hub id to mergekit, `./a/b` cannot, and `~` it does not expand: each gets its own word."""
    from support.pairs import make_pair

    make_pair(tmp_path / "a", layers=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yml").write_text(Pair(f"{prefix}a/instruct", f"{prefix}a/thinking").recipe())  # type: ignore[arg-type]
    found = json.loads(run(capsys, "check", "r.yml", "--json")[1])["findings"]
    assert {f["code"] for f in found} == ({code} if code else set())


def test_check_warns_of_a_filter_that_matches_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`layers.1` also matches `layers.10`, in a model that has one."""
    from support.pairs import make_pair

    pair = make_pair(tmp_path, layers=11)
    path = tmp_path / "r.yml"
    path.write_text(pair.recipe([{"filter": "layers.1", "value": 1}, {"value": 0}]))
    found = json.loads(run(capsys, "check", path, "--json")[1])["findings"]
    assert [f["code"] for f in found] == ["filter_prefix"]
    assert "`layers.1.`" in found[0]["hint"]


def test_explain_groups_and_lists(tmp_path: Path, qwen3: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """`dami explain` joins equal layers, splits modules that differ, and --tensors lists every tensor."""
    path = tmp_path / "r.yml"
    path.write_text(qwen3.recipe([{"filter": "mlp", "value": "step(0.2, 0.8, at=2)"}, {"value": 0.5}]))
    code, out, _ = run(capsys, "explain", path, "--tensors", "--json")
    data = json.loads(out)
    rows = {(g["first"], g["last"], g["module"]): g["lambda"] for g in data["groups"]}
    assert code == 0
    assert rows[0, 1, "mlp"] == 0.2
    assert rows[2, 3, "mlp"] == 0.8
    assert rows[0, 3, "attention"] == 0.5
    assert data["tensors"]["model.layers.3.mlp.up_proj.weight"] == 0.8
    assert "0–1" in run(capsys, "explain", path)[1]


def test_explain_follows_a_family_s_path(tmp_path: Path, qwen3: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """--lambda shows how the family spreads λ; without a family it is misuse."""
    path = tmp_path / "r.yml"
    path.write_text(qwen3.recipe(family={"name": "x", "lambdas": [0, 1], "path": "late(1)"}))
    data = json.loads(run(capsys, "explain", path, "--lambda", "0.5", "--json")[1])
    values = [g["lambda"] for g in data["groups"] if g["first"] is not None]
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert run(capsys, "explain", path, "--lambda", "1.5")[0] == 2
    path.write_text(qwen3.recipe())
    code, _, err = run(capsys, "explain", path, "--lambda", "0.5")
    assert code == 2
    assert "no `family:` block" in err
