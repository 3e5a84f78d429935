"""The metadata of a card (its front matter) and of `.eval_results`, checked before anything is uploaded.

The Hub checks the same when files are committed, after the weights were sent. These rules are
those that its documentation names; the Hub's own check (`/api/validate-yaml`) has the last word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dami_merge.card.licence_ids import LICENCE_IDS
from dami_router.shared.suggestions import did_you_mean

__all__ = ["eval_results_problems", "licence_problem", "metadata_problems", "split_card"]

# https://huggingface.co/docs/hub/model-cards#specifying-a-base-model
_RELATIONS = ("adapter", "merge", "quantized", "finetune")
_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[\w][\w.-]{0,95}", re.ASCII)
_FRONT = re.compile(r"\A(?:\ufeff)?---[ \t]*\r?\n(?:(.*?)\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TEXTS = ("license_name", "license_link", "library_name", "pipeline_tag")


def split_card(text: str) -> tuple[str | None, str]:
    """Split a card into its front matter, without the `---` lines (None where it has none), and the rest."""
    found = _FRONT.match(text)
    return (found[1] or "", text[found.end() :]) if found else (None, text)


def licence_problem(identity: str) -> str | None:
    """Say what is wrong with a licence's identifier; None where the Hub's list has it."""
    if identity in LICENCE_IDS:
        return None
    near = did_you_mean(re.sub(r"[\s_]+", "-", identity.strip().lower()), sorted(LICENCE_IDS))
    hint = f"; did you mean `{near}`?" if near else ""
    return f"`license`: {identity!r} is not on the Hub's list of licences{hint}"


def metadata_problems(front: str) -> list[str]:
    """Return what the Hub would refuse in a card's front matter, apart from licences that this list lacks."""
    try:
        data = yaml.safe_load(front)
    except yaml.YAMLError as error:
        return [f"not valid YAML: {' '.join(str(error).split())}"]
    if not isinstance(data, dict):
        return ["expected `key: value` lines"]
    return list(_problems(data))


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    licence = data.get("license")
    if not _texts(licence):
        yield f"`license`: expected a licence's identifier, found {licence!r}"
    bases = data.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not _ID.fullmatch(base) or "--" in base or ".." in base:
            yield f"`base_model`: expected a model's id on the Hub such as ORG/name, found {base!r}"
    relation = data.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        yield f"`base_model_relation`: expected {', '.join(_RELATIONS)}, found {relation!r}"
    for key in _TEXTS:
        if not isinstance(data.get(key, ""), str):
            yield f"`{key}`: expected text, found {data[key]!r}"
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield f"`tags`: expected a list of texts, found {tags!r}"


def eval_results_problems(text: str) -> list[str]:
    """Return what is wrong in an `.eval_results` file.

    Format: https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml.
    """
    entries = yaml.safe_load(text)
    if not isinstance(entries, list):
        return ["expected a list of results"]
    return [f"result {i}: {problem}" for i, entry in enumerate(entries, 1) for problem in _entry_problems(entry)]


def _entry_problems(entry: Any) -> Iterator[str]:
    dataset = entry.get("dataset") if isinstance(entry, dict) else None
    if not isinstance(dataset, dict):
        yield "`dataset` is missing"
        return
    if not _ID.fullmatch(str(dataset.get("id"))):
        yield f"`dataset.id`: expected a dataset's id on the Hub, found {dataset.get('id')!r}"
    if not dataset.get("task_id") or not isinstance(dataset["task_id"], str):
        yield f"`dataset.task_id`: expected text, found {dataset.get('task_id')!r}"
    value = entry.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        yield f"`value`: expected a finite number, found {value!r}"
    if not isinstance(entry.get("notes", ""), str):
        yield f"`notes`: expected text, found {entry['notes']!r}"


def _texts(value: Any) -> bool:
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) and item for item in items)
