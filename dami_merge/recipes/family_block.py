"""The `family:` block of a recipe: which variants, along which path, with whose template."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dami_merge.interpolation.depth import Place
from dami_merge.interpolation.path import Path, Uniform, parse_path
from dami_merge.interpolation.schedule import check_lambda, parse_lambda
from dami_merge.interpolation.setting import Constant, Setting, read_setting
from dami_router.errors import MisuseError
from dami_router.shared.strict_yaml import Document

__all__ = ["FamilyBlock", "read_family"]

_KEYS = ("name", "lambdas", "path", "chat_template")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_FROM = re.compile(r"from\(\s*([0-9.eE+-]+)\s*\)")
_MAX_VARIANTS = 101


@dataclass(frozen=True)
class FamilyBlock:
    """A family to build: `lambdas` sorted and distinct in [0, 1]."""

    name: str
    lambdas: tuple[float, ...]
    path: Setting[Path]
    thinking_template_from: float
    """The variants with λ at or above this carry Thinking's chat template; above 1 none does."""

    def lambda_at(self, lambda_: float, name: str, place: Place) -> float:
        """Return λ_l for a tensor of the variant at the family's λ; tensors no filter names follow λ itself."""
        path = self.path.resolve(name, place.x) or Uniform()
        return path.lambda_at(lambda_, place)


def read_family(document: Document, raw: object) -> FamilyBlock:
    """Read the block; raises RecipeError with line and key for anything wrong in it."""
    if not isinstance(raw, dict):
        raise document.error(("family",), "expected a mapping with `name` and `lambdas`")
    document.only_keys(("family",), raw, _KEYS)
    path: Setting[Path] = Constant(Uniform())
    if "path" in raw:
        path = read_setting(document, ("family", "path"), raw["path"], parse_path, gradients=False)
    return FamilyBlock(
        name=_name(document, raw.get("name")),
        lambdas=_lambdas(document, raw.get("lambdas")),
        path=path,
        thinking_template_from=_template(document, raw.get("chat_template", "instruct")),
    )


def _name(document: Document, raw: object) -> str:
    if raw is None:
        raise document.error(("family",), "lacks `name`", hint="for example `name: Qwen3-4B-DAMI`")
    if not isinstance(raw, str) or not _NAME.fullmatch(raw) or ".." in raw or "--" in raw:
        raise document.error(
            ("family", "name"),
            f"expected a name that the Hub accepts (letters, digits, `.`, `_`, `-`; at most 96), found {raw!r:.120}",
        )
    return raw


def _lambdas(document: Document, raw: object) -> tuple[float, ...]:
    place = ("family", "lambdas")
    if not isinstance(raw, list) or not 1 <= len(raw) <= _MAX_VARIANTS:
        raise document.error(
            place if raw is not None else ("family",),
            f"`lambdas` expects a list of 1 to {_MAX_VARIANTS} numbers in [0, 1], such as [0, 0.5, 1]",
        )
    found: list[float] = []
    for i, item in enumerate(raw):
        try:
            value = parse_lambda(item)
            if not isinstance(value, float):
                raise MisuseError("expected a number; a family's λ is one number, its `path` spreads it")
            found.append(check_lambda(value, where="lambda"))
        except MisuseError as error:
            raise document.error((*place, i), error.message.removeprefix("lambda: ")) from None
        if found[-1] in found[:-1]:
            raise document.error((*place, i), f"λ={found[-1]:g} given twice")
    return tuple(sorted(found))


def _template(document: Document, raw: object) -> float:
    if raw == "instruct":
        return float("inf")
    if raw == "thinking":
        return 0.0
    match = _FROM.fullmatch(raw) if isinstance(raw, str) else None
    if match:
        try:
            return check_lambda(float(match[1]))
        except (MisuseError, ValueError):
            pass
    raise document.error(
        ("family", "chat_template"),
        f"expected instruct, thinking or from(λ) with λ in [0, 1], found {raw!r:.60}",
    )
