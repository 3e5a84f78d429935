"""Fixtures that all tests of dami-merge share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.pairs import Pair, make_pair

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny Qwen3 pair: 4 layers, tied embeddings, bf16. Read only."""
    return make_pair(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def recipe_file(tmp_path: Path, qwen3: Pair) -> Path:
    """A recipe file for the tiny Qwen3 pair."""
    path = tmp_path / "recipe.yml"
    path.write_text(qwen3.recipe(0.5, dtype="bfloat16"))
    return path
