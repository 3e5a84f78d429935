"""Everything that touches mergekit's Python API: the method `dami`, and running a merge.

Written against mergekit 0.1.5. `register` is called by the start-up hook when mergekit is
imported, and by the `dami` commands that run mergekit themselves.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
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

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.interpolation.schedule import Schedule, check_lambda, parse_lambda
from dami_router.errors import FailureError, MisuseError

__all__ = ["METHOD", "DamiMerge", "register", "run_merge"]


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

    mergekit announces every output tensor through `validate_inputs` before it merges the
    first one; nothing else that reaches a method tells how many layers the output has. It
    announces a merge's slices first, which is where a new plan begins.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._open = False

    def note(self, group_name: str | None) -> None:
        """Take in one announcement: `default.slices[0]`, or a tensor's name."""
        if group_name is None:
            return
        slices = group_name.endswith("]") and ".slices[" in group_name
        if slices and self._open:
            self._names.clear()
        self._open = not slices
        if not slices:
            self._names.add(group_name)

    def check_layers(self, anatomy: Anatomy) -> None:
        """Refuse a plan whose layers are not the endpoints' layers."""
        planned = Anatomy.of(self._names).layers
        if planned and planned != anatomy.layers:
            raise MisuseError(
                f"slices: a depth schedule needs all {anatomy.layers} layers of the endpoints; these keep {planned}",
                hint="give each slice its own number or gradient under `parameters: lambda`",
            )


METHOD = DamiMerge()
"""The one instance that mergekit registers."""


def register() -> None:
    """Make `merge_method: dami` known to mergekit in this process; harmless when it already is."""
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
    method = (_config(model).get("quantization_config") or {}).get("quant_method")
    if method:
        raise FailureError(
            f"`{model}` is quantised ({method}); quantised weights cannot be interpolated",
            hint="start from the unquantised checkpoint and quantise the result",
        )
