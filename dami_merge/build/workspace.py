"""The output folder of a build: finished variants, and the hidden folder of work in progress.

OUT/{variant}/            finished variants, each put there in one step
OUT/dami_family.json      the manifest: it lists finished variants only
OUT/.dami_build/          the lock, the journal, and variants in the making
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dami_merge.build.build_journal import BuildJournal
from dami_merge.build.layout import INDEX
from dami_merge.files.locking import locked
from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, Family, load_family
from dami_router.shared.durable import sync

__all__ = ["Workspace", "open_workspace", "remove_traces"]

_WORK = ".dami_build"
_LOCK = "lock"
_JOURNAL = "journal.jsonl"
_OLD = "~old"  # no variant's id ends like this


class Workspace:
    """The folders of one build."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out / _WORK
        self.lock = self.work / _LOCK
        self.journal = BuildJournal(self.work / _JOURNAL)

    def finished(self, variant: str) -> Path:
        """Return where a finished variant is, or will be."""
        return self.out / variant

    def partial(self, variant: str) -> Path:
        """Return where a variant is in the making."""
        return self.work / variant

    def manifest(self) -> Family | None:
        """Return the manifest that is there; None where there is none, or a damaged one."""
        try:
            return load_family(self.out / MANIFEST)
        except DamiError:
            return None

    def check_own(self, variants: Iterable[str], name: str) -> None:
        """Refuse to work beside another family, or over folders that no build made."""
        manifest = self.manifest()
        if manifest is not None and manifest.name != name:
            raise MisuseError(
                f"{self.out}: holds the family {manifest.name}; this recipe makes {name}",
                hint="give a folder of its own to each family",
            )
        listed = {variant.id for variant in manifest.variants} if manifest else set()
        for variant in variants:
            folder = self.finished(variant)
            if folder.exists() and variant not in listed and not self.journal.knows(variant):
                raise MisuseError(
                    f"{folder}: already there, and not made by `dami build`; refusing to overwrite it",
                    hint="give a new folder, or move it away",
                )

    def sweep(self, variants: set[str]) -> None:
        """Remove what a killed build left and no build will take up: small files begun, replaced variants, other λ."""
        for path in self.work.glob("*.tmp"):
            path.unlink()
        for path in self.work.glob("*/"):
            replaced = path.name.endswith(_OLD) and self.finished(path.name.removesuffix(_OLD)).exists()
            if replaced or (path.name not in variants and not path.name.endswith(_OLD)):
                shutil.rmtree(path)

    def adopt(self, variant: str, files: Iterable[str]) -> Path:
        """Make the place for a variant in the making and link its good finished files into it."""
        partial = self.partial(variant)
        partial.mkdir(exist_ok=True)
        for file in files:
            if not (partial / file).exists():
                with contextlib.suppress(OSError):  # it is made again, then
                    (partial / file).hardlink_to(self.finished(variant) / file)
        return partial

    def clean(self, variant: str, good: Iterable[str]) -> None:
        """Remove from a variant in the making everything but the given weight files."""
        keep = set(good)
        partial = self.partial(variant)
        for path in partial.iterdir() if partial.is_dir() else ():
            if path.name not in keep:
                path.unlink()
        if self.finished(variant).exists():
            shutil.rmtree(self._old(variant), ignore_errors=True)

    def publish(self, variant: str, companions: Mapping[str, bytes], weights: Iterable[str]) -> None:
        """Put a variant whose weights are complete to its place, in one step."""
        partial, finished, old = self.partial(variant), self.finished(variant), self._old(variant)
        for name, content in companions.items():
            _write(partial / name, content)
        if finished.exists():
            _carry_over(finished, partial, {*companions, *weights})
            shutil.rmtree(old, ignore_errors=True)
            sync(partial)
            finished.rename(old)
        else:
            sync(partial)
        partial.rename(finished)
        sync(self.out)
        shutil.rmtree(old, ignore_errors=True)

    def _old(self, variant: str) -> Path:
        return self.work / f"{variant}{_OLD}"


@contextmanager
def open_workspace(out: Path) -> Iterator[Workspace]:
    """Make the output folder ready for a build and hold its lock; the journal is read under the lock.

    Raises MisuseError or FailureError where it cannot be a folder, FailureError while another build holds it.
    """
    if out.exists() and not out.is_dir():
        raise MisuseError(f"{out}: is a file; expected a folder for the family")
    try:
        (out / _WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailureError(f"{out}: cannot be written: {error.strerror}") from None
    with locked(out / _WORK / _LOCK, out):
        yield Workspace(out)


def remove_traces(out: Path) -> None:
    """Remove the folder of a build that failed before its first finished file."""
    work = out / _WORK
    if (work / _JOURNAL).exists():
        return
    for path in (work / _LOCK, *work.glob("*/"), work, out):
        try:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        except OSError:
            return


def free_bytes(path: Path) -> int:
    """Return how many bytes this user can still write beside `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _carry_over(finished: Path, partial: Path, ours: set[str]) -> None:
    # What others put there (a README, scores) stays; weights of an earlier layout and code do not.
    for path in finished.iterdir():
        ours_once = path.suffix in (".safetensors", ".py") or path.name == INDEX
        if path.is_file() and path.name not in ours and not ours_once and not (partial / path.name).exists():
            shutil.copy2(path, partial / path.name)
            sync(partial / path.name)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
