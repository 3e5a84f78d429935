"""The use case `dami verify`: every claim of a manifest held against the files and the endpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from dami_merge.build.build_plan import Plan, VariantPlan, make_plan
from dami_merge.build.layout import check_contiguous
from dami_merge.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_header
from dami_merge.checkpoints.endpoints import IGNORED, PATTERNS
from dami_merge.checkpoints.matching import shares_head
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.checkpoints.templates import opens_think, template_of, template_sha256
from dami_merge.checkpoints.tying import embeddings_of, heads
from dami_merge.files.hashing import file_sha256
from dami_merge.interpolation.depth import Anatomy
from dami_merge.recipes.recipe import Recipe, parse_recipe
from dami_merge.verify.file_facts import FileFacts, read_facts
from dami_merge.verify.problem import Problem
from dami_merge.verify.readability import unreadable
from dami_merge.verify.weights_check import LayerLambda, Weights
from dami_router.errors import CheckpointError, DamiError
from dami_router.manifest.family import MANIFEST, Endpoint, Family, Variant, load_family

__all__ = ["Locate", "VariantReport", "VerifyReport", "verify_family"]

Locate = Callable[[ModelRef, str | None], Path | None]
"""Finds an endpoint of the Hub, at a commit, on this machine; None where it is not here."""

Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]

_CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass
class VariantReport:
    """What was found about one variant; `layers` is empty where the endpoints are not at hand."""

    id: str
    lambda_: float
    layers: list[LayerLambda] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class VerifyReport:
    """The whole result: sound when there is no problem. `notes` say what could not be looked at."""

    name: str
    variants: list[VariantReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    deep: bool = False

    @property
    def all_problems(self) -> list[Problem]:
        """The family's problems, then each variant's."""
        return [*self.problems, *(p for variant in self.variants for p in variant.problems)]


def locate_in_cache(ref: ModelRef, commit: str | None) -> Path | None:
    """Return the snapshot of a Hub repository in the local cache; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        revision = commit or ref.revision
        # The builder's own patterns: the library calls a snapshot without the other files incomplete.
        found = snapshot_download(
            ref.path, revision=revision, local_files_only=True, allow_patterns=PATTERNS, ignore_patterns=IGNORED
        )
        return Path(found)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def verify_family(
    folder: Path,
    *,
    deep: bool = False,
    locate: Locate = locate_in_cache,
    progress: Progress = lambda total: nullcontext(lambda count: None),  # noqa: ARG005
) -> VerifyReport:
    """Verify the family in `folder`; with `deep`, compute every tensor again from the endpoints.

    Raises MisuseError where there is no manifest, CheckpointError where it cannot be read.
    """
    import torch

    family = load_family(folder)
    root = folder if folder.is_dir() else folder.parent
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Verification(root, family, deep, locate).run(progress)
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Truth:
    """The endpoints and the plan that the manifest's recipe gives with them."""

    instruct: Checkpoint
    thinking: Checkpoint
    plan: Plan

    @property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.instruct.tensors, self.instruct.config)


class _Verification:
    def __init__(self, root: Path, family: Family, deep: bool, locate: Locate) -> None:
        self.root, self.family, self.deep, self.locate = root, family, deep, locate
        self.report = VerifyReport(family.name, deep=deep)
        self.facts: dict[Path, FileFacts | CheckpointError] = {}
        self.reference: Mapping[str, tuple[str, tuple[int, ...]]] | None = None

    def run(self, progress: Progress) -> VerifyReport:
        truth = self._truth()
        self.report.notes += _code_notes(self.family)
        total = sum(self._size(v) for v in self.family.variants) * (2 if self.deep and truth else 1)
        with progress(total) as advance:
            self.facts = self._read_all(advance)
            for variant in self.family.variants:
                self.report.variants.append(self._variant(variant, truth, advance))
        return self.report

    def _read_all(self, advance: Callable[[int], object]) -> dict[Path, FileFacts | CheckpointError]:
        paths = [self.root / v.folder / n for v in self.family.variants for n in v.files if n.endswith(".safetensors")]

        def facts(path: Path) -> FileFacts | CheckpointError:
            try:
                return read_facts(path, read_header(path), advance)
            except CheckpointError as error:
                return error

        paths = [path for path in paths if path.is_file()]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return dict(zip(paths, pool.map(facts, paths), strict=True))

    def _size(self, variant: Variant) -> int:
        paths = (self.root / variant.folder / name for name in variant.files if name.endswith(".safetensors"))
        return sum(path.stat().st_size for path in paths if path.is_file())

    # The endpoints

    def _truth(self) -> _Truth | None:
        try:
            recipe = parse_recipe(self.family.recipe, f"{MANIFEST}: recipe")
            sides = self._endpoints(recipe)
            if sides is None:
                return None
            plan = make_plan(recipe, *sides)
        except DamiError as error:
            self.report.problems.append(Problem("recipe", error.message, file=MANIFEST))
            return None
        if recipe.family is None:
            # The variant is named after the recipe's file, which a manifest does not keep.
            only = self.family.variants[0].id if self.family.variants else plan.variants[0].id
            plan = replace(plan, variants=(replace(plan.variants[0], id=only),))
        return _Truth(*sides, plan)

    def _endpoints(self, recipe: Recipe) -> tuple[Checkpoint, Checkpoint] | None:
        found = []
        for name, ref, said in (
            ("instruct", recipe.instruct, self.family.endpoints.instruct),
            ("thinking", recipe.thinking, self.family.endpoints.thinking),
        ):
            side = self._endpoint(name, ref, said)
            if side is None:
                if self.deep:
                    self.report.problems.append(
                        Problem("endpoints", f"--deep needs the {name} endpoint {ref}, which is not at hand")
                    )
                return None
            found.append(side)
        return found[0], found[1]

    def _endpoint(self, name: str, ref: ModelRef, said: Endpoint) -> Checkpoint | None:
        without = "λ was not read back from the weights"
        folder: Path | None = Path(ref.path).expanduser()
        if folder is not None and not folder.is_dir():
            folder = self.locate(ref, said.commit)
        if folder is None:
            self.report.notes.append(f"the {name} endpoint {ref} is not on this machine; {without}")
            return None
        try:
            side = replace(open_checkpoint(ModelRef(str(folder))), ref=ref)
            check_contiguous(side)
        except CheckpointError as error:
            self.report.notes.append(f"the {name} endpoint cannot be read ({error.message}); {without}")
            return None
        for file in sorted({info.file for info in side.tensors.values()}):
            if file_sha256(folder / file) != said.files.get(file):
                self.report.notes.append(
                    f"the {name} endpoint {ref} is not what the family was built from: {file} has another sha256;"
                    f" {without}"
                )
                return None
        return side

    # One variant

    def _variant(self, variant: Variant, truth: _Truth | None, advance: Callable[[int], object]) -> VariantReport:
        report = VariantReport(variant.id, variant.lambda_)
        folder = self.root / variant.folder
        if not folder.is_dir():
            report.problems.append(Problem("missing", "the variant's folder is not there", variant.id))
            return report
        report.problems += self._strangers(variant, folder)
        plan = self._plan_of(variant, truth, report)
        weights_sound, damaged = self._files(variant, folder, report)
        if not weights_sound:
            return report
        try:
            checkpoint = open_checkpoint(ModelRef(str(folder.absolute())))
            report.problems += self._shape(variant, checkpoint, truth)
            report.problems += self._small_files(variant, checkpoint)
            report.problems += _head(variant, checkpoint)
        except CheckpointError as error:
            report.problems.append(Problem("checkpoint", error.message, variant.id))
            return report
        names_fit = not any(p.code == "tensors" for p in report.problems)
        if truth is not None and plan is not None and names_fit:
            self._against_endpoints(variant, checkpoint, truth, plan, damaged, report, advance)
        return report

    def _strangers(self, variant: Variant, folder: Path) -> Iterator[Problem]:
        for path in sorted(folder.iterdir()):
            if path.name not in variant.files and path.suffix in (".safetensors", *_CODE):
                yield Problem("stranger", "is not in the manifest", variant.id, path.name)

    def _plan_of(self, variant: Variant, truth: _Truth | None, report: VariantReport) -> VariantPlan | None:
        if truth is None:
            return None
        plan = next((v for v in truth.plan.variants if v.id == variant.id), None)
        if plan is None:
            report.problems.append(Problem("recipe", "the recipe makes no such variant", variant.id))
        elif plan.lambda_ != variant.lambda_ or list(plan.resolved) != variant.resolved:
            report.problems.append(
                Problem("lambda", "λ in the manifest is not what its recipe gives", variant.id, MANIFEST)
            )
        return plan

    def _files(self, variant: Variant, folder: Path, report: VariantReport) -> tuple[bool, set[str]]:
        """Hold files against their hashes; return whether the weights can be read, and which are damaged."""
        readable, damaged = True, set()
        for name, said in variant.files.items():
            path = folder / name
            if not path.is_file():
                report.problems.append(Problem("missing", "is not there", variant.id, name))
                readable = readable and not name.endswith(".safetensors")
                continue
            if not name.endswith(".safetensors"):
                if file_sha256(path) != said:
                    report.problems.append(Problem("hash", "was changed after the build", variant.id, name))
                continue
            facts = self.facts[path]
            if isinstance(facts, CheckpointError):
                report.problems.append(Problem("header", facts.message, variant.id, name))
                readable = False
                continue
            for bad in facts.not_finite:
                text = f"tensor `{bad.tensor}` has {bad.count} numbers that are not finite, first {bad.value}"
                text += f" at {bad.index}"
                report.problems.append(Problem("not_finite", text, variant.id, name, bad.tensor))
            if facts.sha256 != said:
                damaged.add(name)
                report.problems.append(Problem("hash", self._whose(variant, name, facts.sha256), variant.id, name))
        return readable, damaged

    def _whose(self, variant: Variant, name: str, sha256: str) -> str:
        for other in self.family.variants:
            if other.id != variant.id and other.files.get(name) == sha256:
                return f"holds the weights of {other.id} (λ={other.lambda_:g}): the two were swapped or copied over"
        return f"sha256 is {sha256[:12]}…, the manifest says {variant.files[name][:12]}…: changed after the build"

    def _shape(self, variant: Variant, checkpoint: Checkpoint, truth: _Truth | None) -> Iterator[Problem]:
        expected = self.reference
        if truth is not None:
            expected = {t.name: (t.dtype, t.shape) for shard in truth.plan.shards for t in shard.tensors}
        found = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        if expected is None:
            self.reference = found  # without endpoints, the variants are held against each other
            return
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                text = f"tensor `{name}`: expected {_kind(expected.get(name))}, found {_kind(found.get(name))}"
                file = checkpoint.tensors[name].file if name in found else None
                yield Problem("tensors", text, variant.id, file, name)

    def _small_files(self, variant: Variant, checkpoint: Checkpoint) -> Iterator[Problem]:
        template = template_of(checkpoint)
        if template_sha256(template) != variant.chat_template.sha256:
            yield Problem("template", "the chat template is not the one that the manifest names", variant.id)
        elif opens_think(template) != variant.chat_template.opens_think:
            yield Problem("template", "opens_think in the manifest is not what the template does", variant.id)
        for file, text in unreadable(checkpoint):
            yield Problem("tgi", text, variant.id, file)

    def _against_endpoints(
        self,
        variant: Variant,
        checkpoint: Checkpoint,
        truth: _Truth,
        plan: VariantPlan,
        damaged: set[str],
        report: VariantReport,
        advance: Callable[[int], object],
    ) -> None:
        with Weights(checkpoint, truth.instruct, truth.thinking, truth.plan.sources) as weights:
            report.layers = weights.layers(plan, truth.anatomy)
            for layer in report.layers:
                found = layer.recovered
                if found is not None and not found.agrees(layer.expected):
                    text = (
                        f"{layer.where}: the manifest says λ={layer.expected:g}, the weights say"
                        f" {found.lambda_:.4f} ± {found.bound:.4f}"
                    )
                    report.problems.append(Problem("lambda", text, variant.id))
            # A damaged file is computed again in any case: a hash does not tell which tensor it was.
            names = [n for n, i in checkpoint.tensors.items() if self.deep or i.file in damaged]
            for difference in weights.differences(plan, names, advance):
                text = (
                    f"tensor `{difference.tensor}`: {difference.count} elements are not what the endpoints give, first"
                    f" at {difference.index} (byte {difference.byte}): {difference.found:g} instead of"
                    f" {difference.expected:g}"
                )
                file = checkpoint.tensors[difference.tensor].file
                report.problems.append(Problem("weights", text, variant.id, file, difference.tensor))


def _code_notes(family: Family) -> Iterator[str]:
    if family.custom_code == "left out":
        yield "Instruct names Python code that the variants do not carry; they load only where the loader has the class"
    if family.custom_code == "carried":
        yield "the variants carry Instruct's Python files, which were not inspected; their sha256 is in the manifest"


def _head(variant: Variant, checkpoint: Checkpoint) -> Iterator[Problem]:
    # What a loaded model has as its head, whatever loads it.
    names = list(checkpoint.tensors)
    for head in heads(names):
        if checkpoint.tied and not shares_head(checkpoint, head):
            text = (
                f"the config ties the head to the embeddings, but `{head}` differs from `{embeddings_of(names, head)}`:"
                " vLLM and Transformers before 5 would drop it"
            )
            yield Problem("head", text, variant.id, "config.json", head)


def _kind(found: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{found[0]} {list(found[1])}" if found else "none"
