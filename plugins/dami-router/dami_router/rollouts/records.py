"""Rollouts: graded answers of one variant to one query, one JSON object per line.

Required: `query_id`, `query`, `lambda`, `correct` (bool, or a score in [0, 1]), `tokens` (a mean may be fractional).
Optional: `model`, `answer`, `expected`, `latency_s`, `finish_reason`, `think`; `confidence` (in [0, 1]: the Instruct
variant's for this query, on any of its rows) and `probe_tokens` (what measuring it took, on the same row); `sample`
(0, 1, … if one variant answered a query several times); `system` (a system message before the query); `cap` (the
answer's limit of thinking tokens). Other fields are ignored, and reported once.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from dami_router.errors import MisuseError
from dami_router.shared.durable import write_atomically
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Rollout", "parse_rollout", "read_rollouts", "write_rollouts"]

_REQUIRED = ("query_id", "query", "lambda", "correct", "tokens")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One graded answer. `correct` is a score in [0, 1]; `tokens` counts every generated token.

    `cap`: the answer's thoughts were closed after this many tokens; None if they were not limited.
    """

    query_id: str
    query: str
    lambda_: float
    correct: float
    tokens: float
    model: str | None = None
    answer: str | None = None
    expected: str | None = None
    latency_s: float | None = None
    finish_reason: str | None = None
    think: bool | None = None
    confidence: float | None = None
    probe_tokens: float | None = None
    sample: int | None = None
    system: str | None = None
    cap: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the rollout as in a file, without the unknown optional fields."""
        data = {key.rstrip("_"): value for key, value in asdict(self).items() if value is not None}
        data["tokens"] = int(self.tokens) if self.tokens == int(self.tokens) else self.tokens
        return {**data, "correct": bool(self.correct) if self.correct in (0.0, 1.0) else self.correct}


_FIELDS = tuple(field.name.rstrip("_") for field in fields(Rollout))
_WORDS = ("query", "model", "answer", "expected", "finish_reason", "system")
_LAMBDA_DIGITS = 6
_SHOWN = 10
_MOST_UNKNOWN = 1000


def read_rollouts(path: Path, note: Callable[[str], None] = lambda _: None) -> Iterator[Rollout]:
    """Yield the rollouts of a .jsonl or .jsonl.gz file, with or without a byte-order mark.

    `note` is told once, after the last row, which unknown fields were ignored. Raises MisuseError with file and line
    for an invalid rollout: a missing field, λ outside [0, 1], a score outside [0, 1], a negative token count.
    """
    unknown: dict[str, str] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else _plain(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse_rollout(line, f"{path}:{number}", unknown)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MisuseError(f"{path}: cannot be read as rollouts: {reason}") from None
    except UnicodeDecodeError:
        raise MisuseError(f"{path}: not UTF-8 text; expected JSON lines") from None
    if unknown:
        note(_ignored(unknown))


def _plain(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig")


def _ignored(unknown: dict[str, str]) -> str:
    """Return the sentence about ignored fields; a field that is nearly a known one is probably misspelled."""
    first = next(iter(unknown.values()))
    names = [f"`{name:.60}`" for name in list(unknown)[:_SHOWN]]
    names += [f"{len(unknown) - _SHOWN} more"] if len(unknown) > _SHOWN else []
    near = [f"did you mean `{known}`?" for name in list(unknown)[:_SHOWN] if (known := did_you_mean(name, _FIELDS))]
    return " ".join([f"{first}: unknown fields are ignored: {', '.join(names)}", *(f"({text})" for text in near[:1])])


def write_rollouts(rollouts: Iterable[Rollout], path: Path) -> None:
    """Write rollouts to a .jsonl or .jsonl.gz file atomically; the same rollouts give the same bytes."""
    text = "".join(json.dumps(r.as_dict(), separators=(",", ":"), ensure_ascii=False) + "\n" for r in rollouts)
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0) if path.suffix == ".gz" else text.encode()
    write_atomically(path, data)


def parse_rollout(line: str, where: str, unknown: dict[str, str] | None = None) -> Rollout:
    """Parse one line; raises MisuseError, beginning with `where`, if it is not a rollout.

    Unknown fields are left out, and added to `unknown` with the place where each is first.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise MisuseError(f"{where}: not a JSON object") from None
    if not isinstance(data, dict):
        raise MisuseError(f"{where}: not a JSON object")
    if missing := [key for key in _REQUIRED if key not in data]:
        raise MisuseError(f"{where}: lacks {listed(missing)}", hint=_missing(missing, data))
    for key in [key for key in data if key not in _FIELDS]:
        del data[key]
        if unknown is not None and len(unknown) < _MOST_UNKNOWN:
            unknown.setdefault(key, where)
    # Rounded, so that 0.1 + 0.2 and 0.3 are one variant.
    lambda_ = round(_number(data.pop("lambda"), "lambda", where, high=1.0), _LAMBDA_DIGITS)
    correct = _number(data.pop("correct"), "correct", where, high=1.0, true=True)
    tokens = _number(data.pop("tokens"), "tokens", where)
    _check_optional(data, where)
    data["query_id"] = str(data["query_id"])
    return Rollout(lambda_=lambda_, correct=correct, tokens=tokens, **data)


def _missing(missing: list[str], data: dict[str, Any]) -> str | None:
    near = next((found for key in missing if (found := did_you_mean(key, set(data) - set(_FIELDS)))), None)
    if near is not None:
        return f"is `{near}` it?"
    return "these answers are not graded: add `correct` to each" if missing == ["correct"] else None


def _check_optional(data: dict[str, Any], where: str) -> None:
    if not isinstance(data["query_id"], str | int):
        raise MisuseError(f"{where}: `query_id` expects text, found {data['query_id']!r:.40}")
    if data["query"] is None:
        raise MisuseError(f"{where}: `query` expects text, found null")
    for field in _WORDS:
        if data.get(field) is not None and not isinstance(data[field], str):
            raise MisuseError(f"{where}: `{field}` expects text, found {data[field]!r:.40}")
    for field, high in (
        ("latency_s", math.inf),
        ("confidence", 1.0),
        ("probe_tokens", math.inf),
        ("sample", math.inf),
        ("cap", math.inf),
    ):
        if data.get(field) is not None:
            _number(data[field], field, where, high=high)
    for field in ("sample", "cap"):
        if data.get(field) is not None and data[field] != int(data[field]):
            raise MisuseError(f"{where}: `{field}` expects a whole number, found {data[field]}")
    if not isinstance(data.get("think"), bool | None):
        raise MisuseError(f"{where}: `think` expects true or false, found {data['think']!r:.40}")


def _number(value: object, field: str, where: str, *, high: float = math.inf, true: bool = False) -> float:
    """Return a number in [0, high]; with `true`, true and false count as 1 and 0."""
    number = isinstance(value, int | float) and (true or not isinstance(value, bool))
    # Compared before conversion: an integer of a thousand digits does not fit a float.
    if number and 0 <= value <= min(high, 1e18):  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    expected = "a number in [0, 1]" if high == 1.0 else "a number of at least 0"
    raise MisuseError(f"{where}: `{field}` expects {expected}, found {_shown(value)}")


def _shown(value: object) -> str:
    return "a number that is too large" if isinstance(value, int) and abs(value) > 10**18 else f"{value!r:.40}"
