"""The use case `dami pull`: a family from the Hub, every file checked before it gets its name.

The manifest is untrusted: its names are checked when it is read (no path leaves the
folder), files that could hold code are refused, files are taken only from the repositories that
the user named, and their announced sizes must fit on the disk before the first one is fetched.

OUT/{variant}/            finished variants
OUT/dami_family.json      lists finished variants only
OUT/.dami_pull/           variants on their way: downloads, and files that passed the check
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.files.hashing import file_sha256
from dami_merge.files.locking import locked
from dami_merge.files.progress import Progress
from dami_merge.hub.local_paths import without_local_paths
from dami_merge.hub.threads import guarded, pool
from dami_router.errors import CheckpointError, DamiError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, Family, Variant, load_family
from dami_router.manifest.hub_collections import Published
from dami_router.manifest.hub_errors import told
from dami_router.manifest.published import find_published, hub_api
from dami_router.shared.durable import sync, write_atomically

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PullReport", "pull_family"]

_WORK = ".dami_pull"
_CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".so", ".sh", ".exe", ".npy", ".npz", ".h5")
_MAX_SMALL = 256 << 20  # bytes of a file that is no weight file


@dataclass(frozen=True)
class PullReport:
    """What a pull did: the variants fetched now, and those that were here already."""

    manifest: Family
    fetched: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_fetched: int


def pull_family(
    name: str,
    out: Path,
    *,
    jobs: int = 4,
    progress: Progress = lambda total: nullcontext(lambda count: None),  # noqa: ARG005
) -> PullReport:
    """Fetch the variants that `name` means into `out`; after a failure, run it again and it goes on.

    A variant gets its folder only when all of its files match the manifest's sha256. Raises
    MisuseError for a wrong id or folder, FailureError where the Hub fails, CheckpointError where a
    manifest or file is invalid.
    """
    family, published = find_published(name)
    for place in published:
        _check_names(place)
    _check_folder(out, family)
    work = out / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / "lock", out):
            return _Pull(hub_api(), family, out, work, jobs).run(published, progress)
    except DamiError:
        raise
    except OSError as error:
        raise told(error, str(out), resumes=True) from None


@dataclass
class _Pull:
    api: HfApi
    family: Family
    out: Path
    work: Path
    jobs: int

    def run(self, published: Sequence[Published], progress: Progress) -> PullReport:
        kept = [p for p in published if self._is_here(p.variant)]
        todo = [p for p in published if p not in kept]
        lacking = {p.variant.id: self._lacking(p.variant) for p in todo}
        sizes = {p.variant.id: self._sizes(p, lacking[p.variant.id]) for p in todo}
        total = sum(size for files in sizes.values() for size in files.values())
        self._check_space(total)
        with progress(total) as advance:
            jobs = [(p, file) for p in todo for file in lacking[p.variant.id]]
            self._everywhere(jobs, lambda p, file: self._fetch(p, file, sizes[p.variant.id][file], advance))
        for place in todo:
            self._put(place.variant)
        manifest = self._manifest([p.variant for p in published])
        content = manifest.text().encode()
        if not (self.out / MANIFEST).is_file() or (self.out / MANIFEST).read_bytes() != content:
            write_atomically(self.out / MANIFEST, content, work=self.work)
        shutil.rmtree(self.work, ignore_errors=True)
        ids = tuple(p.variant.id for p in todo)
        return PullReport(manifest, ids, tuple(p.variant.id for p in kept), total)

    # What is here

    def _is_here(self, variant: Variant) -> bool:
        folder = self.out / variant.folder
        return folder.is_dir() and not folder.is_symlink() and not _wrong(folder, variant.files)

    def _lacking(self, variant: Variant) -> list[str]:
        """Return the files to fetch: neither checked on an earlier run nor right in their place."""
        wrong = _wrong(self._checked(variant), variant.files)
        return [file for file in wrong if file in _wrong(self.out / variant.folder, {file: variant.files[file]})]

    def _checked(self, variant: Variant) -> Path:
        return self.work / variant.id / "checked"

    # The Hub

    def _sizes(self, place: Published, files: Sequence[str]) -> dict[str, int]:
        from huggingface_hub.hf_api import RepoFile

        if not files:
            return {}
        where = f"{place.repo}@{place.revision[:12]}"
        try:
            infos = self.api.get_paths_info(place.repo, list(files), revision=place.revision)
        except Exception as error:
            raise told(error, where, resumes=True) from None
        sizes = {info.path: info.size for info in infos if isinstance(info, RepoFile)}
        for file in files:
            if file not in sizes:
                raise CheckpointError(f"{where}: {file} is in the manifest but not in the repository")
            if not file.endswith(".safetensors") and sizes[file] > _MAX_SMALL:
                raise CheckpointError(f"{where}: {file} has {sizes[file]} bytes, more than {_MAX_SMALL >> 20} MiB")
        return sizes

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.out).free
        if needed > free:
            raise FailureError(
                f"{self.out}: not enough space: {needed / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free",
                hint="free space, or pull single variants by their repositories",
            )

    def _fetch(self, place: Published, file: str, size: int, advance: Callable[[int], object]) -> None:
        checked, download = self._checked(place.variant), self.work / place.variant.id / "download"
        checked.mkdir(parents=True, exist_ok=True)
        for force in (False, True):
            path = Path(
                self.api.hf_hub_download(
                    place.repo, file, revision=place.revision, local_dir=download, force_download=force
                )
            )
            if path.stat().st_size == size and file_sha256(path) == place.variant.files[file]:
                _sync(path)
                path.replace(checked / file)
                advance(size)
                return
            path.unlink()
        raise CheckpointError(
            f"{place.repo}@{place.revision[:12]}: {file} does not match its sha256 in the manifest",
            hint="it was changed after it was published, or damaged: do not use it, ask its owner",
        )

    def _everywhere(self, jobs: Sequence[tuple[Published, str]], do: Callable[[Published, str], None]) -> None:
        with pool(self.jobs) as workers:
            running = [workers.submit(guarded, f"{place.repo}: {file}", do, place, file) for place, file in jobs]
            for job in running:
                job.result()

    # Into the folder

    def _put(self, variant: Variant) -> None:
        checked, folder = self._checked(variant), self.out / variant.folder
        checked.mkdir(parents=True, exist_ok=True)
        sync(checked)
        if folder.exists():
            for path in checked.iterdir():
                path.replace(folder / path.name)
            sync(folder)
        else:
            checked.rename(folder)
        sync(self.out)

    def _manifest(self, variants: Sequence[Variant]) -> Family:
        """Return the manifest of everything in the folder; a manifest already there keeps its paths."""
        try:
            family = load_family(self.out)
        except MisuseError:
            family = self.family.model_copy(update={"variants": []})
        both = {v.id: v for v in family.variants} | {v.id: v for v in variants}
        ordered = sorted(both.values(), key=lambda v: v.lambda_)
        return Family.model_validate({**family.model_dump(), "variants": [v.model_dump() for v in ordered]})


def _check_names(place: Published) -> None:
    variant = place.variant
    if variant.folder == MANIFEST:
        raise CheckpointError(f"{place.repo}: a variant's folder is named {MANIFEST}")
    for file in variant.files:
        if file.lower().endswith(_CODE):
            raise CheckpointError(
                f"{place.repo}: the manifest lists {file}, which could hold code; a family holds safetensors and text",
                hint="do not use it",
            )


def _check_folder(out: Path, family: Family) -> None:
    if out.exists() and not out.is_dir():
        raise MisuseError(f"{out}: is a file; expected a folder for the family")
    listed: set[str] = set()
    if (out / MANIFEST).exists():
        before = load_family(out)
        if not _same_family(before, family):
            raise MisuseError(
                f"{out}: holds {before.name}, another family or another build of it",
                hint="use a separate folder for each family",
            )
        listed = {v.folder for v in before.variants}
    for variant in family.variants:
        folder = out / variant.folder
        if folder.exists() and variant.folder not in listed and _wrong(folder, variant.files):
            raise MisuseError(
                f"{folder}: exists and is not from `dami pull`; refusing to overwrite it",
                hint="choose a new folder, or move this one away",
            )


def _same_family(here: Family, there: Family) -> bool:
    """Whether two manifests are of one build; the one that was pushed has no paths of the machine it came from."""
    if here.same_build(there):
        return True
    try:
        return without_local_paths(here).same_build(there)
    except FailureError:
        return False


def _wrong(folder: Path, files: dict[str, str]) -> list[str]:
    """Return the files that are not in a folder with their sha256."""
    return [
        name
        for name, sha256 in files.items()
        if not (folder / name).is_file() or (folder / name).is_symlink() or file_sha256(folder / name) != sha256
    ]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
