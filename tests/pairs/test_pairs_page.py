"""The table of docs/pairs.md against what the tools do with a shrunk pair of each row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.pair_table import HEAD, row_text
from support.public_pairs import ROWS, PublicPair

PAGE = (Path(__file__).parents[2] / "docs" / "pairs.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.count("|") == HEAD.count("|")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id}-{'-'.join(row.twists)}")
def test_the_row_says_what_the_tools_do(row: PublicPair) -> None:
    """Build, mergekit's plan and live give for the row's shrunk pair what docs/pairs.md says of it."""
    assert row_text(row) in LINES


def test_the_page_has_every_row_once_and_no_other() -> None:
    """The table has one line for each row, below its head; each names two repositories."""
    names = [line.split(" | ")[0] for line in LINES[2:]]
    assert names == [f"| {row.instruct}, {row.thinking}" for row in ROWS]
    assert all(re.fullmatch(r"\| [\w.-]+/[\w.-]+, [\w.-]+/[\w.-]+", name) for name in names)


def test_most_of_the_public_pairs_are_usable() -> None:
    """`dami build` takes at least 36 pairs; int4 weights alone and two architectures are never among them."""
    usable = [row for row, line in zip(ROWS, LINES[2:], strict=True) if " | yes" in line.split("` | ")[1]]
    assert len(usable) >= 36
    assert not [row.id for row in usable if {"int4", "other"} & set(row.twists)]
