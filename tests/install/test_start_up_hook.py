"""The start-up hook: installed by a wheel and by an editable install, cheap, quiet and safe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from dami_merge import _autoload

ROOT = Path(__file__).parents[2]
KNOWN = "from mergekit import merge_methods as m; print(m.get('dami').spec.reference_url)"


def python(program: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DAMI_NO_AUTOLOAD")}
    return subprocess.run(
        [program, "-c", code], capture_output=True, text=True, check=False, env={**env, **environment}
    )


def new_environment(folder: Path, *installs: Path | str) -> Path:
    """Make an environment with our distributions; everything else comes from the running one, without its hooks."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--prefix", str(folder), "--ignore-installed", *map(str, installs)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # A plain path line: start-up files of the running environment are not read through it.
    (site / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of both distributions, built from copies of their sources."""
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "tests", ".*_cache", "benchmarks")
    shutil.copytree(ROOT, source, ignore=ignore)
    for project in (source, source / "plugins" / "dami-router"):
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
             "--no-build-isolation", "--wheel-dir", str(folder), str(project)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return sorted(folder.glob("*.whl"))


def test_the_wheel_carries_both_start_up_files(wheels: list[Path]) -> None:
    """The .pth (to Python 3.14) and the .start (PEP 829, from 3.15) stand at the wheel's root, with one base name."""
    names = ZipFile(wheels[0]).namelist()
    assert "dami_merge_autoload.pth" in names
    assert "dami_merge_autoload.start" in names
    text = ZipFile(wheels[0]).read("dami_merge_autoload.pth").decode()
    assert text.count("\n") == 1
    assert text.startswith("import ")


def test_the_start_file_names_a_callable() -> None:
    """Each line of the .start file resolves, as PEP 829 has it, to a callable without arguments."""
    import pkgutil

    for line in (ROOT / "dami_merge/startup/dami_merge_autoload.start").read_text().splitlines():
        found = pkgutil.resolve_name(line)
        assert found is _autoload.install
        found()


def test_the_wheel_of_the_router_carries_the_page(wheels: list[Path]) -> None:
    """Every file of the page at /ui, and the style sheet that it shares with the reports, is in the wheel."""
    names = set(ZipFile(next(path for path in wheels if "router" in path.name)).namelist())
    sources = ROOT / "plugins" / "dami-router"
    wanted = [*sources.glob("dami_router/proxy/page/*"), sources / "dami_router" / "shared" / "look.css"]
    assert len(wanted) > 10
    assert {str(path.relative_to(sources)) for path in wanted} <= names


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_mergekit_knows_the_method_after_install(tmp_path: Path, wheels: list[Path], kind: str) -> None:
    """From a wheel and from an editable install, `dami` is registered; DAMI_NO_AUTOLOAD=1 turns that off."""
    editable = ["--editable", ROOT, "--editable", ROOT / "plugins" / "dami-router"]
    program = new_environment(tmp_path / "env", *(wheels if kind == "wheel" else editable))  # type: ignore[arg-type]
    done = python(program, KNOWN)
    assert done.stdout.strip() == "https://arxiv.org/abs/2601.21414", done.stderr[-2000:]
    assert "Unimplemented merge method" in python(program, KNOWN, DAMI_NO_AUTOLOAD="1").stderr


def test_start_up_imports_next_to_nothing(tmp_path: Path, wheels: list[Path]) -> None:
    """Starting Python with the hook adds our two modules to sys.modules, and no other."""
    program = new_environment(tmp_path / "env", *wheels)
    code = "import sys; print(sorted(sys.modules))"
    with_hook, without = (python(program, code, **e) for e in ({}, {"DAMI_NO_AUTOLOAD": "1"}))
    bare = subprocess.run([program, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    added = set(eval(with_hook.stdout)) - set(eval(bare))
    assert {m for m in added if m.startswith("dami")} == {"dami_merge", "dami_merge._autoload"}
    assert not added & {"torch", "mergekit", "logging", "importlib.metadata", "re", "typing"}
    assert without.returncode == 0


def test_the_benchmark_finds_the_hook_of_a_wheel(tmp_path: Path, wheels: list[Path]) -> None:
    """In an environment with the wheel, `benchmarks/startup.py` makes a Python with the hook and one without."""
    program = new_environment(tmp_path / "env", *wheels)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from pathlib import Path; import startup\n"
        f"print(startup.PACKAGE)\n"
        f"for hooked in (True, False): print(startup.bare_python(Path({str(tmp_path)!r}, str(hooked)), hooked=hooked))"
    )
    made = python(program, code)
    assert made.returncode == 0, made.stderr
    package, hooked, bare = made.stdout.splitlines()
    assert Path(package).is_relative_to(tmp_path / "env")
    finders = "import sys; print([type(finder).__module__ for finder in sys.meta_path])"
    assert "dami_merge._autoload" in python(Path(hooked), finders).stdout
    assert "dami_merge._autoload" not in python(Path(bare), finders).stdout


def test_a_half_removed_package_stays_silent(tmp_path: Path, wheels: list[Path]) -> None:
    """With the package gone and the .pth left behind, Python starts without a word."""
    program = new_environment(tmp_path / "env", *wheels)
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    shutil.rmtree(site / "dami_merge")
    (site / "zz_dependencies.pth").unlink()
    done = python(program, "print('fine')")
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_without_mergekit_nothing_happens(tmp_path: Path, wheels: list[Path]) -> None:
    """Where mergekit is not installed, the finder waits and importing mergekit fails as it always did."""
    program = new_environment(tmp_path / "env", *wheels)
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "zz_dependencies.pth").unlink()
    done = python(program, "import json, email; import mergekit")
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'mergekit'")


@pytest.fixture
def clean_finders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from a meta path without our finder, and without mergekit's registry."""
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, _autoload._Finder)])
    monkeypatch.delitem(sys.modules, _autoload.TARGET, raising=False)


@pytest.mark.usefixtures("clean_finders")
def test_installing_twice_gives_one_finder() -> None:
    """`install` may be called any number of times."""
    _autoload.install()
    _autoload.install()
    assert sum(isinstance(f, _autoload._Finder) for f in sys.meta_path) == 1
    assert sys.meta_path[0].find_spec("some.other.module", None) is None
    _autoload.remove()
    assert not any(isinstance(f, _autoload._Finder) for f in sys.meta_path)


@pytest.mark.usefixtures("clean_finders")
def test_switch_turns_the_hook_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under DAMI_NO_AUTOLOAD=1 nothing is installed."""
    monkeypatch.setenv("DAMI_NO_AUTOLOAD", "1")
    before = list(sys.meta_path)
    _autoload.install()
    assert sys.meta_path == before


def test_a_failing_registration_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mergekit that we do not fit goes on working, with one line that says what is missing."""

    def fail(*_: object) -> None:
        raise TypeError("another mergekit")

    import dami_merge.mergekit_adapter as adapter

    monkeypatch.setattr(adapter, "register", fail)
    _autoload._register()
    assert [r.message for r in caplog.records] == [
        "merge_method `dami` is not available in this mergekit (TypeError: another mergekit)"
    ]


def test_loaders_that_cannot_be_wrapped_are_left_alone() -> None:
    """A loader without exec_module, or one that takes no attributes, is passed through."""

    class Slotted:
        __slots__ = ()

        def exec_module(self, module: object) -> None: ...

    class Spec:
        def __init__(self, loader: object) -> None:
            self.loader = loader

    wrap: Callable[[object], None] = _autoload._wrap
    for loader in (None, object(), Slotted()):
        wrap(Spec(loader))
