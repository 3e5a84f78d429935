"""The tutorial is run as it is written, and its runner notices what differs."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    """docs/tutorial.py, which is a script and no package's module."""
    spec = importlib.util.spec_from_file_location("docs_tutorial", ROOT / "docs" / "tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial calls the router with curl")
def test_every_step_gives_the_output_that_the_page_shows(tutorial: ModuleType, tmp_path: Path) -> None:
    """All commands of docs/tutorial.md run in an empty folder, in order, with the outputs of the page."""
    found = tutorial.differences(tutorial.PAGE.read_text(encoding="utf-8"), tmp_path)
    hint = "if the new output is right, `python docs/tutorial.py` writes it into the page"
    assert not found, "\n".join([*map(str, found), hint])


def test_the_page_has_numbered_steps_that_are_all_run(tutorial: ModuleType) -> None:
    """Sections are numbered from 1, each runs at least one command, and only mergekit's output is left open."""
    page = tutorial.PAGE.read_text(encoding="utf-8")
    sections = page.split("\n## ")[1:-1]
    assert [int(section.split(".")[0]) for section in sections] == list(range(1, len(sections) + 1))
    assert all("```console\n$ " in section for section in sections)
    steps = [part for part in tutorial.parts(page) if isinstance(part, tutorial.Step)]
    assert len(steps) == page.count("\n$ ")
    assert [step.command.split()[0] for step in steps if "…" in step.shown] == ["mergekit-yaml"]


PAGE = """\
<!-- file: a.txt -->
```
one
```

```console
$ cat a.txt
one
$ printf 'two\\n' \\
  && exit 3
two
```
"""


def test_another_output_or_a_failure_is_noticed_and_can_be_written(tutorial: ModuleType, tmp_path: Path) -> None:
    """A step that ends with another exit code or text is a difference; the updated page has none."""
    (difference,) = tutorial.differences(PAGE, tmp_path)
    assert difference.found == "two\nexit code 3\n"
    page = tutorial.updated(PAGE, [difference])
    assert page == PAGE.replace("two\n```", "two\nexit code 3\n```")
    assert tutorial.differences(page, tmp_path) == []
    (changed,) = tutorial.differences(page.replace("\none\n$", "\n1\n$"), tmp_path)
    assert changed.found == "one\n"


def test_a_server_that_does_not_start_is_named_with_what_it_said(tutorial: ModuleType, tmp_path: Path) -> None:
    """The run stops at a server that ends before its output has come, and tells what it wrote instead."""
    page = "<!-- server -->\n```console\n$ echo no such port 8000\nserving at 8000\n```\n"
    with pytest.raises(RuntimeError, match=r"expected 'serving at 8000', found:\nno such port \d{4}"):
        list(tutorial.run(page, tmp_path))


@pytest.mark.parametrize(
    ("shown", "found", "about", "same"),
    [
        ("a 1.5\n", "a 1.6\n", False, False),
        ("a 78.0\n", "a 81.5\n", True, True),
        ("a 78.0\n", "a 90.5\n", True, False),
        ("a 0.55\n", "a 0.85\n", True, False),
        ("a 78.0\n", "b 78.0\n", True, False),
        ("a 1 2\n", "a 1\n", True, False),
        ("done in 1.5 s\n", "done in 20.7 s\n", False, True),
        ("x\n…\ny\n", "x\n1\n2\ny\n", False, True),
        ("x\n…\ny\n", "x\n1\n2\n", False, False),
        ("x\n", "push:  10%|#\rpush: 100%|##\nx\nnext: dami\n\n", False, True),
        ("x\n", "x\nwarning: y\n", False, False),
    ],
)
def test_what_counts_as_the_same_output(tutorial: ModuleType, shown: str, found: str, about: bool, same: bool) -> None:
    """Times, progress and hints are not compared; numbers have room only where the page says so; text has none."""
    assert tutorial.agree(shown, found, about=about) is same
