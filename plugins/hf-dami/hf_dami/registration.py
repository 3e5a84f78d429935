"""Registration of a pip-installed hf-dami with `hf`, without GitHub.

`hf` 2.4 looks for extensions only in folders `hf-NAME` under ~/.local/share/hf/extensions, whose
manifest.json names the executable. `hf extensions install` fills one from a repository on GitHub; this
module fills it from the installed package. `hf extensions remove dami` undoes either.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["FOLDER", "OWNER", "RegistrationError", "register"]

FOLDER = Path("~/.local/share/hf/extensions/hf-dami")
OWNER = "_local"
"""Not a valid GitHub account name, so `hf extensions update` cannot replace our code with that of others."""

_NEVER = 4102444800  # the year 2100


class RegistrationError(Exception):
    """The extension cannot be registered; the message has the fix."""


def register() -> Path:
    """Write the manifest atomically and return its path.

    Raises RegistrationError if our executable is missing, or `dami` is an extension from another source.
    """
    executable = shutil.which("hf-dami", path=sysconfig.get_path("scripts"))
    if executable is None:
        raise RegistrationError("the executable hf-dami is not beside this Python\n  hint: pip install hf-dami here")
    folder = FOLDER.expanduser()
    source = _source(folder)
    if source not in (None, f"{OWNER}/hf-dami"):
        raise RegistrationError(
            f"the extension `dami` is installed from {source}\n  hint: `hf extensions remove dami` first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "manifest.json", json.dumps(_manifest(executable), indent=2, sort_keys=True))
    # The state of `hf`'s daily check on GitHub: nothing found, and never check again.
    _write(folder / ".latest_commit", "")
    os.utime(folder / ".latest_commit", (_NEVER, _NEVER))
    return folder / "manifest.json"


def _source(folder: Path) -> str | None:
    """Return the source of the extension in a folder; None for an empty or missing folder."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return str(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["repo_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown source"


def _manifest(executable: str) -> dict[str, str | None]:
    return {
        "owner": OWNER,
        "repo": "hf-dami",
        "repo_id": f"{OWNER}/hf-dami",
        "short_name": "dami",
        "executable_path": str(Path(executable).absolute()),
        "type": "python",
        "installed_at": datetime.now(UTC).isoformat(),
        "description": "Merge and route between an Instruct and a Thinking model",
        "commit_sha": None,
    }


def _write(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    Path(temporary).replace(path)
