"""lm-evaluation-harness: `samples_TASK_DATE.jsonl`, written by `--log_samples`.

A line is one document under one filter: `doc`, `target`, `arguments`, `resps` (raw answers), `filter`, the names of its
`metrics` and their values. Token counts are not logged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dami_router.datasets.questions import QUERY_COLUMNS
from dami_router.datasets.single_turns import text_of
from dami_router.datasets.tables import JsonLines
from dami_router.errors import MisuseError
from dami_router.grading.answers import final_answer
from dami_router.imports.logged import ImportChoices, LoggedAnswer, need_text, plain_score
from dami_router.shared.suggestions import amount, did_you_mean, listed

__all__ = ["LmEvalLog"]

_TASK = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d{2}-\d{2}T[\d.:-]+)?\.jsonl(?:\.gz)?")
_NO_METRIC = frozenset({
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash",
})  # fmt: skip


class LmEvalLog:
    """Samples of lm-evaluation-harness."""

    name = "lm-evaluation-harness"

    def fits(self, path: Path, first: Any) -> bool:  # noqa: ARG002
        """A row has `doc`, `doc_id` and `resps`."""
        return isinstance(first, dict) and {"doc", "doc_id", "resps"} <= first.keys()

    def read(self, path: Path, choices: ImportChoices) -> Iterator[LoggedAnswer]:
        """Yield the answers of one filter, with the values of one metric."""
        named = _TASK.fullmatch(path.name)
        task = named["task"] if named else path.name.split(".")[0]
        rows = list(JsonLines(path, str(path)).rows(()))
        filter_ = _filter(path, rows, choices)
        kept = [(where, row) for where, row in rows if filter_ is None or row.get("filter") == filter_]
        metric = _metric(path, kept, choices)
        column = _column(path, kept[0][1], choices)
        choices.note(
            f"{path}: {amount(len(kept), 'answer')}" + (f", filter `{filter_}`" if filter_ else "")
            + (f", metric `{metric}`" if metric else ", no metric")
            + (f"; queries: `doc.{column}`" if column else "; queries: the prompt")
        )  # fmt: skip
        for where, row in kept:
            yield _answer(where, row, task, path.parent.name, metric, column)


def _answer(
    where: str, row: Mapping[str, Any], task: str, model: str, metric: str | None, column: str | None
) -> LoggedAnswer:
    prompt, system = _prompt(row)
    query = row["doc"].get(column) if column and isinstance(row.get("doc"), dict) else prompt
    score = plain_score(row.get(metric)) if metric else None
    if metric and score is None:
        raise MisuseError(f"{where}: `{metric}` expects a score from 0 to 1, found {row.get(metric)!r:.60}")
    target = row.get("target")
    expected = (final_answer(target),) if isinstance(target, str) and target.strip() else ()
    id = row.get("doc_id")
    if isinstance(id, bool) or not isinstance(id, int | str):
        raise MisuseError(f"{where}: `doc_id` expects a number or text, found {id!r:.60}")
    return LoggedAnswer(
        where, f"{task}/{id}", need_text(text_of(query), where, f"doc.{column}" if column else "arguments"), model,
        _texts(row.get("resps"), where), system, score=score, expected=expected,
    )  # fmt: skip


def _texts(resps: Any, where: str) -> tuple[str, ...]:
    """Return the samples of the only request; log-likelihoods of several choices are no answers."""
    samples = resps[0] if isinstance(resps, list) and len(resps) == 1 and isinstance(resps[0], list) else None
    if samples and all(isinstance(text, str) for text in samples):
        return tuple(samples)
    raise MisuseError(
        f"{where}: `resps` has log-likelihoods, not one generated answer; nothing was thought and no token counts",
        hint="run a task that generates (`output_type: generate_until`), such as mmlu_generative for mmlu",
    )


def _filter(path: Path, rows: list[tuple[str, Mapping[str, Any]]], choices: ImportChoices) -> Any:
    known = list(dict.fromkeys(str(row["filter"]) for _, row in rows if isinstance(row.get("filter"), str)))
    if not known:
        if choices.filter:
            raise MisuseError(f"{path}: has no filters", hint="omit --filter")
        return None
    if choices.filter is None and len(known) == 1:
        return known[0]
    if choices.filter not in known:
        found = f"no filter `{choices.filter}`" if choices.filter else "several filters"
        error = MisuseError(f"{path}: {found}: {listed(f'`{x}`' for x in known)}", hint="choose one with --filter")
        choices.problem(error)
        return known[0]
    return choices.filter


def _metric(path: Path, rows: list[tuple[str, Mapping[str, Any]]], choices: ImportChoices) -> str | None:
    first = rows[0][1]
    stated = first.get("metrics")
    names = [x for x in stated if isinstance(x, str)] if isinstance(stated, list) else sorted(set(first) - _NO_METRIC)
    known = [name for name in names if plain_score(first.get(name)) is not None]
    if choices.metric:
        if choices.metric not in known:
            near = did_you_mean(choices.metric, known)
            hint = (
                f"did you mean `{near}`?" if near else f"it has {listed(f'`{x}`' for x in known) if known else 'none'}"
            )
            choices.problem(MisuseError(f"{path}: no metric `{choices.metric}` with a score from 0 to 1", hint=hint))
            return known[0] if known else None
        return choices.metric
    if len(known) > 1:
        several = f"{path}: several metrics: {listed(f'`{x}`' for x in known)}"
        choices.problem(MisuseError(several, hint="choose one with --metric"))
    return known[0] if known else None


def _column(path: Path, row: Mapping[str, Any], choices: ImportChoices) -> str | None:
    doc = row.get("doc")
    fields = list(doc) if isinstance(doc, dict) else []
    if choices.column:
        if choices.column not in fields:
            raise MisuseError(f"{path}: `doc` has no field `{choices.column}` (--query-column)", hint=_fields(fields))
        return choices.column
    by_name = {name.lower(): name for name in reversed(fields) if isinstance(doc, dict) and isinstance(doc[name], str)}
    return next((by_name[name] for name in QUERY_COLUMNS if name in by_name), None)


def _fields(fields: list[str]) -> str:
    return f"it has {listed(f'`{name:.60}`' for name in fields[:20])}" if fields else "it has no fields"


def _prompt(row: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return the prompt's text, and the system message if it is a chat: its last user message, or the whole text."""
    arguments = row.get("arguments")
    if isinstance(arguments, dict):
        given = arguments.get("gen_args_0")
        first = given.get("arg_0") if isinstance(given, dict) else None
    else:  # as older versions log it
        given = arguments[0] if isinstance(arguments, list) and arguments else None
        first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, list) and len(first) == 1 and isinstance(first[0], str):
        first = first[0]  # a chat is logged as JSON in a list
    if not isinstance(first, str):
        return None, None
    try:
        chat = json.loads(first) if first.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        chat = None
    if not isinstance(chat, list) or not all(isinstance(turn, dict) for turn in chat):
        return first, None
    said = {str(turn.get("role")): text_of(turn.get("content")) for turn in chat}
    system = said.get("system")
    return said.get("user"), system if isinstance(system, str) and system.strip() else None
