"""OpenAI's batch files, as `vllm run-batch` writes them: a line is one response under its `custom_id`.

Queries and expected answers come from a dataset whose ids are the `custom_id`s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dami_router.datasets.single_turns import text_of
from dami_router.datasets.tables import JsonLines
from dami_router.errors import MisuseError
from dami_router.imports.logged import ImportChoices, LoggedAnswer, plain_tokens, shown_value
from dami_router.messages.thinking import CLOSE, OPEN

__all__ = ["BatchFile"]


class BatchFile:
    """Results of a batch of chat or text completions."""

    name = "batch file"

    def fits(self, path: Path, first: Any) -> bool:  # noqa: ARG002
        """A row has `custom_id` and `response`."""
        return isinstance(first, dict) and {"custom_id", "response"} <= first.keys()

    def read(self, path: Path, choices: ImportChoices) -> Iterator[LoggedAnswer]:
        """Yield the answers; failed requests are skipped, and reported once."""
        if not choices.questions:
            raise MisuseError(
                f"{path}: a batch file has neither queries nor expected answers",
                hint="give the questions with --dataset; their ids are the batch's `custom_id`",
            )
        failed: Counter[str] = Counter()
        for where, row in JsonLines(path, str(path)).rows(()):
            body = _body(row)
            if body is None:
                failed[str(row.get("custom_id"))] += 1
                continue
            yield from _answers(where, str(row.get("custom_id")), body, choices)
        if failed:
            choices.note(f"{path}: {failed.total():,} requests failed, such as `{next(iter(failed)):.60}`; skipped")


def _body(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the response's body; None if the request failed."""
    response = row.get("response")
    if row.get("error") or not isinstance(response, dict) or response.get("status_code", 200) != 200:
        return None
    body = response.get("body", response)
    return body if isinstance(body, dict) and isinstance(body.get("choices"), list) and body["choices"] else None


def _answers(where: str, id: str, body: Mapping[str, Any], choices: ImportChoices) -> Iterator[LoggedAnswer]:
    question = choices.questions.get(id)
    if question is None:
        raise MisuseError(f"{where}: the dataset has no question with the id `{id:.60}`", hint="see --dataset")
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if tokens is not None and plain_tokens(tokens) is None:
        raise MisuseError(f"{where}: `completion_tokens` expects a number, found {shown_value(tokens)}")
    many = body["choices"]
    for sample, choice in enumerate(many):
        text, thought = _text(choice, where)
        finish = choice.get("finish_reason")
        yield LoggedAnswer(
            where, question.id, question.text, str(body.get("model") or ""), (text,), question.system,
            # The usage counts all answers of a request together.
            None if tokens is None else tokens / len(many), None,
            () if question.expected is None else (question.expected,), finish if isinstance(finish, str) else None,
            sample if len(many) > 1 else None, thought,
        )  # fmt: skip


def _text(choice: Any, where: str) -> tuple[str, bool]:
    """Return an answer with its thoughts, and whether these were in a field of their own."""
    message = choice.get("message", choice) if isinstance(choice, dict) else None
    content = text_of(message.get("content", message.get("text"))) if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise MisuseError(f"{where}: not a completion: its content is not text")
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    thought = isinstance(thoughts, str) and bool(thoughts)
    text = f"{OPEN}{thoughts}{CLOSE}{content or ''}" if thought else content or ""
    return text, thought
