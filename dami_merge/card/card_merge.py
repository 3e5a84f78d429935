"""Updating a card on the Hub without losing what people wrote there.

Our part stands between two comments. The first holds a hash of the part, so an edit inside it
is noticed. What stands outside the comments is kept as it is. Metadata is merged: a value that
someone set on the Hub is kept unless it contradicts the manifest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from dami_merge.card.card_metadata import split_card

__all__ = ["BEGIN", "END", "ForeignCardError", "MergedCard", "frame", "front_matter", "merge_card"]

BEGIN = "<!-- dami:begin -->"
"""Where to put our part in a card of one's own: this line, followed by `END`."""

END = "<!-- dami:end -->"

_PART = re.compile(r"<!-- dami:begin(?: ([0-9a-f]{16}))? -->(.*?)<!-- dami:end -->", re.DOTALL)
_MARK = re.compile(r"<!-- dami:(?:begin|end)\b")
_NAMED = ("license", "license_name", "license_link")


class ForeignCardError(ValueError):
    """A card that may not be replaced: its text says why."""


@dataclass(frozen=True)
class MergedCard:
    """A card to publish, and notes for the user: metadata of theirs that was kept or replaced."""

    text: str
    notes: tuple[str, ...] = ()


def frame(body: str) -> str:
    """Return our part of a card between its markers."""
    body = body.strip().replace("<!-- dami:", "<!-- dami :")  # nothing in a recipe may end the part
    return f"<!-- dami:begin {_digest(body)} -->\n{body}\n{END}\n"


def front_matter(data: Mapping[str, Any]) -> str:
    """Return metadata as the YAML between a card's `---` lines."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110).rstrip("\n")


def merge_card(theirs: str, ours: str, *, both_bases: bool, own_licence: bool, overwrite: bool = False) -> MergedCard:
    """Put our card's part and metadata into the card that is on the Hub.

    `both_bases`: our `base_model` names both endpoints, so nothing may be missing or added there.
    `own_licence`: the user named the licence for this push, so it replaces theirs. Raises
    ForeignCardError where their card has no part of ours, or one that was edited. With
    `overwrite` an edited part is replaced, and a card without one is replaced as a whole.
    """
    if theirs == ours:
        return MergedCard(ours)
    try:
        return _merge(theirs, ours, both_bases=both_bases, own_licence=own_licence, overwrite=overwrite)
    except ForeignCardError as error:
        if not overwrite:
            raise
        return MergedCard(ours, (f"replaced, though {error}",))


def _merge(theirs: str, ours: str, *, both_bases: bool, own_licence: bool, overwrite: bool) -> MergedCard:
    front, body = split_card(theirs)
    our_front, our_body = split_card(ours)
    before = _metadata_of(front)
    data, notes = _merged(before, _metadata_of(our_front), both_bases=both_bases, own_licence=own_licence)
    text = _with_part(body, our_body, overwrite)
    if front is not None and data == before:
        if text == body:
            return MergedCard(theirs, tuple(notes))
        head = front
    else:
        head = front_matter(data)
    separator = "" if text.startswith(("\n", "\r\n")) else "\n"
    return MergedCard(f"---\n{head}\n---\n{separator}{text}", tuple(notes))


def _with_part(body: str, our_body: str, overwrite: bool) -> str:
    if not body.strip():
        return f"\n{our_body.lstrip()}"
    parts = list(_PART.finditer(body))
    if len(parts) != 1 or len(_MARK.findall(body)) != 2:
        what = "its dami markers are damaged" if _MARK.search(body) else "`dami push` did not write it"
        raise ForeignCardError(what)
    part = parts[0]
    edited = bool(part[2].strip()) and part[1] != _digest(part[2])
    if edited and not overwrite:
        raise ForeignCardError("the part between its dami markers was edited")
    ours = _PART.search(our_body)
    assert ours is not None
    if part[1] == ours[1] and part[2].strip() and not edited:
        return body
    return body[: part.start()] + ours[0] + body[part.end() :]


def _merged(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, both_bases: bool, own_licence: bool
) -> tuple[dict[str, Any], list[str]]:
    theirs = {key: value for key, value in theirs.items() if key not in ours or value not in (None, "", [])}
    data, notes = dict(theirs), []
    for key in _replaced(theirs, ours, both_bases):
        notes.append(f"`{key}: {_short(theirs[key])}` contradicts the manifest; replaced by {_short(ours[key])}")
        data[key] = ours[key]
    licence = {key: ours[key] for key in _NAMED if key in ours}
    their_licence = {key: _single(theirs[key]) for key in _NAMED if key in theirs}
    if "license" in theirs and their_licence != licence:
        before, now = _short(theirs["license"]), _short(ours["license"])
        if own_licence:
            notes.append(f"`license: {before}` on the Hub is replaced by --license {now}")
            data = {key: value for key, value in data.items() if key not in _NAMED or key in licence} | licence
        else:
            notes.append(f"`license: {before}` on the Hub is kept; the endpoints' is {now} (--license decides)")
    elif "license" not in theirs:
        data |= licence
    rest = {key: value for key, value in ours.items() if key not in _NAMED and key not in data}
    data |= rest
    tags = theirs.get("tags")
    if isinstance(tags, list):
        data["tags"] = tags + [tag for tag in ours.get("tags", ()) if tag not in tags]
    return data, notes


def _replaced(theirs: Mapping[str, Any], ours: Mapping[str, Any], both_bases: bool) -> Iterator[str]:
    """Yield the keys whose values contradict the manifest: the base models, and that they were merged."""
    if "base_model" in theirs and "base_model" in ours:
        named, known = _set(theirs["base_model"]), _set(ours["base_model"])
        if (named != known) if both_bases else not known <= named:
            yield "base_model"
    if "base_model_relation" in ours and theirs.get("base_model_relation", "merge") != "merge":
        yield "base_model_relation"


def _set(value: Any) -> set[str]:
    return {str(item).lower() for item in (value if isinstance(value, list) else [value])}


def _metadata_of(front: str | None) -> dict[str, Any]:
    try:
        data = yaml.safe_load(front or "")
    except yaml.YAMLError as error:
        raise ForeignCardError(f"its metadata is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ForeignCardError("its metadata is not a list of `key: value` lines")
    return data


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digest(body: str) -> str:
    lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
