"""Datasets on the Hub: find the files of a split and download them. Dataset scripts are never run.

The dataset's card lists its configurations and splits. Without that, the names of files and folders
decide. If there is no readable file, the parquet files to which the Hub converts every public dataset
are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dami_router.datasets.tables import MAX_BYTES, SUFFIXES
from dami_router.errors import FailureError, MisuseError
from dami_router.manifest.hub_errors import told
from dami_router.manifest.published import HubId, hub_api, parse_hub_id
from dami_router.shared.suggestions import did_you_mean, listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["fetch"]

_CONVERTED = "refs/convert/parquet"
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-])", re.IGNORECASE)
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}
_MAX_FILES = 1000

Splits = Mapping[str, list[str]]
"""Split → files."""


@dataclass(frozen=True)
class _Repository:
    id: str
    commit: str
    sizes: Mapping[str, int]
    card: Mapping[str, Any]


def fetch(place: str, config: str | None, split: str | None) -> list[tuple[Path, str]]:
    """Download the files of one split; returns each with its name for messages.

    Raises MisuseError if config or split is unknown or must be chosen, FailureError if the Hub has no
    such dataset or cannot be reached.
    """
    asked = parse_hub_id(place)
    api = hub_api()
    try:
        found = _look(api, asked, asked.revision)
        splits = _splits(found, config, place)
        if not splits and asked.revision is None:
            found = _look(api, asked, _CONVERTED)
            splits = _splits(found, config, place)
        files = _chosen(splits, split, place)
        size = sum(found.sizes.get(file, 0) for file in files)
        if size > MAX_BYTES or len(files) > _MAX_FILES:
            raise MisuseError(
                f"{place}: {len(files)} files of {size / 1e9:.1f} GB; too large", hint="download one file and use that"
            )
        return [(_download(api, found, file), f"{found.id}/{file}") for file in files]
    except Exception as error:
        raise told(error, f"the dataset {place}") from None


def _look(api: HfApi, place: HubId, revision: str | None) -> _Repository:
    info = api.dataset_info(place.id, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    return _Repository(place.id, info.sha or "main", sizes, card)


def _download(api: HfApi, found: _Repository, file: str) -> Path:
    return Path(api.hf_hub_download(found.id, file, repo_type="dataset", revision=found.commit))


def _splits(found: _Repository, config: str | None, place: str) -> Splits:
    readable = sorted(file for file in found.sizes if file.lower().endswith(SUFFIXES))
    described = _described(found.card, readable)
    if described:
        name = _choose(described, config, place, "--config")
        return described[name]
    if config is not None and readable:
        configs = sorted({file.split("/")[0] for file in readable if "/" in file})
        if config not in configs:
            raise _unknown(config, configs, place, "--config")
        readable = [file for file in readable if file.startswith(f"{config}/")]
    return _by_name(readable)


def _described(card: Mapping[str, Any], readable: list[str]) -> dict[str, Splits]:
    """Return config → split → files from the card, without configs that have no readable file."""
    configs = card.get("configs")
    found: dict[str, Splits] = {}
    for entry in configs if isinstance(configs, list) else []:
        if isinstance(entry, dict) and isinstance(name := entry.get("config_name", "default"), str):
            splits = {split: _matching(patterns, readable) for split, patterns in _patterns(entry.get("data_files"))}
            if any(splits.values()):
                found[name] = {split: files for split, files in splits.items() if files}
    return found


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """Return split and glob patterns of a card's `data_files`: one pattern, a list, or a list by split."""
    items = data_files if isinstance(data_files, list) else [data_files]
    plain = [item for item in items if isinstance(item, str)]
    found = [("train", plain)] if plain else []
    for item in items:
        if isinstance(item, dict) and isinstance(split := item.get("split", "train"), str):
            path = item.get("path")
            found.append((split, [p for p in (path if isinstance(path, list) else [path]) if isinstance(p, str)]))
    return found


def _matching(patterns: Iterable[str], files: Iterable[str]) -> list[str]:
    tests = [re.compile(_translated(pattern)) for pattern in patterns]
    return [file for file in files if any(test.fullmatch(file) for test in tests)]


def _translated(pattern: str) -> str:
    """Translate a glob to a regular expression; cards are untrusted, so a glob with many stars is taken literally."""
    if len(pattern) > 200 or pattern.count("*") > 6:
        return re.escape(pattern)
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _by_name(files: Iterable[str]) -> Splits:
    """Return split → files, by the first name of a split in their paths; all are `train` if no path has one."""
    found: dict[str, list[str]] = {}
    rest = []
    for file in files:
        named = _SPLIT.search(file)
        if named is None:
            rest.append(file)
        else:
            split = named[1].lower()
            found.setdefault(_ALIASES.get(split, split), []).append(file)
    return found or ({"train": rest} if rest else {})


def _chosen(splits: Splits, split: str | None, place: str) -> list[str]:
    if not splits:
        raise FailureError(f"{place}: has no readable file", hint=f"supported: {', '.join(SUFFIXES)}")
    return splits[_choose(splits, split, place, "--split")]


def _choose(among: Mapping[str, Any], given: str | None, place: str, option: str) -> str:
    if given is not None:
        if given not in among:
            raise _unknown(given, sorted(among), place, option)
        return given
    if len(among) > 1:
        raise MisuseError(f"{place}: has {listed(sorted(among))}; one must be chosen", hint=f"choose with {option}")
    return next(iter(among))


def _unknown(given: str, known: list[str], place: str, option: str) -> MisuseError:
    near = did_you_mean(given, known)
    has = f"it has {listed(known)}" if known else "it has only one"
    return MisuseError(f"{place}: no `{given:.80}` ({option})", hint=f"did you mean `{near}`?" if near else has)
