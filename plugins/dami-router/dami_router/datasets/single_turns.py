"""Single-turn chats: an optional system message and one user message, in the shape of OpenAI's `messages`."""

from __future__ import annotations

from typing import Any

from dami_router.errors import MisuseError

__all__ = ["single_turn", "text_of"]

_ONE_TURN = "an optional system message and one user message"
_HINT = "the correct answer may depend on earlier turns, which an estimator does not see: keep single-turn chats"
_SYSTEM = ("system", "developer")


def single_turn(messages: list[Any], where: str, column: str) -> tuple[str | None, Any]:
    """Return the system message, None if there is none, and the content of the user message.

    Raises MisuseError for any other conversation.
    """
    turns = [_turn(message, where, column) for message in messages]
    roles = [role for role, _ in turns]
    system = turns.pop(0)[1] if roles[:1] and roles[0] in _SYSTEM else None
    if [role for role, _ in turns] != ["user"]:
        found = ", ".join(roles[:6]) + (", …" if len(roles) > 6 else "") or "no message"
        raise MisuseError(f"{where}: `{column}` expects {_ONE_TURN}, found {found}", hint=_HINT)
    if system is not None and not isinstance(system, str):
        raise MisuseError(f"{where}: `{column}` expects a system message of text, found {system!r:.60}")
    return system or None, turns[0][1]


def text_of(content: Any) -> Any:
    """Return the text of a message's content, which may be a list of text parts; other content as it is."""
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "\n".join(part["text"] for part in content)
    return content


def _turn(message: Any, where: str, column: str) -> tuple[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise MisuseError(f"{where}: `{column}` expects messages with `role` and `content`, found {message!r:.60}")
    return message["role"][:20], text_of(message.get("content"))


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
