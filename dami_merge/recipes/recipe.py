"""Reading a recipe: the merge YAML that `mergekit-yaml` and the `dami` commands share.

mergekit ignores keys that it does not know, so a typo there silently changes a merge. This
reader refuses them. It also resolves λ for every tensor, with mergekit's own precedence,
without importing mergekit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy, Place
from dami_merge.interpolation.schedule import Schedule, check_lambda, parse_lambda
from dami_merge.interpolation.setting import Choice, Constant, Gradient, Setting, read_setting
from dami_merge.recipes.family_block import FamilyBlock, read_family
from dami_router.errors import MisuseError, RecipeError
from dami_router.shared.strict_yaml import Document, Key, load, parse

__all__ = ["MergekitOnlyError", "Parameters", "Recipe", "Slice", "load_recipe", "parse_recipe"]

_KEYS = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "family", "only_instruct",
)  # fmt: skip
_PARAMETERS = ("lambda", "allow_extrapolation")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class MergekitOnlyError(RecipeError):
    """A recipe that mergekit can merge, but that says more than one pair of full checkpoints."""


@dataclass(frozen=True)
class Parameters:
    """The `parameters:` of one level of a recipe."""

    lambda_: Setting[float | Schedule] | None = None
    allow_extrapolation: Setting[bool] | None = None


@dataclass(frozen=True)
class Slice:
    """A run of output layers: `first` (included) to `last` (excluded) of the Instruct endpoint."""

    first: int
    last: int
    parameters: Parameters

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Recipe:
    """A recipe for one pair of endpoints."""

    document: Document
    instruct: ModelRef
    thinking: ModelRef
    parameters: Parameters
    slices: tuple[Slice, ...]
    dtype: str | None
    out_dtype: str | None
    family: FamilyBlock | None
    only_instruct: tuple[str, ...] = ()
    """Filters for parts that Thinking lacks, which variants then have from Instruct alone."""

    def lambda_for(self, name: str, anatomy: Anatomy) -> float:
        """Return λ for a tensor of a model with this anatomy, as `mergekit-yaml` resolves it."""
        place = anatomy.place(name)
        levels, t = self._levels(place)
        value = _first(levels, "lambda_", name, t)
        if value is None:
            raise self.document.error(
                ("parameters", "lambda"),
                f"no λ for tensor `{name}`: no filter matches it",
                hint="end the list with `- value: …` (no filter) for all other tensors",
            )
        try:
            lambda_ = value if isinstance(value, float) else value.lambda_at(place)
            extrapolate = bool(_first(levels, "allow_extrapolation", name, t))
            return check_lambda(lambda_, allow_extrapolation=extrapolate, where=name)
        except MisuseError as error:
            raise self.document.error(("parameters", "lambda"), error.message, hint=error.hint) from None

    def check_layers(self, anatomy: Anatomy) -> None:
        """Refuse a depth schedule where `slices:` change the number of layers."""
        if not self.slices or all(isinstance(v, float) for v in self.lambdas()):
            return
        total = sum(map(len, self.slices))
        if total != anatomy.layers:
            raise self.document.error(
                ("slices",),
                f"a depth schedule needs all {anatomy.layers} layers of the endpoints; these slices keep {total}",
                hint="give each slice its own number or gradient under `parameters: lambda`",
            )

    def lambdas(self) -> Iterator[float | Schedule]:
        """Yield every λ value that the recipe mentions, numbers and schedules."""
        for level in (self.parameters, *(s.parameters for s in self.slices)):
            if level.lambda_ is not None:
                yield from _values(level.lambda_)

    def settings(self) -> Iterator[Setting[float | Schedule]]:
        """Yield the λ setting of every level that has one."""
        for level in (self.parameters, *(s.parameters for s in self.slices)):
            if level.lambda_ is not None:
                yield level.lambda_

    def _levels(self, place: Place) -> tuple[list[Parameters], float]:
        if not self.slices:
            return [self.parameters], place.x if place.index is not None else 0.0
        if place.goes_with is not None:
            return [self.slices[0 if place.goes_with == 0 else -1].parameters, self.parameters], 0.0
        if place.index is None:
            return [self.slices[0 if place.x == 0.0 else -1].parameters, self.parameters], 0.0
        offset = place.index
        for part in self.slices:
            if offset < len(part):
                t = offset / (len(part) - 1) if len(part) > 1 else 1.0
                return [part.parameters, self.parameters], t
            offset -= len(part)
        return [self.parameters], 0.0


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError with file, line and key for anything wrong in it."""
    return read_recipe(load(path))


def parse_recipe(text: str, name: str = "<recipe>") -> Recipe:
    """Read a recipe from its text."""
    return read_recipe(parse(text, name))


def read_recipe(document: Document) -> Recipe:
    """Read a recipe from a parsed document."""
    data = document.data
    document.only_keys((), data, _KEYS)
    _method(document)
    instruct = _model(document, ("base_model",), data.get("base_model"))
    if "modules" in data:
        raise _beyond(document, ("modules",), "`modules:` are planned by mergekit alone", "use `models:` or `slices:`")
    if ("models" in data) == ("slices" in data):
        raise document.error(
            (), "expected either `models:` or `slices:`, found " + ("both" if "models" in data else "neither")
        )
    slices: tuple[Slice, ...] = ()
    if "models" in data:
        thinking = _models(document, instruct)
    else:
        thinking, slices = _slices(document, instruct)
    family = read_family(document, data["family"]) if "family" in data else None
    parameters = _parameters(document, ("parameters",), data.get("parameters"))
    recipe = Recipe(
        document, instruct, thinking, parameters, slices,
        _dtype(document, "dtype"), _dtype(document, "out_dtype"), family, _only_instruct(document),
    )  # fmt: skip
    if parameters.lambda_ is None and not (slices and all(s.parameters.lambda_ for s in slices)):
        raise document.error(("parameters",), "lacks `lambda`", hint="for example `parameters: {lambda: 0.5}`")
    return recipe


def _method(document: Document) -> None:
    method = document.data.get("merge_method")
    if method == "dami":
        return
    if method is None:
        raise document.error((), "lacks `merge_method`", hint="write `merge_method: dami`")
    near = isinstance(method, str) and method.lower().startswith(("da", "dmi", "adm"))
    hint = "did you mean `dami`?" if near else "recipes for other methods belong to `mergekit-yaml` alone"
    raise document.error(("merge_method",), f"expected `dami`, found {method!r}", hint=hint)


def _beyond(document: Document, place: Key, message: str, way: str) -> MergekitOnlyError:
    error = document.error(place, f"{message}; the `dami` tools read one pair of full checkpoints")
    return MergekitOnlyError(error.message, hint=f"{way}, or merge it as it is with `mergekit-yaml` or `dami merge`")


def _model(document: Document, place: Key, raw: object) -> ModelRef:
    if raw is None:
        hint = "name the Instruct checkpoint (λ = 0)" if place == ("base_model",) else "name a checkpoint"
        raise document.error(place[:-1], f"lacks `{place[-1]}`", hint=hint)
    if isinstance(raw, dict):
        raw = _model_from_mapping(document, place, raw)
    if not isinstance(raw, str) or not raw.strip():
        raise document.error(place, f"expected a local folder or a Hub id, found {raw!r:.60}")
    if "+" in raw:
        raise _beyond(document, place, f"`{raw}` names a LoRA adapter", "merge the adapter into its model first")
    path, _, revision = raw.partition("@")
    return ModelRef(path, revision or None)


def _model_from_mapping(document: Document, place: Key, raw: dict[str, Any]) -> str:
    inner = raw.get("model", raw)
    if not isinstance(inner, dict):
        inner = {"path": inner}
    if raw.get("lora") or raw.get("override_architecture"):
        raise _beyond(document, place, "`lora` and `override_architecture` are mergekit's alone", "leave them out")
    document.only_keys(place, inner, ("path", "revision"))
    return f"{inner.get('path')}@{inner['revision']}" if inner.get("revision") else str(inner.get("path", ""))


def _models(document: Document, instruct: ModelRef) -> ModelRef:
    raw = document.data["models"]
    if not isinstance(raw, list) or not raw:
        raise document.error(("models",), "expected a list with the Thinking checkpoint")
    found = []
    for i, item in enumerate(raw):
        place: Key = ("models", i)
        if not isinstance(item, dict):
            raise document.error(place, "expected `- model: …`")
        document.only_keys(place, item, ("model", "parameters"))
        _no_own_parameters(document, place, item)
        found.append(_model(document, (*place, "model"), item.get("model")))
    return _other(document, ("models",), instruct, found)


def _other(document: Document, place: Key, instruct: ModelRef, found: list[ModelRef]) -> ModelRef:
    others = [model for model in dict.fromkeys(found) if model != instruct]
    if not others:
        raise document.error(
            place, f"both endpoints are `{instruct}`; expected another checkpoint for λ = 1",
            hint="`base_model` is the Instruct checkpoint, the other one the Thinking checkpoint",
        )  # fmt: skip
    if len(others) > 1:
        raise document.error(
            place,
            f"expected one checkpoint beside base_model, found {len(others)}: {', '.join(map(str, others))}",
        )
    return others[0]


def _no_own_parameters(document: Document, place: Key, item: dict[str, Any]) -> None:
    if item.get("parameters"):
        raise document.error(
            (*place, "parameters"),
            "λ belongs to the pair, not to one model; mergekit ignores it here",
            hint="move it to the `parameters:` of the recipe (or of the slice)",
        )


def _slices(document: Document, instruct: ModelRef) -> tuple[ModelRef, tuple[Slice, ...]]:
    raw = document.data["slices"]
    if not isinstance(raw, list) or not raw:
        raise document.error(("slices",), "expected a list of slices")
    found: list[ModelRef] = []
    slices = tuple(_slice(document, ("slices", i), item, instruct, found) for i, item in enumerate(raw))
    return _other(document, ("slices",), instruct, found), slices


def _slice(document: Document, place: Key, item: object, instruct: ModelRef, found: list[ModelRef]) -> Slice:
    if not isinstance(item, dict):
        raise document.error(place, "expected `- sources: …`")
    document.only_keys(place, item, ("sources", "base_model", "parameters", "residual_weight"))
    if item.get("base_model") and _model(document, (*place, "base_model"), item["base_model"]) != instruct:
        raise document.error((*place, "base_model"), "expected the recipe's own base_model")
    sources = item.get("sources")
    if not isinstance(sources, list) or len(sources) != 2:
        raise document.error(place, "expected two `sources`, one from each endpoint")
    ranges = {}
    for i, source in enumerate(sources):
        at: Key = (*place, "sources", i)
        if not isinstance(source, dict):
            raise document.error(at, "expected `- model: …` with `layer_range: [first, last]`")
        document.only_keys(at, source, ("model", "layer_range", "parameters"))
        _no_own_parameters(document, at, source)
        ranges[_model(document, (*at, "model"), source.get("model"))] = _range(document, at, source)
    found.extend(ranges)
    if instruct not in ranges or len({last - first for first, last in ranges.values()}) != 1:
        raise document.error(place, "expected ranges of equal length, one of them from base_model")
    parameters = _parameters(document, (*place, "parameters"), item.get("parameters"))
    return Slice(*ranges[instruct], parameters)


def _range(document: Document, place: Key, source: dict[str, Any]) -> tuple[int, int]:
    raw = source.get("layer_range")
    whole = isinstance(raw, list) and len(raw) == 2 and all(type(v) is int for v in raw)
    if not whole or not 0 <= raw[0] < raw[1]:  # type: ignore[index]
        raise document.error(
            (*place, "layer_range"),
            f"expected [first, last] with 0 ≤ first < last (last excluded), found {raw!r:.60}",
        )
    return raw[0], raw[1]  # type: ignore[index]


def _parameters(document: Document, place: Key, raw: object) -> Parameters:
    if raw is None:
        return Parameters()
    if not isinstance(raw, dict):
        raise document.error(place, f"expected a mapping with `lambda`, found {raw!r:.60}")
    document.only_keys(place, raw, _PARAMETERS)
    lambda_ = allow = None
    if "lambda" in raw:
        lambda_ = read_setting(document, (*place, "lambda"), raw["lambda"], parse_lambda, gradients=True)
    if "allow_extrapolation" in raw:
        at = (*place, "allow_extrapolation")
        allow = read_setting(document, at, raw["allow_extrapolation"], _bool, gradients=False)
    return Parameters(lambda_, allow)


def _bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    raise MisuseError(f"expected true or false, found {raw!r:.60}")


def _dtype(document: Document, key: str) -> str | None:
    raw = document.data.get(key)
    if raw is None:
        return None
    name = raw.removeprefix("torch.") if isinstance(raw, str) else raw
    if name not in _DTYPES:
        raise document.error((key,), f"expected one of {', '.join(_DTYPES)}, found {raw!r:.60}")
    return str(name)


def _only_instruct(document: Document) -> tuple[str, ...]:
    if "only_instruct" not in document.data:
        return ()
    raw = document.data["only_instruct"]
    if not isinstance(raw, list) or not raw:
        raise document.error(("only_instruct",), f"expected a list of filters such as [talker.], found {raw!r:.60}")
    for i, text in enumerate(raw):
        if not isinstance(text, str) or text in ("", "*"):
            raise document.error(("only_instruct", i), f"expected a piece of a tensor's name, found {text!r:.60}")
    return tuple(raw)


def _first(levels: list[Parameters], field: str, name: str, t: float) -> Any:
    for level in levels:
        setting = getattr(level, field)
        value = setting.resolve(name, t) if setting is not None else None
        if value is not None:
            return value
    return None


def _values(setting: Setting[Any]) -> Iterator[float | Schedule]:
    if isinstance(setting, Constant):
        yield setting.value
    elif isinstance(setting, Gradient):
        yield from setting.values
    elif isinstance(setting, Choice):
        for _, inner in setting.options:
            yield from _values(inner)
