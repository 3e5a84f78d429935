"""Every error that a user can see.

DamiError
├── MisuseError      the command line, a file or an argument is wrong: exit code 2
│   └── RecipeError  ... in a YAML file; the message has the line
└── FailureError     the input is valid, but the command failed: exit code 1
    └── CheckpointError  ... because of a model's files
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["CheckpointError", "DamiError", "FailureError", "MisuseError", "RecipeError"]


class DamiError(Exception):
    """An error with a message for the user, and an optional hint on how to fix it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class MisuseError(DamiError):
    """The command line, a file or an argument is wrong."""

    exit_code = 2


class RecipeError(MisuseError):
    """A YAML file (recipe or router.yml) is wrong; the message names file and line."""


class FailureError(DamiError):
    """The input is valid, but the command failed."""


class CheckpointError(FailureError):
    """A model's files are missing or damaged, or do not fit together."""
