"""Run docs/tutorial.md: every command of it, in a shell and an empty folder; --check compares, otherwise it is updated.

    python docs/tutorial.py [--check]

The page is the script. A fenced block after `<!-- file: NAME -->` is written to that file. In a `console` block, a
line that starts with `$ ` is a command (continued while lines end in a backslash), and the lines after it are its
output, stdout and stderr together. A command after `<!-- server -->` keeps running; the next step starts once its
output has appeared. A line `…` matches any number of lines. Progress bars, hints, log lines and times are not compared.
After `<!-- about -->`, numbers may differ by a tenth, or by 5 (0.2 for numbers up to 1). The page's ports are replaced
by free ones.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parent / "tutorial.md"
BASH = shutil.which("bash") or "/bin/bash"
PATIENCE = 120.0
"""Seconds that a command may take, and a server until it is ready."""

_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.M | re.S)
_PORT = re.compile(r"\b80[01]0\b")
_NOT_COMPARED = re.compile(r"^(next: |  hint: |INFO |loading |fold \d|\d+ of \d+; |[\w ]+: +\d+%\|)|^\s*$")
_VARYING = ((re.compile(r"\d+\.\d+ s\b"), "<seconds> s"), (re.compile(r"free here [\d.]+ [MGT]B"), "free here <size>"))
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass
class Step:
    """One command of the page and the output that the page shows; `start` and `end` are where that stands."""

    command: str
    shown: str
    start: int
    end: int
    server: bool = False
    about: bool = False


@dataclass
class Written:
    """A file that the page shows."""

    name: str
    text: str


@dataclass(frozen=True)
class Difference:
    """A step whose output is not what the page shows."""

    step: Step
    found: str

    def __str__(self) -> str:
        return f"$ {self.step.command}\nexpected:\n{self.step.shown}\nfound:\n{self.found}"


@dataclass
class Session:
    """A folder, its free ports, and the servers that run in it."""

    folder: Path
    ports: dict[str, str] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Replace the page's ports by free ones."""
        return _PORT.sub(lambda match: self.ports.setdefault(match[0], _free_port()), text)

    def there(self, text: str) -> str:
        """Replace the free ports by the page's."""
        for shown, used in self.ports.items():
            text = text.replace(used, shown)
        return text


def parts(page: str) -> list[Step | Written]:
    """Return the files and commands of the page, in its order."""
    found: list[Step | Written] = []
    for block in _BLOCK.finditer(page):
        marks, language, text = block.groups()
        name = re.search(r"<!-- file: (\S+) -->", marks)
        if name:
            found.append(Written(name[1], text))
        elif language == "console":
            found += _steps(text, block.start(3), server="<!-- server -->" in marks, about="<!-- about -->" in marks)
    return found


def _steps(text: str, offset: int, *, server: bool, about: bool) -> Iterator[Step]:
    commands = list(re.finditer(r"^\$ ((?:.*\\\n)*.*)\n", text, re.M))
    ends = [match.start() for match in commands[1:]] + [len(text)]
    for match, end in zip(commands, ends, strict=True):
        yield Step(match[1], text[match.end() : end], offset + match.end(), offset + end, server, about)


def run(page: str, folder: Path) -> Iterator[tuple[Step, str]]:
    """Do what the page says in a folder; yields each step with its output."""
    with _session(folder) as session:
        for part in parts(page):
            if isinstance(part, Written):
                (folder / part.name).write_text(session.here(part.text), encoding="utf-8")
            else:
                output = _serve(session, part) if part.server else _do(session, part)
                yield part, "".join(f"{line}\n" for line in _compared(session.there(output)))


@contextmanager
def _session(folder: Path) -> Iterator[Session]:
    session = Session(folder)
    try:
        yield session
    finally:
        for server in session.servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in session.servers:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _do(session: Session, step: Step) -> str:
    done = subprocess.run(
        [BASH, "-c", session.here(step.command)], cwd=session.folder, env=_environment(), timeout=PATIENCE,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    text = done.stdout.decode("utf-8", "replace")
    return text if done.returncode == 0 else f"{text}exit code {done.returncode}\n"


def _serve(session: Session, step: Step) -> str:
    log = session.folder / f"server-{len(session.servers)}.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [BASH, "-c", f"exec env {session.here(step.command)}"], cwd=session.folder, env=_environment(),
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    session.servers.append(server)
    wanted, until = step.shown.strip().splitlines()[-1], time.monotonic() + PATIENCE
    while True:
        text = log.read_text("utf-8", "replace")
        if wanted in session.there(text):
            return text
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"$ {step.command}\nis not ready; expected {wanted!r}, found:\n{text}")
        time.sleep(0.05)


def _environment() -> dict[str, str]:
    # One thread for each process: with more, threads of a tiny model wait for each other on a busy machine.
    settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    programs = str(Path(sys.executable).parent)
    return {**os.environ, **settings, "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath)))}


def _free_port() -> str:
    # Of four digits, as those of the page, so that tables are as wide.
    for port in random.sample(range(8100, 10_000), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise RuntimeError("no free port of four digits found")


def _compared(text: str) -> list[str]:
    """Return the lines that are compared, as a terminal would show them at the end."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if not _NOT_COMPARED.search(line)]


def agree(shown: str, found: str, *, about: bool = False) -> bool:
    """Whether an output is what the page shows."""
    expected, actual = _compared(shown), _compared(found)
    return _match(expected, actual, about)


def _match(expected: list[str], actual: list[str], about: bool) -> bool:
    if not expected:
        return not actual
    if expected[0] == "…":
        return any(_match(expected[1:], actual[skipped:], about) for skipped in range(len(actual) + 1))
    return bool(actual) and _same(expected[0], actual[0], about) and _match(expected[1:], actual[1:], about)


def _same(shown: str, found: str, about: bool) -> bool:
    for pattern, name in _VARYING:
        shown, found = pattern.sub(name, shown), pattern.sub(name, found)
    if not about:
        return shown == found
    texts = [re.sub(r"[\s-]+", " ", _NUMBER.sub("#", text)) for text in (shown, found)]
    numbers = zip(map(float, _NUMBER.findall(shown)), map(float, _NUMBER.findall(found)), strict=False)
    return texts[0] == texts[1] and all(abs(a - b) <= max(5.0 if a > 1 else 0.2, a / 10) for a, b in numbers)


def differences(page: str, folder: Path) -> list[Difference]:
    """Run the page in a folder; returns the steps whose output differs."""
    return [Difference(s, found) for s, found in run(page, folder) if not agree(s.shown, found, about=s.about)]


def updated(page: str, found: list[Difference]) -> str:
    """Return the page with the outputs that were found."""
    for difference in reversed(found):
        page = page[: difference.step.start] + difference.found + page[difference.step.end :]
    return page


def main() -> int:
    """Update the page, or compare it with --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where an output differs")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    folder = Path(tempfile.mkdtemp(prefix="dami-tutorial-"))
    try:
        found = differences(page, folder)
    finally:
        shutil.rmtree(folder)
    for difference in found:
        sys.stderr.write(f"{difference}\n")
    if not check:
        PAGE.write_text(updated(page, found), encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
