"""Mutation testing: change the code in small ways, and count the changes that the tests notice.

    python tests/mutants/run.py [ROOM ...] [--jobs 1] [--survivors]

`rooms.toml` beside this file lists the rooms: modules, and the test files that should notice their
mutants. For each room this script makes a small project under build/mutants/ROOM, runs mutmut in it,
and prints a line for each module: mutants, killed, survived. `--survivors` prints the diffs of those
that survived.

mutmut leaves decorated functions alone, and would change the words of messages. So the copies are
rewritten first, without changing what they do: `@property def f` becomes `f = property(plain_f)`,
and a string of several words, or the name of an encoding, becomes an f-string, which mutmut does not
change. Constants of modules and fields of classes are not changed at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
from mutmut.configuration import reset_config
from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
PACKAGES = {"dami_router": ROOT / "plugins/dami-router/dami_router", "dami_merge": ROOT / "dami_merge"}
COPIED = ("conftest.py", "tests", "plugins/dami-router/tests", "docs")
STATES = {0: "survived", 1: "killed", 3: "killed", 33: "survived", 36: "killed", -24: "killed", 24: "killed"}
"""mutmut's exit codes: 33 is a mutant that no test reaches, 36 and 24 are time-outs."""

# A failing test is enough: hypothesis need not look for the smallest example.
QUICK = """
from hypothesis import Phase

settings.register_profile("mutants", settings.get_profile("dami"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")
"""


@dataclass(frozen=True)
class Room:
    """Modules to change, as paths below the packages, and the tests that should notice."""

    name: str
    modules: Sequence[str]
    tests: Sequence[str]


def rooms() -> list[Room]:
    """Read rooms.toml."""
    data = tomllib.loads(Path(__file__).with_name("rooms.toml").read_text(encoding="utf-8"))
    return [Room(name, room["modules"], room["tests"]) for name, room in data.items()]


class Plain(cst.CSTTransformer):
    """Rewrites decorators as calls, and strings of several words as f-strings."""

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> Any:
        names = [d.decorator.value for d in updated_node.decorators if isinstance(d.decorator, cst.Name)]
        if not updated_node.decorators or names in (["staticmethod"], ["classmethod"]):
            return updated_node
        name, plain = updated_node.name, cst.Name(f"plain_{updated_node.name.value}")
        made: cst.BaseExpression = plain
        for decorator in reversed(updated_node.decorators):
            made = cst.Call(decorator.decorator, [cst.Arg(made)])
        line = cst.SimpleStatementLine([cst.Assign([cst.AssignTarget(name)], made)])
        return cst.FlattenSentinel([updated_node.with_changes(name=plain, decorators=[]), line])

    def leave_SimpleString(self, original_node: cst.SimpleString, updated_node: cst.SimpleString) -> Any:
        prose = re.search(r"\w,? \w|^utf-8$", updated_node.raw_value)
        if updated_node.prefix or len(updated_node.quote) > 1 or not prose:
            return updated_node
        text = updated_node.raw_value.replace("{", "{{").replace("}", "}}")
        quote = updated_node.quote
        return cst.FormattedString([cst.FormattedStringText(text)], start=f"f{quote}", end=quote)


def stage(room: Room) -> Path:
    """Make the room's project: both packages, the tests, and mutmut's configuration."""
    project = WORK / room.name
    shutil.rmtree(project, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, project / name, ignore=ignored)
    for name in COPIED:
        source, target = ROOT / name, project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    with (project / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(QUICK)
    for module in room.modules:
        path = project / module
        path.write_text(cst.parse_module(path.read_text(encoding="utf-8")).visit(Plain()).code, encoding="utf-8")
    whole = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    start = whole.index("[tool.pytest.ini_options]")
    following = whole.find("\n[", start)
    options = whole[start:] if following < 0 else whole[start:following]
    # An encoding that is left out shows, whatever the machine's own is.
    ours = '"ignore::EncodingWarning", "error::EncodingWarning:dami_.*"'
    options = options.replace('filterwarnings = [\n  "error",', f'filterwarnings = [\n  "error", {ours},')
    settings = {
        "source_paths": list(PACKAGES), "only_mutate": list(room.modules), "also_copy": list(COPIED),
        "pytest_add_cli_args_test_selection": list(room.tests), "process_isolation": "forkserver",
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist"], "timeout_multiplier": 5.0,
        "timeout_constant": 3.0, "use_git_change_detection": False,
    }  # fmt: skip
    mutmut = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    for name in PACKAGES:  # before Python starts: the start-up hook imports dami_merge from here
        shutil.copytree(project / name, project / "mutants" / name)
    (project / "pyproject.toml").write_text(f"{options}\n\n[tool.mutmut]\n{mutmut}\n", encoding="utf-8")
    return project


def run(room: Room, jobs: int) -> Path:
    """Run mutmut over a room; exits where its tests do not pass on unchanged code."""
    project = stage(room)
    # Processes that tests start import the same copy.
    environment = {
        **os.environ, "PYTHONPATH": str(project / "mutants"), "DAMI_NO_AUTOLOAD": "1",
        "PYTHONWARNDEFAULTENCODING": "1",
    }  # fmt: skip
    with (project / "mutmut.log").open("w") as log:
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(jobs)]
        done = subprocess.run(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = (project / "mutmut.log").read_text(errors="replace")[-3000:]
        sys.exit(f"{tail}\nmutmut failed in room {room.name}; its whole output is in {project / 'mutmut.log'}")
    return project


def states(project: Path, module: str) -> dict[str, str]:
    """Return what became of each mutant of a module, by its name."""
    data = json.loads((project / "mutants" / f"{module}.meta").read_text(encoding="utf-8"))
    return {name: STATES.get(code, f"exit {code}") for name, code in data["exit_code_by_key"].items()}


def diffs(project: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the diffs of mutants."""
    with contextlib.chdir(project):
        reset_config()
        for name in names:
            yield f"# {name}\n{get_diff_for_mutant(name, path=find_mutant(name).path)}".rstrip()


def main() -> None:
    """Run the rooms that are named, or all."""
    known = {room.name: room for room in rooms()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"one of {', '.join(known)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at the same time")
    parser.add_argument("--survivors", action="store_true", help="print the diffs of mutants that survived")
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(known):
        parser.error(f"unknown room {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    total: Counter[str] = Counter()
    print(f"{'module':<44} {'mutants':>7} {'killed':>7} {'survived':>8} {'share':>6} {'seconds':>8}")
    for name in options.rooms or known:
        begun = time.monotonic()
        project = run(known[name], options.jobs)
        seconds = time.monotonic() - begun
        for module in known[name].modules:
            found = states(project, module)
            count = Counter(found.values())
            total += count
            print(line(module, count) + f" {seconds:>8.0f}", flush=True)
            if options.survivors:
                for diff in diffs(project, [key for key, state in found.items() if state != "killed"]):
                    print(diff)
    print(line("all", total))


def line(name: str, count: Counter[str]) -> str:
    """Return a line of the table."""
    every, killed = sum(count.values()), count["killed"]
    return f"{name:<44} {every:>7} {killed:>7} {every - killed:>8} {killed / max(every, 1):>6.1%}"


if __name__ == "__main__":
    main()
