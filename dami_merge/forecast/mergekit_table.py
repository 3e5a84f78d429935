"""mergekit's packaged architecture files, read without importing mergekit or torch.

Importing mergekit takes seconds; reading one JSON file takes about a millisecond. The files answer one question: do
they name exactly the tensors of a checkpoint? Where they do, `mergekit-yaml` writes every tensor. Where they do not, or
where mergekit does more than read its file, this module says so, and `mergekit_adapter.plan_tensors` asks mergekit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["ArchitectureFile", "architecture_file", "has_architecture", "is_installed"]

_IN_CODE = ("AfmoeForCausalLM", "Glm4MoeForCausalLM")
"""mergekit 0.1.5 has files for these, and adds their experts in code."""
_LAYER = re.compile(r"\$\{layer_index([+-]1)?\}")
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(gate_proj|up_proj|down_proj)\.weight")
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
_FUSED_TYPES = ("qwen3_moe",)
"""Model types whose separate experts Transformers joins into the names of mergekit's file."""


@dataclass(frozen=True)
class ArchitectureFile:
    """One file: `modules` as parsed JSON, the model_type that it is for."""

    name: str
    model_type: str
    modules: tuple[Mapping[str, Any], ...]

    def covers(self, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        """Whether the file names every tensor of a checkpoint and needs none that it lacks."""
        if config.get("model_type") != self.model_type:
            return False
        joined = _joined(names) if self.model_type in _FUSED_TYPES else {}
        used: set[str] = set()
        try:
            for weight in self._weights(config):
                known = (weight["name"], *(weight.get("aliases") or ()))
                found = [name for name in known if name in names][:1] or joined.get(weight["name"], [])
                if not found and not weight.get("optional"):
                    return False
                used.update(found)
        except (KeyError, TypeError, ValueError):
            return False
        return used == names

    def _weights(self, config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for module in self.modules:
            prefix = module.get("weight_prefix") or ""
            body = module.get("architecture", module)
            count = _layers(body, config)
            for weight in (*body["pre_weights"], *body["post_weights"]):
                yield _placed(weight, prefix, 0, count)
            for layer in range(count):
                for weight in body["layer_templates"]["weights"]:
                    yield _placed(weight, prefix, layer, count)


def _joined(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the experts' own tensors by the name of the tensor that Transformers joins them into."""
    made: dict[str, list[str]] = {}
    for name in names:
        if found := _EXPERT.fullmatch(name):
            made.setdefault(f"{found[1]}.{_FUSED[found[2]]}", []).append(name)
    return made


def is_installed() -> bool:
    """Whether mergekit can be imported; it is not imported."""
    try:
        return find_spec("mergekit") is not None
    except ValueError:  # a stand-in without a spec
        return False


def architecture_file(class_: str, model_type: str | None = None) -> ArchitectureFile | None:
    """Return mergekit's file for an architecture class, or None where it has none of its own."""
    found = [file for file in _files().get(class_, ()) if class_ not in _IN_CODE]
    return next((file for file in found if file.model_type == model_type), found[0] if len(found) == 1 else None)


def has_architecture(class_: str) -> bool:
    """Whether mergekit knows an architecture class, by a file or in code."""
    return class_ in _IN_CODE or class_ in _files()


@cache
def _files() -> dict[str, list[ArchitectureFile]]:
    spec = find_spec("mergekit") if is_installed() else None
    made: dict[str, list[ArchitectureFile]] = {}
    for root in spec.submodule_search_locations or () if spec else ():
        for path in sorted((Path(root) / "_data" / "architectures").glob("*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            modules = tuple(data["modules"].values()) if data.get("kind") == "modular" else (data,)
            for class_ in data.get("architectures", ()):
                made.setdefault(class_, []).append(ArchitectureFile(path.name, data.get("model_type", ""), modules))
    return made


def _layers(body: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    if body.get("override_num_layers") is not None:
        return int(body["override_num_layers"])
    value: Any = config
    for part in (body.get("num_layers_config_key") or "num_hidden_layers").split("."):
        value = value[part]
    return int(value)


def _placed(weight: Mapping[str, Any], prefix: str, layer: int, count: int) -> dict[str, Any]:
    def put(text: str) -> str:
        number = {None: layer, "+1": layer + 1, "-1": layer - 1}
        text = _LAYER.sub(lambda match: str(number[match[1]]), text)
        return prefix + text.replace("${num_layers}", str(count))

    return {**weight, "name": put(weight["name"]), "aliases": [put(alias) for alias in weight.get("aliases") or ()]}
