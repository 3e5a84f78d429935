"""The worked example of docs/estimators.md, built into a wheel, installed, found and evaluated."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.installed import installed, named
from dami_router.estimators.query import Query
from dami_router.rollouts.records import Rollout, write_rollouts

GUIDE = Path(__file__).parents[3] / "docs" / "estimators.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_worked_example_works(tmp_path: Path) -> None:
    """The example's two files, installed as they stand, give an estimator that `dami eval` finds by its name."""
    source, place = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(blocks("toml")[0])
    (source / "dami_proofs.py").write_text(blocks("python")[0])
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", place, source]
    subprocess.run(pip, check=True, capture_output=True)
    write_rollouts(
        [
            Rollout(f"q{i}", f"{'Prove' if i % 2 else 'Say'} {i}", x, float(x == 1 or not i % 2), int(10 + 90 * x))
            for i in range(20)
            for x in (0.0, 1.0)
        ],
        tmp_path / "r.jsonl",
    )
    code = f"import sys; sys.path.insert(0, {str(place)!r}); from dami_router.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", tmp_path / "r.jsonl", "--estimator", "proofs", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["name"], found["accuracy"], found["mean_tokens"], found["apgr"] > 0.7) == ("proofs", 1.0, 55.0, True)


def install(place: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a module with an entry point `mine` on the path, as an installer would."""
    info = place / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dami.estimators]\nmine = mine_estimator:Mine\n")
    (place / "mine_estimator.py").write_text(code)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "mine_estimator", raising=False)


def test_options_reach_an_installed_estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an estimator is made with is given by name."""
    install(
        tmp_path,
        monkeypatch,
        "from dami_router.estimators.fixed import Fixed\ndef Mine(at): return Fixed(at, 'mine')\n",
    )
    assert installed() == ["mine"]
    assert asyncio.run(named("mine", at=0.25).estimate(Query("x"))).lambda_ == 0.25
    with pytest.raises(MisuseError, match=r"did you mean `mine`"):
        named("mime")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("Mine = lambda: 3", "is not an estimator"),
        ("def Mine(*, needed): pass", "TypeError"),
    ],
)
def test_a_broken_estimator_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    """A module that does not import, a thing that is no estimator and missing options name the estimator."""
    install(tmp_path, monkeypatch, code)
    with pytest.raises(FailureError, match="`mine`") as caught:
        named("mine")
    assert message in str(caught.value)


def test_without_any_installed_the_message_says_so() -> None:
    """An unknown name is neither installed nor a folder."""
    with pytest.raises(MisuseError, match="no such folder"):
        named("no-such-estimator")
