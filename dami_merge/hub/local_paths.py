"""The manifest as it is published: without the paths of this machine.

An endpoint that is a folder is named by the folder's name, or by its id and commit where it lies
in the Hub's cache; in the recipe too, so that whoever reads it knows what to replace.
"""

from __future__ import annotations

import re

from dami_merge.card.endpoint_ids import cached_commit, endpoint_name, hub_id
from dami_router.errors import FailureError
from dami_router.manifest.family import Endpoint, Family

__all__ = ["without_local_paths"]

# An absolute path of two parts or more, one from a home, or a Windows path; neither part of an
# address nor of a Hub id. Relative paths tell nothing about the machine.
_PATH = re.compile(r"(?<![\w.:/@~-])(?:~/[\w.+@/-]+|/[\w.+@-]+/[\w.+@/-]+|[A-Za-z]:\\[^\s'\"]+)")


def without_local_paths(family: Family) -> Family:
    """Return the family with its local paths replaced by the endpoints' names.

    Raises FailureError where the recipe names other paths, which nothing can stand in for.
    """
    ends = (family.endpoints.instruct, family.endpoints.thinking)
    names = _names(*ends)
    recipe = family.recipe
    for end in sorted(ends, key=lambda end: len(end.source), reverse=True):
        if names[end.source] != end.source:
            source = re.escape(end.source.rstrip("/"))
            name = names[end.source].replace("\\", "\\\\")
            recipe = re.sub(rf"(?<![\w./~-]){source}/?(?![\w/-])", name, recipe)
    _refuse_paths(recipe)
    changed = {
        side: end.model_copy(update={"source": names[end.source], "commit": end.commit or cached_commit(end)})
        for side, end in zip(("instruct", "thinking"), ends, strict=True)
    }
    endpoints = family.endpoints.model_copy(update=changed)
    return family.model_copy(update={"endpoints": endpoints, "recipe": recipe})


def _names(instruct: Endpoint, thinking: Endpoint) -> dict[str, str]:
    names = {}
    for end in (instruct, thinking):
        commit = cached_commit(end)
        names[end.source] = end.source if end.commit else f"{hub_id(end)}@{commit}" if commit else endpoint_name(end)
    if instruct.source != thinking.source and names[instruct.source] == names[thinking.source]:
        for side, end in (("instruct", instruct), ("thinking", thinking)):
            names[end.source] += "" if end.commit else f"-{side}"
    return names


def _refuse_paths(recipe: str) -> None:
    for number, line in enumerate(recipe.splitlines(), 1):
        found = _PATH.search(line)
        if found:
            raise FailureError(
                f"recipe:{number}: names the local path {found[0]}; the recipe is published in cards and manifests",
                hint="build from a recipe without it, or publish it as it is: --publish-paths",
            )
