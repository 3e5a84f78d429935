"""One merge through mergekit that either completes or leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.shared.durable import sync

__all__ = ["merge_recipe", "merge_text", "whole_folder"]


def merge_recipe(config: Path, out: Path, options: Sequence[str] = ()) -> None:
    """Merge a recipe file into the new folder `out` with `mergekit-yaml`'s own code and options.

    Raises MisuseError if `out` exists and is not empty or an option is unknown, FailureError if mergekit fails. `out`
    is then unchanged.
    """
    run_command = _adapter().run_command
    whole_folder(out, lambda folder: _with_clear_errors(lambda: run_command([str(config), str(folder), *options])))


def merge_text(recipe: str, out: Path) -> None:
    """Merge a recipe's text into the new folder `out`, with mergekit's own defaults and no progress bars."""
    run_merge = _adapter().run_merge
    whole_folder(out, lambda folder: _with_clear_errors(lambda: run_merge(recipe, folder)))


def _adapter() -> ModuleType:
    try:
        import dami_merge.mergekit_adapter as adapter
    except ImportError as error:
        raise FailureError(f"mergekit cannot be imported: {error}", hint="pip install 'mergekit>=0.1.5,<0.2'") from None
    return adapter


def _with_clear_errors(merge: Callable[[], None]) -> None:
    import click

    try:
        merge()
    except click.ClickException as error:
        raise MisuseError(f"mergekit-yaml: {error.format_message()}", hint="run `mergekit-yaml --help`") from None
    except DamiError:
        raise
    except Exception as error:
        raise FailureError(f"mergekit failed: {type(error).__name__}: {error}", hint=_way_out(error)) from error


def _way_out(error: Exception) -> str:
    if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled"):
        return (
            "without a network, write local endpoints as ./folder/name or absolute paths: mergekit asks"
            " the Hub about `folder/name` when it writes the model card (or pass --no-write-model-card)"
        )
    return "run `dami check` on the recipe; DAMI_DEBUG=1 shows mergekit's traceback"


def whole_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then move it to `out` in one step.

    `write` gets a folder with the name of `out`, in a temporary folder beside it. Raises MisuseError if `out` exists
    and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MisuseError(
            f"{out}: already exists, and is not overwritten", hint="name a new folder, or remove this one first"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise FailureError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        folder = temporary / out.name
        folder.mkdir()
        write(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                sync(path)
        if out.exists():
            out.rmdir()
        folder.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
