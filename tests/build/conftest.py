"""Fixtures of the builder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import FAMILY, Built, build
from support.pairs import Pair, make_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny Qwen3 pair with templates and generation configs of its own on either side. Read only."""
    return make_pair(tmp_path_factory.mktemp("build-pair"), layers=3)


@pytest.fixture
def family(tmp_path: Path, pair: Pair) -> Built:
    """A family of five variants, freshly built."""
    return build(pair.recipe(0.5, dtype="bfloat16", family=FAMILY), tmp_path / "family")
