"""From the rows of a dataset to questions: find the columns of query and answer, and give each question an id.

    dataset = load_dataset("questions.jsonl")
    dataset = load_dataset("openai/gsm8k", config="main", split="test", limit=200)

A dataset is untrusted input: sizes are bounded, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dami_router.datasets.finding import find_tables
from dami_router.datasets.single_turns import single_turn
from dami_router.datasets.tables import Table
from dami_router.errors import MisuseError
from dami_router.grading.answers import final_answer
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Dataset", "Question", "load_dataset"]

QUERY_COLUMNS = ("query", "question", "problem", "prompt", "instruction", "input", "text", "messages", "conversation")
ANSWER_COLUMNS = ("expected", "answer", "final_answer", "target", "solution")
ID_COLUMNS = ("query_id", "id", "unique_id")

_MAX_QUESTIONS = 1_000_000
_MAX_TEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """A query with its id. `expected` is the expected answer, None if the dataset has none.

    `system` is the query's own system message, from a row of messages.
    For a worked solution, `expected` is the final answer: after `####`, or in the last `\\boxed{}`.
    """

    id: str
    text: str
    expected: str | None
    where: str
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]] | None:
        """The system message and the query as a chat; None if there is no system message."""
        if self.system is None:
            return None
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Dataset:
    """Questions in the order of their rows, and the columns that they come from."""

    name: str
    questions: tuple[Question, ...]
    query_column: str
    answer_column: str | None


def load_dataset(
    place: str, *, query_column: str | None = None, answer_column: str | None = None, config: str | None = None,
    split: str | None = None, limit: int | None = None,
) -> Dataset:  # fmt: skip
    """Read questions from a JSONL, CSV, TSV or parquet file (.gz too, except parquet), or a Hub dataset's id.

    Columns are found by their usual names by default. Ids come from a column `query_id`, `id` or
    `unique_id` if its values are complete and each has one text, and otherwise depend only on the text. `config` and
    `split` choose among a Hub dataset's files; `limit` keeps the first rows.

    Raises MisuseError with file and line for invalid input, FailureError if the download fails.
    """
    tables = find_tables(place, config, split)
    columns = tables[0].columns
    query = _column(columns, query_column, QUERY_COLUMNS, place, "--query-column")
    if query is None:
        hint = "name it with --query-column"
        raise MisuseError(f"{place}: no column of queries in {listed(_quoted(columns))}", hint=hint)
    answer = _column([c for c in columns if c != query], answer_column, ANSWER_COLUMNS, place, "--answer-column")
    ids = [c for c in ID_COLUMNS if c in columns]
    rows = list(_rows(tables, query, answer, ids))
    if not rows:
        raise MisuseError(f"{place}: no rows")
    questions = _named(rows)
    return Dataset(place, tuple(questions[:limit]), query, answer)


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    text: str
    system: str | None
    expected: str | None
    ids: tuple[str | None, ...]


def _rows(tables: Sequence[Table], query: str, answer: str | None, ids: Sequence[str]) -> Iterator[_Row]:
    wanted = [query, *([answer] if answer else []), *ids]
    count = 0
    for table in tables:
        for where, values in table.rows(wanted):
            count += 1
            if count > _MAX_QUESTIONS:
                raise MisuseError(f"{where}: more than {_MAX_QUESTIONS:,} rows", hint="use a smaller part of it")
            expected = (
                None if answer is None or values.get(answer) is None else _expected(values[answer], where, answer)
            )
            system, text = _query(values.get(query), where, query)
            yield _Row(where, text, system, expected, tuple(_id(values.get(c)) for c in ids))


def _named(rows: Sequence[_Row]) -> list[Question]:
    """Give ids to the questions: from a column with complete and distinct values, or from their text.

    Rows with one id and one text are one question: rollouts have a row for each answer.
    """
    for column in range(len(rows[0].ids)):
        found: dict[str, _Row] = {}
        for row in rows:
            first = found.setdefault(row.ids[column] or "", row)
            if row.ids[column] is None or (first.text, first.system) != (row.text, row.system):
                break
        else:
            return [_question(id, row) for id, row in found.items()]
    seen: Counter[str] = Counter()
    questions = []
    for row in rows:
        told = row.text if row.system is None else f"{row.system}\0{row.text}"
        id = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        seen[id] += 1
        id = id if seen[id] == 1 else f"{id}-{seen[id]}"
        questions.append(_question(id, row))
    return questions


def _question(id: str, row: _Row) -> Question:
    return Question(id, row.text, row.expected, row.where, row.system)


def _column(columns: Sequence[str], given: str | None, usual: Sequence[str], place: str, option: str) -> str | None:
    if given is not None:
        if given in columns:
            return given
        near = did_you_mean(given, columns)
        hint = f"did you mean `{near}`?" if near else f"it has {listed(_quoted(columns))}"
        raise MisuseError(f"{place}: no column `{given}` ({option})", hint=hint)
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _quoted(columns: Sequence[str]) -> list[str]:
    shown = [f"`{column:.60}`" for column in columns[:20]]
    return [*shown, f"{len(columns) - 20} more"] if len(columns) > 20 else shown or ["none"]


def _query(value: Any, where: str, column: str) -> tuple[str | None, str]:
    """Return a query's system message, if it is a chat, and its text."""
    system, text = single_turn(value, where, column) if isinstance(value, list) else (None, value)
    return system and _text(system, where, column), _text(text, where, column)


def _text(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MisuseError(f"{where}: `{column}` expects text, found {_shown(value)}")
    if len(value) > _MAX_TEXT:
        raise MisuseError(f"{where}: `{column}` has {len(value):,} characters; the limit is {_MAX_TEXT:,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise MisuseError(f"{where}: `{column}` has a lone surrogate, half of a character") from None
    return value


def _expected(value: Any, where: str, column: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first: an integer of a thousand digits does not fit a float, and NaN compares false.
    if number and abs(value) < 10**18:
        return str(value)
    if isinstance(value, str) and value.strip():
        return final_answer(_text(value, where, column))
    raise MisuseError(f"{where}: `{column}` expects text or a number, found {_shown(value)}")


def _id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "a number that is too large"
    return "nothing" if value is None or value == "" else f"{value!r:.60}"
