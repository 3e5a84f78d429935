"""The use case `dami build`: a recipe and two endpoints in, a folder a variant and a manifest out.

An interrupted build resumes with the same command: a weight file counts as finished only when the
journal says what it was made from, that is what would be made now, and its content is still
what was written.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dami_merge.build.build_journal import Record, content_key
from dami_merge.build.build_plan import Plan, VariantPlan, check_lambda_choice, make_plan
from dami_merge.build.companions import Companions, make_companions
from dami_merge.build.input_checks import check_announced, check_buffers, hash_together
from dami_merge.build.layout import INDEX, Shard, index_text
from dami_merge.build.manifest import Finished, describe_endpoint, make_manifest
from dami_merge.build.workspace import Workspace, free_bytes, open_workspace, remove_traces
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.custom_code import named_code
from dami_merge.checkpoints.endpoints import Fetch, Pair, download, download_with_code, open_pair
from dami_merge.checkpoints.sides import Sides
from dami_merge.files.hashing import InputHashes, file_sha256, hashing_ahead
from dami_merge.importing import import_torch
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, Endpoints, Family
from dami_router.shared.durable import sync, write_atomically

if TYPE_CHECKING:
    from dami_merge.build.stream import ShardStream

__all__ = ["BuildReport", "Options", "build_family"]

_FORMAT = 2  # raise it when the same facts would make other bytes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Options:
    """How to build: which λ (all where none is named), the shard size in bytes, the device."""

    only: tuple[float, ...] = ()
    max_shard_size: int | None = None
    device: str = "cpu"
    trust_remote_code: bool = False
    """Copy Instruct's Python files, unread."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did: `built` now, `kept` from before, warnings about the pair."""

    manifest: Family
    built: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_written: int
    warnings: tuple[str, ...]


def build_family(
    recipe: Recipe,
    out: Path,
    options: Options | None = None,
    *,
    fetch: Fetch = download,
    progress: Progress = lambda total: nullcontext(lambda count: None),  # noqa: ARG005
) -> BuildReport:
    """Build the recipe's variants into `out`, going on where an earlier build was stopped.

    `progress` gets the bytes to write and yields a function that takes bytes written. Raises
    MisuseError, FailureError or CheckpointError with `out` as it was, but for finished parts
    in its hidden work folder.
    """
    options = options or Options()
    check_device(options.device)
    if options.trust_remote_code and fetch is download:
        fetch = download_with_code
    pair = open_pair(recipe.instruct, recipe.thinking, recipe.dtype, fetch, only_instruct=recipe.only_instruct)
    plan = make_plan(recipe, pair.instruct, pair.thinking, max_shard_size=options.max_shard_size)
    chosen = check_lambda_choice(plan, options.only)
    check_buffers(plan, pair.instruct, pair.thinking)
    _refuse_endpoint_as_out(out, pair)
    existing = out.exists()
    try:
        with open_workspace(out) as workspace:
            workspace.check_own([variant.id for variant in plan.variants], plan.name)
            return _Build(recipe, pair, plan, workspace, options).run(chosen, progress)
    except OSError as error:
        raise _told(error, out) from error
    finally:
        if not existing:
            remove_traces(out)


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device == "cpu":
        return
    import torch

    if device.split(":")[0] != "cuda":
        raise MisuseError(f"--device {device}: expected cpu or cuda")
    if not torch.cuda.is_available():
        raise FailureError(f"--device {device}: this torch sees no CUDA device", hint="leave --device out")


@dataclass
class _Build:
    recipe: Recipe
    pair: Pair
    plan: Plan
    workspace: Workspace
    options: Options
    good: dict[tuple[str, str], Path] = field(default_factory=dict)
    companions: dict[str, Companions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = Sides(_hashes(self.pair.instruct), _hashes(self.pair.thinking))
        self.texts = {variant.id: self._small_files(variant) for variant in self.plan.variants}

    def run(self, chosen: Sequence[VariantPlan], progress: Progress) -> BuildReport:
        before = self.workspace.manifest()
        self.workspace.sweep({variant.id for variant in self.plan.variants})
        self._find_good()
        kept = [v for v in self.plan.variants if self._is_finished(v)]
        todo = [v for v in chosen if v not in kept]
        self._drop_from_manifest(before, {v.id for v in kept})
        for variant in todo:
            self._prepare(variant)
        written = self._write_weights(todo, progress)
        check_announced(self.pair.instruct, self.inputs.instruct)
        check_announced(self.pair.thinking, self.inputs.thinking)
        for variant in todo:
            self.workspace.publish(variant.id, self.texts[variant.id], [s.file for s in self.plan.shards])
        manifest = self._manifest([v for v in self.plan.variants if v in kept or v in todo], before)
        content = manifest.text().encode()
        if not (self.workspace.out / MANIFEST).is_file() or (self.workspace.out / MANIFEST).read_bytes() != content:
            write_atomically(self.workspace.out / MANIFEST, content, work=self.workspace.work)
        self.workspace.journal.tidy()
        findings = [f for f in self.pair.warnings if f.code != "custom_code" or not self.options.trust_remote_code]
        warnings = [str(finding).removeprefix("warning: ") for finding in findings]
        if manifest.custom_code == "carried":
            warnings.append("the variants carry Instruct's Python files, unread: whoever loads them may run that code")
        return BuildReport(manifest, tuple(v.id for v in todo), tuple(v.id for v in kept), written, tuple(warnings))

    def _small_files(self, variant: VariantPlan) -> dict[str, bytes]:
        made = make_companions(
            self.pair.instruct, self.pair.thinking, dtype=self.plan.dtype, untied=self.plan.untied,
            with_code=self.options.trust_remote_code,
            thinking_template=variant.thinking_template, thinking_sampling=variant.lambda_ > 0,
        )  # fmt: skip
        self.companions[variant.id] = made
        files = dict(made.files)
        if len(self.plan.shards) > 1:
            files[INDEX] = index_text(self.plan.shards).encode()
        return files

    def _find_good(self) -> None:
        # Cheap checks first: a file is hashed only if the journal lists it.
        claims = [
            (variant, shard, folder / shard.file)
            for variant in self.plan.variants
            for shard in self.plan.shards
            for folder in (self.workspace.finished(variant.id), self.workspace.partial(variant.id))
            if self.workspace.journal.get(variant.id, shard.file) and _size(folder / shard.file) == shard.size
        ]
        shards = list({shard.file: shard for _, shard, _ in claims}.values())
        hash_together([(hashes, [file]) for hashes, file in self._read_for(shards)])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            answers = list(pool.map(lambda claim: self._holds(*claim), claims))
        for (variant, shard, path), answer in zip(claims, answers, strict=True):
            if answer:
                self.good.setdefault((variant.id, shard.file), path)

    def _holds(self, variant: VariantPlan, shard: Shard, path: Path) -> bool:
        record = self.workspace.journal.get(variant.id, shard.file)
        if record is None or record.made_from != self._made_from(variant, shard):
            return False
        return file_sha256(path) == record.sha256

    def _is_finished(self, variant: VariantPlan) -> bool:
        folder = self.workspace.finished(variant.id)
        weights = {shard.file for shard in self.plan.shards}
        if not folder.is_dir() or {p.name for p in folder.glob("*.safetensors")} != weights:
            return False
        if (folder / INDEX).exists() != (INDEX in self.texts[variant.id]):
            return False
        small = all(_content(folder / name, text) for name, text in self.texts[variant.id].items())
        return small and all(self.good.get((variant.id, file)) == folder / file for file in weights)

    def _drop_from_manifest(self, before: Family | None, finished: set[str]) -> None:
        # While a listed variant is not (or no longer) right, no manifest says that it is.
        path = self.workspace.out / MANIFEST
        if before is None:
            path.unlink(missing_ok=True)
            return
        right = [v for v in before.variants if v.id in finished]
        if len(right) == len(before.variants):
            return
        if right:
            write_atomically(
                path, before.model_copy(update={"variants": right}).text().encode(), work=self.workspace.work
            )
        else:
            path.unlink(missing_ok=True)
            sync(self.workspace.out)

    def _prepare(self, variant: VariantPlan) -> None:
        good = [s.file for s in self.plan.shards if (variant.id, s.file) in self.good]
        partial = self.workspace.partial(variant.id)
        self.workspace.clean(variant.id, [f for f in good if self.good[variant.id, f] == partial / f])
        self.workspace.adopt(variant.id, good)
        for shard in self.plan.shards:
            if not (partial / shard.file).exists():
                self.good.pop((variant.id, shard.file), None)

    def _write_weights(self, todo: Sequence[VariantPlan], progress: Progress) -> int:
        jobs = [(s, [v for v in todo if (v.id, s.file) not in self.good]) for s in self.plan.shards]
        total = sum(shard.size * len(variants) for shard, variants in jobs)
        self._check_space(total + sum(len(t) for v in todo for t in self.texts[v.id].values()))
        stream = self._open_stream([shard for shard, variants in jobs if variants])
        with progress(total) as advance:
            for shard, variants in jobs:
                if variants:
                    self._write_shard(stream, shard, variants, advance)
        return total

    def _open_stream(self, shards: Sequence[Shard]) -> ShardStream:
        # Torch keeps one processor busy for seconds; another begins with the hashes that the first shard needs.
        with hashing_ahead(self._read_for(shards[:1])):
            import_torch()
            from dami_merge.build.stream import ShardStream

            return ShardStream(self.inputs, self.plan.sources, device=self.options.device)

    def _write_shard(
        self, stream: ShardStream, shard: Shard, variants: Sequence[VariantPlan], advance: Callable[[int], object]
    ) -> None:
        targets = [self.workspace.partial(v.id) / shard.file for v in variants]
        temporary = [path.with_name(path.name + ".tmp") for path in targets]
        try:
            hashes = stream.write(shard, temporary, [v.tensors for v in variants], advance)
            for variant, source, target, sha256 in zip(variants, temporary, targets, hashes, strict=True):
                source.rename(target)
                self.workspace.journal.add(variant.id, shard.file, Record(self._made_from(variant, shard), sha256))
                sync(target.parent)
        except BaseException:
            for path in temporary:
                path.unlink(missing_ok=True)
            raise

    def _check_space(self, needed: int) -> None:
        free = free_bytes(self.workspace.out)
        if needed > free:
            raise FailureError(
                f"{self.workspace.out}: not enough space: the build writes {_gb(needed)}, {_gb(free)} are free",
                hint="free some, or build fewer variants at a time with --only",
            )

    def _made_from(self, variant: VariantPlan, shard: Shard) -> str:
        files = self._files(shard)
        return content_key(
            {
                "format": _FORMAT,
                "header": hashlib.sha256(shard.header).hexdigest(),
                "lambdas": [variant.tensors[t.name] for t in shard.tensors],
                "compute": [self.plan.sources[t.name].compute for t in shard.tensors],
                "instruct": sorted(self.inputs.instruct.all(files.instruct).values()),
                "thinking": sorted(self.inputs.thinking.all(files.thinking).values()),
            }
        )

    def _files(self, shard: Shard) -> Sides[list[str]]:
        """Return the files of each endpoint that a shard is made from."""
        sources = [self.plan.sources[tensor.name] for tensor in shard.tensors]
        return Sides(
            sorted({file for source in sources for file in source.instruct.files}),
            sorted({file for source in sources for file in source.thinking.files}),
        )

    def _read_for(self, shards: Sequence[Shard]) -> list[tuple[InputHashes, str]]:
        """Return the files that shards are made from, each once, with the hashes of their side."""
        files = [self._files(shard) for shard in shards]
        instruct = sorted({file for each in files for file in each.instruct})
        thinking = sorted({file for each in files for file in each.thinking})
        return [(self.inputs.instruct, file) for file in instruct] + [(self.inputs.thinking, file) for file in thinking]

    def _manifest(self, finished: Sequence[VariantPlan], before: Family | None) -> Family:
        instruct = describe_endpoint(self.pair.instruct, self.inputs.instruct)
        thinking = describe_endpoint(self.pair.thinking, self.inputs.thinking)
        items = [Finished(v, self.companions[v.id], self._hashes(v)) for v in finished]
        endpoints = Endpoints(instruct=instruct, thinking=thinking)
        return make_manifest(self.recipe, self.plan, endpoints, items, before, custom_code=self._custom_code())

    def _custom_code(self) -> Literal["left out", "carried"] | None:
        if not named_code(self.pair.instruct):
            return None
        return "carried" if self.options.trust_remote_code else "left out"

    def _hashes(self, variant: VariantPlan) -> dict[str, str]:
        hashes = {name: hashlib.sha256(text).hexdigest() for name, text in self.texts[variant.id].items()}
        for shard in self.plan.shards:
            record = self.workspace.journal.get(variant.id, shard.file)
            assert record is not None
            hashes[shard.file] = record.sha256
        return hashes


def _hashes(side: Checkpoint) -> InputHashes:
    assert side.folder is not None
    return InputHashes(side.folder, {info.file for info in side.tensors.values()})


def _refuse_endpoint_as_out(out: Path, pair: Pair) -> None:
    for side in (pair.instruct, pair.thinking):
        assert side.folder is not None
        if out.resolve().is_relative_to(side.folder.resolve()):
            raise MisuseError(f"{out}: lies in the endpoint {side.ref}", hint="give a folder of its own to the family")


def _told(error: OSError, out: Path) -> DamiError:
    if error.errno in _FULL:
        return FailureError(
            f"{out}: no space left; finished files are kept, unfinished ones removed",
            hint="free some space and run the same command again to resume",
        )
    return FailureError(f"{error.filename or out}: {error.strerror or error}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _content(path: Path, text: bytes) -> bool:
    return _size(path) == len(text) and path.read_bytes() == text


def _gb(value: int) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"
