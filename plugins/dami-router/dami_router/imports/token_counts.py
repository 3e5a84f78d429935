"""Token counts of logged answers, by the variants' own tokenizer (extra `tokens`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError

__all__ = ["TokenCounter"]

_FILE = "tokenizer.json"
_MAX_BYTES = 256 << 20


class TokenCounter:
    """Counts the tokens of texts; nothing is added around them, not even an end-of-text token."""

    def __init__(self, place: str) -> None:
        self._tokenizer = _load(_find(place), place)

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(one.ids) for one in found]


def _find(place: str) -> Path:
    """Return the file `tokenizer.json` in a folder, the file itself, or that of a model on the Hub."""
    path = Path(place).expanduser()
    if path.is_dir():
        path = path / _FILE
    if path.is_file():
        return path
    if path.is_absolute() or place.startswith((".", "~")) or place.endswith(".json") or path.name == _FILE:
        raise MisuseError(f"{path}: no such file", hint=f"expected a folder with {_FILE}, or a model on the Hub")
    from dami_router.manifest.hub_errors import told
    from dami_router.manifest.published import hub_api, parse_hub_id

    asked = parse_hub_id(place)
    try:
        return Path(hub_api().hf_hub_download(asked.id, _FILE, revision=asked.revision))
    except Exception as error:
        raise told(error, f"the tokenizer of {place}") from None


def _load(path: Path, place: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise FailureError("counting tokens needs tokenizers", hint="pip install 'dami-router[tokens]'") from None
    if path.stat().st_size > _MAX_BYTES:
        raise MisuseError(f"{path}: more than {_MAX_BYTES >> 20} MiB; expected a tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a plain Exception for a damaged file
        raise MisuseError(f"{place}: not a tokenizer: {error!s:.200}") from None
