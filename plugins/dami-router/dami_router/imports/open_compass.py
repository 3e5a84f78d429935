"""OpenCompass: `predictions/MODEL/DATASET.json`, or the details in `results/MODEL/DATASET.json`.

Predictions have `origin_prompt`, `prediction` and `gold`, and `res_length` with `--dump-res-length`; details, which
`--dump-eval-details` writes, have `prompt`, `origin_prediction`, `references` and `correct`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError
from dami_router.grading.answers import final_answer
from dami_router.imports.logged import (
    ImportChoices,
    LoggedAnswer,
    need_text,
    plain_score,
    plain_tokens,
    shown_value,
)
from dami_router.shared.suggestions import amount

__all__ = ["OpenCompassLog", "whole_object"]

_MAX_BYTES = 1 << 30


class OpenCompassLog:
    """Predictions or evaluation details of OpenCompass."""

    name = "OpenCompass"

    def fits(self, path: Path, first: Any) -> bool:  # noqa: ARG002
        """The file is one object: items by number, or `details` with such items."""
        items = _items(first)
        item = next(iter(items.values()), None)
        return isinstance(item, dict) and ("prediction" in item or "origin_prediction" in item)

    def read(self, path: Path, choices: ImportChoices) -> Iterator[LoggedAnswer]:
        """Yield the answers."""
        items = _items(whole_object(path))
        choices.note(f"{path}: {amount(len(items), 'answer')}; queries: the last HUMAN part of the prompt")
        for number, item in items.items():
            where = f"{path}: item {number}"
            if not isinstance(item, dict):
                raise MisuseError(f"{where}: expected an object, found {shown_value(item)}")
            yield _answer(where, f"{path.stem}/{number}", item, path.parent.name)


def whole_object(path: Path) -> Any:
    """Return the content of a JSON file with or without a byte-order mark; None if it is not JSON."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MisuseError(f"{path}: more than {_MAX_BYTES >> 30} GiB")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FailureError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        return None


def _items(data: Any) -> Mapping[str, Any]:
    found = data.get("details", data) if isinstance(data, dict) else {}
    return {key: item for key, item in found.items() if key.isdigit()} if isinstance(found, dict) else {}


def _answer(where: str, id: str, item: Mapping[str, Any], model: str) -> LoggedAnswer:
    system, query = _prompt(item.get("origin_prompt", item.get("prompt")))
    texts, gold = item.get("prediction", item.get("origin_prediction")), item.get("gold", item.get("references"))
    many = tuple(texts) if isinstance(texts, list) else (texts,)
    if not many or not all(isinstance(text, str) for text in many):
        raise MisuseError(f"{where}: the prediction expects text, found {shown_value(texts)}")
    score = plain_score(item.get("correct")) if "correct" in item else None
    if score is None and item.get("correct") is not None:
        raise MisuseError(f"{where}: `correct` expects true, false or a score, found {shown_value(item['correct'])}")
    return LoggedAnswer(
        where, id, need_text(query, where, "origin_prompt"), model,
        many, system,
        _length(item.get("res_length"), where), score,
        tuple(final_answer(str(x)) for x in (gold if isinstance(gold, list) else [gold]) if _plain(x)),
    )  # fmt: skip


def _length(value: Any, where: str) -> float | None:
    if value is None:
        return None
    many = [plain_tokens(x) for x in (value if isinstance(value, list) else [value])]
    known = [x for x in many if x is not None]
    if not known or len(known) < len(many):
        raise MisuseError(f"{where}: `res_length` expects a number of tokens, found {shown_value(value)}")
    return sum(known) / len(known)


def _plain(gold: Any) -> bool:
    return isinstance(gold, str | int | float) and not isinstance(gold, bool) and bool(str(gold).strip())


def _prompt(prompt: Any) -> tuple[str | None, Any]:
    """Return the system part and the last HUMAN part; a prompt of plain text is the query itself."""
    if not isinstance(prompt, list):
        return None, prompt
    parts = [(part.get("role"), part.get("prompt")) for part in prompt if isinstance(part, dict)]
    system = next((text for role, text in parts if role == "SYSTEM" and isinstance(text, str) and text.strip()), None)
    return system, next((text for role, text in reversed(parts) if role == "HUMAN"), None)
