"""Everything that touches mergekit's Python API: the method `dami`, running a merge, and asking for its plan.

Written against mergekit 0.1.5. The start-up hook calls `register` when mergekit is imported, and so do the `dami`
commands that run mergekit themselves.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from mergekit.architecture.conversion import convert_checkpoint_tensors
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)
from pydantic import BeforeValidator

from dami_merge.checkpoints.checkpoint import Checkpoint, read_header
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.interpolation.schedule import Schedule, check_lambda, parse_lambda
from dami_router.errors import FailureError, MisuseError

__all__ = ["METHOD", "DamiMerge", "TensorPlan", "plan_tensors", "register", "run_command", "run_merge"]

_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
_NUMBER = re.compile(r"\.(\d+)\.")
_HALF = 130


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise MisuseError(f"allow_extrapolation: expected true or false, found {value!r:.60}")


class DamiMerge(GroupMergeMethod):  # type: ignore[misc]  # mergekit is untyped here
    """(1−λ)·base + λ·other, with λ a number, a gradient, a filter list or a schedule over depth."""

    spec = MergeMethodSpec(
        name="dami",
        pretty_name="DAMI",
        reference_url="https://arxiv.org/abs/2601.21414",
        parameters=(
            ParameterSpec(
                name="lambda",
                value_type=Annotated[Any, BeforeValidator(parse_lambda)],
                scope=ParameterScope.SHARED,
                description="Where between base_model (0) and the other model (1); a number or a schedule.",
            ),
            ParameterSpec(
                name="allow_extrapolation",
                value_type=Annotated[Any, BeforeValidator(_flag)],
                scope=ParameterScope.SHARED,
                default=False,
                description="Allow λ outside [0, 1].",
            ),
        ),
        contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, max_inputs=2),
        optional_tensor_policy=OptionalTensorPolicy.ERROR,
    )

    def __init__(self) -> None:
        self._planned = _PlannedTensors()

    def validate_inputs(
        self, input_ids: Sequence[Hashable], base_id: Hashable | None = None, *, group_name: str | None = None
    ) -> None:
        """Check the pair as mergekit asks at planning, and note which tensors are planned."""
        try:
            super().validate_inputs(input_ids, base_id, group_name=group_name)
        except ValueError as error:
            raise MisuseError(
                f"merge_method dami: {error}",
                hint="name the Instruct checkpoint as `base_model` (λ=0) and one other model (λ=1)",
            ) from None
        self._planned.note(group_name)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Return one output tensor in the dtype of the (already aligned) inputs."""
        name = group.metadata.name or "tensor"
        base, (other,) = group.base, group.non_base
        if base is None:
            raise MisuseError(f"{name}: merge_method dami needs a base_model")
        _refuse_quantised(base.id)
        _refuse_quantised(other.id)
        value = parameters["lambda"]
        lambda_ = value if isinstance(value, float) else self._scheduled(value, name, base.id)
        check_lambda(lambda_, allow_extrapolation=parameters["allow_extrapolation"], where=f"lambda for {name}")
        return interpolate(base.tensor, other.tensor, lambda_)

    def _scheduled(self, schedule: Schedule, name: str, model: Hashable) -> float:
        anatomy = _anatomy(model)
        self._planned.check_layers(anatomy)
        return schedule.lambda_at(anatomy.place(name))


class _PlannedTensors:
    """The names of the tensors that mergekit plans, for schedules that need all layers.

    mergekit announces every output tensor through `validate_inputs` before it merges the first one, and a merge's
    slices before its tensors. A method learns the output's number of layers in no other way.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._open = False

    def note(self, group_name: str | None) -> None:
        """Record one announcement: `default.slices[0]`, or a tensor's name."""
        if group_name is None:
            return
        slices = group_name.endswith("]") and ".slices[" in group_name
        if slices and self._open:
            self._names.clear()
        self._open = not slices
        if not slices:
            self._names.add(group_name)

    def check_layers(self, anatomy: Anatomy) -> None:
        """Refuse a plan with another number of layers than the endpoints."""
        planned = Anatomy.of(self._names).layers
        if planned and planned != anatomy.layers:
            raise MisuseError(
                f"slices: a depth schedule needs all {anatomy.layers} layers of the endpoints; these keep {planned}",
                hint="give each slice its own number or gradient under `parameters: lambda`",
            )


METHOD = DamiMerge()
"""The one instance that mergekit registers."""


def register() -> None:
    """Register `merge_method: dami` with mergekit in this process, unless it is registered already."""
    from mergekit.merge_methods import registry

    if not any(method.spec.name == "dami" for method in registry.registered_methods()):
        registry.register(METHOD)


def run_merge(text: str, out: Path, *, quiet: bool = True) -> None:
    """Merge one recipe (YAML text) into the folder `out`, as `mergekit-yaml` would."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge as merge
    from mergekit.options import MergeOptions
    from transformers.utils import logging

    register()
    if quiet:
        logging.set_verbosity_error()
    configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
    merge(configuration, str(out), options=MergeOptions(quiet=quiet), config_source=text)


def run_command(arguments: Sequence[str]) -> None:
    """Run the command `mergekit-yaml` in this process with the method registered."""
    from mergekit.scripts.run_yaml import main

    register()
    main.main(args=list(arguments), prog_name="mergekit-yaml", standalone_mode=False)


@dataclass(frozen=True)
class TensorPlan:
    """What mergekit would do with a pair: the Instruct tensors that its output uses, or why it would stop."""

    used: frozenset[str]
    failure: str | None


def plan_tensors(instruct: Checkpoint, thinking: Checkpoint, slices: Sequence[Any] = ()) -> TensorPlan:
    """Ask mergekit which tensors it would write, from configs and headers alone.

    mergekit plans over two folders that hold a config.json and a shard index but no weights, so this works for
    endpoints on the Hub too. It takes seconds: mergekit is imported, and where it has no file for the architecture
    it builds the model on the meta device. `slices` is the recipe's own list, if it has one.
    """
    with TemporaryDirectory(prefix="dami-plan-") as folder, _quiet():
        stubs = [_stub(side, Path(folder) / name) for name, side in (("instruct", instruct), ("thinking", thinking))]
        try:
            tasks = _planned_tasks(stubs, slices)
            used, needed = _tensors_used(tasks, _Source(instruct), _Source(thinking))
        except Exception as error:  # mergekit and Transformers raise many kinds; each stops a merge
            return TensorPlan(frozenset(), f"{type(error).__name__}: {_short(str(error))}")
    failure = f"it needs the tensor `{needed[0]}`, which {needed[1]} lacks" if needed else None
    return TensorPlan(used, failure)


def _tensors_used(
    tasks: Sequence[Any], instruct: _Source, thinking: _Source
) -> tuple[frozenset[str], tuple[str, str] | None]:
    """Return the Instruct tensors that the tasks use, and the first tensor that a side lacks, with that side."""
    used: set[str] = set()
    needed: tuple[str, str] | None = None
    for task in tasks:
        ours, theirs = instruct.used_by(task, base=True), thinking.used_by(task, base=False)
        used |= ours
        if (ours and theirs) or (task.optional and not ours and not theirs):
            continue
        needed = needed or (task.tensor_name, "Thinking" if ours else "Instruct")
    return frozenset(used), needed


def _short(text: str) -> str:
    words = " ".join(text.split()) or "no message"
    return words if len(words) <= 2 * _HALF else f"{words[:_HALF]} … {words[-_HALF:]}"


def _planned_tasks(stubs: Sequence[Path], slices: Sequence[Any]) -> list[Any]:
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import SaveTensor
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    register()
    raw: dict[str, Any] = {"merge_method": "dami", "base_model": str(stubs[0]), "parameters": {"lambda": 0.5}}
    if slices:
        raw["slices"] = [{"sources": _sources(part, stubs)} for part in slices]
    else:
        raw["models"] = [{"model": str(stubs[1])}]
    options, configuration = MergeOptions(quiet=True), MergeConfiguration.model_validate(raw)
    architecture = get_architecture_info(configuration, options)
    out = _model_out_config(configuration, architecture)
    tasks = MergePlanner(configuration, architecture, options, out).plan_to_disk(str(stubs[0].parent / "out"))
    return [task for task in tasks if isinstance(task, SaveTensor)]


def _sources(part: Any, stubs: Sequence[Path]) -> list[dict[str, Any]]:
    ranges = [source["layer_range"] for source in part["sources"]]
    return [{"model": str(stub), "layer_range": layers} for stub, layers in zip(stubs, ranges, strict=True)]


def _stub(side: Checkpoint, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(side.config)), encoding="utf-8")
    weights = {name: "model-00001-of-00001.safetensors" for name in side.tensors if _among_first(name) == name}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}), encoding="utf-8")
    return folder


def _among_first(name: str) -> str:
    # A layer's experts are all planned alike. Two stand for them: there may be tens of thousands, and mergekit
    # compares every target with every source.
    return _EXPERT.sub(lambda match: str(min(int(match[0]), 1)), name)


class _Source:
    """One endpoint as mergekit reads it: which of its tensors end up in an output tensor."""

    def __init__(self, side: Checkpoint) -> None:
        self._side = side
        self._alike: dict[str, list[str]] = defaultdict(list)
        self._layers: dict[str, list[str]] = defaultdict(list)
        for name in side.tensors:
            self._alike[_among_first(name)].append(name)
        for name in self._alike:
            self._layers[_number(name)].append(name)

    def used_by(self, task: Any, *, base: bool) -> set[str]:
        """Return the tensors that one planned task reads from this endpoint; none where it finds nothing."""
        weights = task.tensor_task.gather_tensors.weight_info
        weight = next(info for model, info in weights.items() if (model == task.tensor_task.base_model) == base)
        for name in (weight.name, *(weight.aliases or ()), *(weight.tied_names or ())):
            if name in self._alike:
                return set(self._alike[name])
        for target in (weight.name, *(weight.aliases or ())):
            # A tensor is made from its own layer's nearly always; asking for all sources is slow.
            for names in (self._layers[_number(target)], list(self._alike)):
                if read := self._converted(target, names):
                    return {name for kept in read for name in self._alike[kept]}
        return set()

    def _converted(self, target: str, names: Sequence[str]) -> set[str]:
        read: set[str] = set()
        made = convert_checkpoint_tensors(self._side.config.get("model_type"), self._recorded(names, read), target)
        return read if made is not None else set()

    def _recorded(self, names: Sequence[str], read: set[str]) -> Mapping[str, Callable[[], torch.Tensor]]:
        def loader(name: str) -> Callable[[], torch.Tensor]:
            def load() -> torch.Tensor:
                read.add(name)
                return torch.empty(self._side.tensors[name].shape, dtype=torch.bfloat16, device="meta")

            return load

        return {name: loader(name) for name in names}


def _number(name: str) -> str:
    found = _NUMBER.search(name)
    return found[1] if found else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mergekit's and Transformers' warnings off stderr: what they mean is said as findings."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@lru_cache(maxsize=64)
def _config(model: Hashable) -> dict[str, Any]:
    # From the folder that this merge reads (a LoRA may be merged in), and without remote code.
    # Raw-PyTorch inputs (mergekit-pytorch) have none: they merge at a number, not by a schedule.
    try:
        path = Path(LoaderCache().get(model).index.base_path) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
    except (AttributeError, OSError, ValueError, RuntimeError):
        return {}
    return config if isinstance(config, dict) else {}


@lru_cache(maxsize=64)
def _anatomy(model: Hashable) -> Anatomy:
    config = _config(model)
    if not config:
        raise MisuseError(f"a depth schedule needs the config.json of `{model}`", hint="use a number for lambda")
    return Anatomy.of(LoaderCache().get(model).index.tensor_paths, config)


@lru_cache(maxsize=64)
def _refuse_quantised(model: Hashable) -> None:
    method = (_config(model).get("quantization_config") or {}).get("quant_method") or _fp8(model)
    if method:
        raise FailureError(
            f"`{model}` is quantised ({method}), and mergekit would merge the bare numbers without their scales",
            hint="use `dami build`, which reads fp8 with its scales, or start from the unquantised checkpoint",
        )


def _fp8(model: Hashable) -> str | None:
    # A cast at loading hides the dtype from the method, and not every fp8 checkpoint has a quantization_config.
    try:
        index = LoaderCache().get(model).index
        files = [Path(index.base_path) / shard.filename for shard in index.shards if index.is_safetensors]
    except (AttributeError, OSError, RuntimeError):
        return None
    kinds = {info.dtype for file in files for info in read_header(file).values()}
    return next((kind for kind in sorted(kinds) if kind.startswith(("F8_", "F4"))), None)
