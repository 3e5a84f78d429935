"""`hf dami …` with the real `hf`: registered from an environment, and installed from (a stand-in for) GitHub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hf_support.github import SHA, GitHub, certificate

PROJECT = Path(__file__).parents[1]
DAMI = Path(sysconfig.get_path("scripts")) / "dami"
HF = Path(str(distribution("huggingface_hub").locate_file("../../../bin/hf"))).resolve()
WRONG = "merge_method: dami\nbase_model: a\nmodles: []\n"
MISSING = "merge_method: dami\nbase_model: ./a\nmodels: [{model: ./b}]\nparameters: {lambda: 0.5}\ndtype: bfloat16\n"


def run(command: list[str | Path], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a home directory of its own, without asking anybody for updates."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DAMI_"))}
    own = {"HOME": str(home), "NO_COLOR": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return subprocess.run(
        command, cwd=home, env={**kept, **own, **environment}, capture_output=True, text=True, check=False
    )


def register(home: Path) -> subprocess.CompletedProcess[str]:
    """Register this environment's hf-dami in a home directory."""
    return run([sys.executable, "-m", "hf_dami", "register"], home)


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    """A home directory with hf-dami registered."""
    done = register(tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["push", "--help"], 0),
        (["build", "--help"], 0),
        (["check", "wrong.yml"], 2),
        (["check", "missing.yml"], 1),
        (["push"], 2),
        (["pusch"], 2),
        (["explain", "recipe.yml", "--json"], 2),
    ],
)
def test_hf_dami_is_dami_under_another_name(registered: Path, arguments: list[str], code: int) -> None:
    """The same exit code and the same output, with the program called `hf dami`."""
    (registered / "wrong.yml").write_text(WRONG)
    (registered / "missing.yml").write_text(MISSING)
    plain, ours = run([DAMI, *arguments], registered), run([HF, "dami", *arguments], registered)
    assert (ours.returncode, plain.returncode) == (code, code), ours.stderr
    assert ours.stdout + ours.stderr == under_our_name(plain.stdout + plain.stderr)


def under_our_name(text: str) -> str:
    """Return dami's output as it reads where the program is `hf dami`."""
    for before, behind in (("Usage: ", " "), ("", ", version"), ("error: ", ": no command"), ("Try '", " "),
                           ("did you mean `", " ")):  # fmt: skip
        text = text.replace(f"{before}dami{behind}", f"{before}hf dami{behind}")
    return text


def test_hf_dami_does_the_work(registered: Path) -> None:
    """A command that does something: the lab pair is written and its recipe checked, as JSON on stdout."""
    assert run([HF, "dami", "lab", "lab"], registered).returncode == 0
    recipe = {"merge_method": "dami", "base_model": "./lab/instruct", "models": [{"model": "./lab/thinking"}]}
    (registered / "recipe.yml").write_text(json.dumps({**recipe, "parameters": {"lambda": 0.5}, "dtype": "float32"}))
    done = run([HF, "dami", "check", "recipe.yml", "--json"], registered)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_hf_lists_the_extension_and_removes_it(registered: Path) -> None:
    """`hf extensions list` and `hf --help` show it; after `remove` it is gone, and may be registered again."""
    assert "_local/hf-dami" in run([HF, "extensions", "list"], registered).stdout
    assert "dami" in run([HF, "--help"], registered).stdout
    assert run([HF, "extensions", "remove", "dami"], registered).returncode == 0
    assert run([HF, "dami", "--version"], registered).returncode == 2
    assert register(registered).returncode == 0
    assert run([HF, "dami", "--version"], registered).stdout.startswith("hf dami, version")


def test_registering_twice_is_harmless(registered: Path) -> None:
    """The second registration replaces the first and leaves no other file."""
    assert register(registered).returncode == 0
    folder = registered / ".local/share/hf/extensions/hf-dami"
    assert sorted(path.name for path in folder.iterdir()) == [".latest_commit", "manifest.json"]


@pytest.mark.parametrize("manifest", ['{"repo_id": "someone/hf-dami"}', "{}", "no JSON"])
def test_an_extension_from_elsewhere_is_left_alone(tmp_path: Path, manifest: str) -> None:
    """What `hf extensions install` put there stays, and the message says how to remove it."""
    file = tmp_path / ".local/share/hf/extensions/hf-dami/manifest.json"
    file.parent.mkdir(parents=True)
    file.write_text(manifest)
    done = register(tmp_path)
    assert done.returncode == 1
    assert "hf extensions remove dami" in done.stderr
    assert file.read_text() == manifest


def test_the_command_to_register_says_its_usage(tmp_path: Path) -> None:
    """Anything but `register` is misuse: exit code 2."""
    done = run([sys.executable, "-m", "hf_dami", "regsiter"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "usage: python -m hf_dami register\n")


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    """GitHub with this project as the repository someone/hf-dami."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the stand-in's certificate, is not installed")
    made = GitHub(PROJECT, certificate(tmp_path))
    yield made
    made.close()


def through(github: GitHub, folder: Path) -> Mapping[str, str]:
    """Return the environment in which GitHub is the stand-in, and hatchling is there without a download."""
    backend = folder / "backend"
    backend.mkdir()
    site = Path(str(distribution("hatchling").locate_file("")))
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers"):
        (backend / name).symlink_to(site / name)
    trusted = str(folder / "certificate.pem")
    return {
        "HTTPS_PROXY": github.url, "https_proxy": github.url, "NO_PROXY": "", "no_proxy": "",
        # PIP_NO_BUILD_ISOLATION: pip takes this as the value of build isolation, so 0 is none.
        "SSL_CERT_FILE": trusted, "PIP_CERT": trusted, "REQUESTS_CA_BUNDLE": trusted, "CURL_CA_BUNDLE": trusted,
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONPATH": str(backend), "PATH": "/usr/bin:/bin",
    }  # fmt: skip


def test_hf_installs_this_folder_as_a_repository(github: GitHub, tmp_path: Path) -> None:
    """`hf extensions install someone/hf-dami` builds this folder in its own environment; it runs the `dami` on PATH."""
    environment = dict(through(github, tmp_path))
    done = run([HF, "extensions", "install", "someone/hf-dami"], tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(github.hosts) >= {"github.com", "raw.githubusercontent.com"}
    manifest = json.loads((tmp_path / ".local/share/hf/extensions/hf-dami/manifest.json").read_text())
    assert (manifest["type"], manifest["commit_sha"], manifest["repo_id"]) == ("python", SHA, "someone/hf-dami")
    assert "hf dami" in manifest["description"]
    missing = run([HF, "dami", "--version"], tmp_path, PATH="/usr/bin:/bin")
    assert missing.returncode == 1
    assert "`dami`, which is not installed here" in missing.stderr
    found = run([HF, "dami", "chek"], tmp_path, PATH=f"{DAMI.parent}:/usr/bin:/bin")
    assert (found.returncode, found.stderr) == (
        2, "error: hf dami: no command `chek`\n  hint: did you mean `hf dami check`?\n"
    )  # fmt: skip


def test_a_registered_extension_asks_nobody_on_github(registered: Path, github: GitHub) -> None:
    """With its own update checks on, `hf` never looks on GitHub for what was registered here."""
    for command in (["dami", "--version"], ["extensions", "list"]):
        done = run([HF, *command], registered, HF_HUB_DISABLE_UPDATE_CHECK="0", HTTPS_PROXY=github.url, NO_PROXY="")
        assert done.returncode == 0, done.stderr
    assert not {"github.com", "raw.githubusercontent.com", "api.github.com"} & set(github.hosts)
