"""The describing files of a repository.

Made from the manifest alone: the same family gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_merge.card.card_merge import frame, front_matter
from dami_merge.card.card_scores import EVAL_FILE, eval_results, inline, scores_in_short, scores_table
from dami_merge.card.endpoint_ids import base_models, hub_id
from dami_merge.card.licence import Licence
from dami_merge.card.mergekit_config import lambdas_of, layer_lambdas, mergekit_config
from dami_merge.card.picture import lambda_picture
from dami_merge.card.serving import longest_prompt, serving
from dami_merge.recipes.recipe import parse_recipe
from dami_router.manifest.family import MANIFEST, Endpoint, Family, Variant
from dami_router.output import table

__all__ = ["CardFiles", "Places", "make_card_files", "make_family_card"]

_PICTURE = "lambda.png"
_CONFIG = "mergekit_config.yml"

CardFiles = Mapping[str, bytes]
"""File names in the repository and their content."""

Places = Mapping[str, tuple[str, str | None]]
"""Repository and branch (None for main) of each variant, by its id."""


@dataclass(frozen=True)
class _Facts:
    family: Family
    licence: Licence
    places: Places


def make_card_files(family: Family, variant: Variant, root: Path, licence: Licence, places: Places) -> CardFiles:
    """Make the card, the picture, mergekit's configuration and, where it was measured, the scores of a variant."""
    facts = _Facts(family, licence, places)
    folder = root / variant.folder
    values, anatomy = lambdas_of(family, variant, folder)
    config = mergekit_config(family, values, anatomy)
    files = {
        "README.md": _card(_metadata(facts), _variant_text(facts, variant, config, longest_prompt(folder))),
        _PICTURE: lambda_picture(layer_lambdas(values, anatomy), variant.lambda_),
        _CONFIG: config.encode(),
    }
    scores = eval_results(variant)
    if scores:
        files[EVAL_FILE] = scores
    return files


def make_family_card(family: Family, licence: Licence, places: Places) -> bytes:
    """Make the card of a repository that holds a family as branches."""
    facts = _Facts(family, licence, places)
    text = f"""\
# {family.name}

{_about(family)} Each variant is a branch of this repository; `main` holds this description alone.

{_siblings(facts, None)}
`{MANIFEST}` names every file with its sha256, the endpoints' commits, and the commit of each variant.

## Recipe

{_fenced(family.recipe, "yaml")}
{_CITATIONS}"""
    return _card(_metadata(facts), text)


def _card(metadata: Mapping[str, Any], text: str) -> bytes:
    return f"---\n{front_matter(metadata)}\n---\n\n{frame(text)}".encode()


def _metadata(facts: _Facts) -> dict[str, Any]:
    data: dict[str, Any] = {"license": facts.licence.id}
    if facts.licence.name:
        data["license_name"] = facts.licence.name
    if facts.licence.link:
        data["license_link"] = facts.licence.link
    base = base_models(facts.family.endpoints)
    if base:
        data |= {"base_model": base, "base_model_relation": "merge"}
    tags = ["mergekit", "merge", "dami"]
    return {**data, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}


def _variant_text(facts: _Facts, variant: Variant, config: str, longest: int | None) -> str:
    family = facts.family
    repo, branch = facts.places[variant.id]
    one_value = len({group.lambda_ for group in variant.resolved}) == 1
    spread = "the same in every layer" if one_value else "different from layer to layer"
    return f"""\
# {variant.id}

λ = {variant.lambda_:g} of the family **{family.name}**. {_about(family)}

![λ of each layer: bars from the first layer on the left to the last, height from 0 to 1]({_PICTURE})

λ of each layer, from the first on the left to the last on the right (bottom 0, top 1; the dashed line is the variant's
λ). It is {spread}:

{_fenced(_lambda_table(variant))}
## Use it

{serving(variant, repo, branch, longest)}
## Intended use and limits

{_LIMITS}{scores_table(variant)}
## The family

{_siblings(facts, variant)}
DAMI ([arXiv 2601.21414](https://arxiv.org/abs/2601.21414)) answers each query at the λ that it needs. With dami-merge
installed, `dami pull` fetches a family and checks every file, and `dami verify` reads λ back from the weights.
`{MANIFEST}` in this repository names every file with its sha256, and the endpoints with their commits.

## How it was made

{_endpoint_lines(family)}
The chat template is that of the {variant.chat_template.source.capitalize()} endpoint. Built with \
{family.created_with.tool} {family.created_with.version}, in fp32 and rounded once to \
{_dtype(family)}. With dami-merge installed, stock mergekit makes the same tensors from [{_CONFIG}]({_CONFIG}):

```
{_INSTALL}
mergekit-yaml {_CONFIG} out
```

{_fenced(config, "yaml")}
The family's recipe{_local_names(family)}:

{_fenced(family.recipe, "yaml")}
{_CITATIONS}"""


_LIMITS = """\
- **Intended use**: text generation with one model whose amount of thinking is chosen by λ, alone or behind a router
  that chooses λ for each query. The endpoints' own terms, intended uses and warnings apply to this model too.
- **Limits**: these are interpolated weights; nothing was trained and nothing was aligned after the merge. Quality and
  length of answers do not always grow with λ, and only what is listed under "measured" was measured: test it on your
  own task before you rely on it.
"""
_INSTALL = "pip install -c constraints.txt './plugins/dami-router[all]' .   # in a clone of dami-merge"


def _local_names(family: Family) -> str:
    local = [end.source for end in (family.endpoints.instruct, family.endpoints.thinking) if hub_id(end) is None]
    if not local:
        return ", as it was written"
    names = " and ".join(f"`{inline(name)}`" for name in local)
    return f"; {names} stand{'s' if len(local) == 1 else ''} for local folders: put your own paths there"


def _about(family: Family) -> str:
    ends = family.endpoints
    return (
        f"Its weights are interpolated between {_link(ends.instruct)} (λ = 0, answers at once) and "
        f"{_link(ends.thinking)} (λ = 1, thinks first): `θ(λ) = (1−λ)·θ_Instruct + λ·θ_Thinking`."
    )


def _lambda_table(variant: Variant) -> str:
    rows = []
    for g in variant.resolved:
        layers = "-" if g.first is None else f"{g.first}" if g.first == g.last else f"{g.first}–{g.last}"
        rows.append((f"{g.stack} {layers}".strip(), g.module, f"{g.lambda_:.4g}", str(g.tensors)))
    return table(("layers", "module", "λ", "tensors"), rows) + "\n"


def _siblings(facts: _Facts, this: Variant | None) -> str:
    lines = ["| λ | variant | measured |", "|---|---|---|"]
    for variant in facts.family.variants:
        repo, branch = facts.places[variant.id]
        address = f"https://huggingface.co/{repo}" + (f"/tree/{branch}" if branch else "")
        name = f"**{variant.id}** (this one)" if this and variant.id == this.id else f"[{variant.id}]({address})"
        lines.append(f"| {variant.lambda_:g} | {name} | {scores_in_short(variant)} |")
    return "\n".join(lines) + "\n"


def _endpoint_lines(family: Family) -> str:
    lines = []
    for name, end in (("Instruct (λ = 0)", family.endpoints.instruct), ("Thinking (λ = 1)", family.endpoints.thinking)):
        commit = f" at commit `{end.commit}`" if end.commit else ", a local folder"
        lines.append(f"- {name}: {_link(end)}{commit}; {end.architecture}, {end.parameters:,} parameters")
    return "\n".join(lines) + "\n"


def _link(end: Endpoint) -> str:
    repo = hub_id(end)
    return f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{inline(end.source)}`"


def _dtype(family: Family) -> str:
    recipe = parse_recipe(family.recipe, "recipe")
    return recipe.out_dtype or recipe.dtype or family.endpoints.instruct.dtype


def _fenced(text: str, language: str = "") -> str:
    # A fence longer than any in the text, so that nothing in it can end the block.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


_CITATIONS = """\
## Citation

The idea, λ(q) chosen for each query, is that of DAMI ([arXiv 2601.21414](https://arxiv.org/abs/2601.21414)); the merge
method runs in mergekit:

```bibtex
@misc{dami2026,
  title  = {System 1\\&2 Synergy via Dynamic Model Interpolation},
  note   = {arXiv:2601.21414},
  year   = {2026},
  url    = {https://arxiv.org/abs/2601.21414}
}
@misc{goddard2024mergekit,
  title  = {Arcee's MergeKit: A Toolkit for Merging Large Language Models},
  author = {Goddard, Charles and others},
  note   = {arXiv:2403.13257},
  year   = {2024},
  url    = {https://arxiv.org/abs/2403.13257}
}
```
"""
