"""Every error that a user can meet.

DamiError
├── MisuseError      what the user wrote is wrong: exit code 2
│   └── RecipeError  ... in a YAML file, with the line
└── FailureError     the input was understood, but it cannot be done: exit code 1
    └── CheckpointError  ... because of a model's files
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["CheckpointError", "DamiError", "FailureError", "MisuseError", "RecipeError"]


class DamiError(Exception):
    """An error whose message is written for the user, with an optional way out."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class MisuseError(DamiError):
    """The command line, a file or an argument says something that has no meaning."""

    exit_code = 2


class RecipeError(MisuseError):
    """A YAML file (recipe or configuration) is wrong; the message names file and line."""


class FailureError(DamiError):
    """The request is sound but cannot be carried out."""


class CheckpointError(FailureError):
    """A model's files are missing, damaged or do not fit together."""
