"""The describing files of a repository, made from the manifest alone: the same family gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dami_merge.card.licence import Licence
from dami_merge.card.mergekit_config import lambdas_of, layer_lambdas, mergekit_config
from dami_merge.card.picture import lambda_picture
from dami_merge.card.serving import serving
from dami_merge.recipes.recipe import parse_recipe
from dami_router.manifest.family import MANIFEST, Endpoint, Family, Variant
from dami_router.output import table

__all__ = ["EVAL_FILE", "CardFiles", "Places", "hub_id", "make_card_files", "make_family_card"]

EVAL_FILE = ".eval_results/dami.yaml"
"""Where a repository's measured scores stand."""

_PICTURE = "lambda.png"
_CONFIG = "mergekit_config.yml"
_CACHED = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]{40}/?$", re.ASCII)
_BENCHMARK = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)#([\w][\w.-]*)", re.ASCII)

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
    values, anatomy = lambdas_of(family, variant, root / variant.folder)
    config = mergekit_config(family, values, anatomy)
    files = {
        "README.md": _card(_metadata(facts), _variant_text(facts, variant, config)),
        _PICTURE: lambda_picture(layer_lambdas(values, anatomy), variant.lambda_),
        _CONFIG: config.encode(),
    }
    scores = _eval_results(variant)
    if scores:
        files[EVAL_FILE] = scores
    return files


def make_family_card(family: Family, licence: Licence, places: Places) -> bytes:
    """Make the card of a repository that holds a family as branches."""
    facts = _Facts(family, licence, places)
    text = f"""\
# {family.name}

{_about(family)} Each variant is a branch of this repository; this branch holds the description alone.

{_siblings(facts, None)}
`{MANIFEST}` names every file with its sha256, the endpoints' commits, and the commit of each variant.

## Recipe

{_fenced(family.recipe, "yaml")}
{_CITATIONS}"""
    return _card(_metadata(facts), text)


def _card(metadata: dict[str, Any], text: str) -> bytes:
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}")
    return f"{str(card).rstrip()}\n".encode()


def _metadata(facts: _Facts) -> dict[str, Any]:
    ends = facts.family.endpoints
    data: dict[str, Any] = {"license": facts.licence.id}
    if facts.licence.name:
        data["license_name"] = facts.licence.name
    if facts.licence.link:
        data["license_link"] = facts.licence.link
    base = [hub_id(end) for end in (ends.instruct, ends.thinking)]
    if all(base):
        data |= {"base_model": base, "base_model_relation": "merge"}
    tags = ["mergekit", "merge", "dami"]
    return {**data, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}


def _variant_text(facts: _Facts, variant: Variant, config: str) -> str:
    family = facts.family
    repo, branch = facts.places[variant.id]
    one_value = len({group.lambda_ for group in variant.resolved}) == 1
    spread = "the same λ in every layer" if one_value else "λ spread over the layers as pictured"
    return f"""\
# {variant.id}

λ = {variant.lambda_:g} of the family **{family.name}**. {_about(family)}

![λ of each layer: bars from the first layer on the left to the last, height from 0 to 1]({_PICTURE})

λ by layer, {spread} (bottom 0, top 1; the dashed line is the variant's λ):

{_fenced(_lambda_table(variant))}
## Serve it

{serving(variant, repo, branch)}
## The family

{_siblings(facts, variant)}
DAMI ([arXiv 2601.21414](https://arxiv.org/abs/2601.21414)) answers each query at the λ that it needs. `dami pull`
fetches a family and checks every file, `dami verify` reads λ back from the weights. `{MANIFEST}` in this repository
names every file with its sha256, and the endpoints with their commits.
{_scores(variant)}
## How it was made

{_endpoint_lines(family)}
The chat template is that of the {variant.chat_template.source.capitalize()} endpoint. Built with \
{family.created_with.tool} {family.created_with.version}, in fp32 and rounded once to \
{_dtype(family)}. Where dami-merge is installed, stock mergekit makes the same tensors from [{_CONFIG}]({_CONFIG}):

{_fenced(config, "yaml")}
The family's recipe, as it was written:

{_fenced(family.recipe, "yaml")}
{_CITATIONS}"""


def _about(family: Family) -> str:
    ends = family.endpoints
    return (
        f"Weights on the straight line θ(λ) = (1−λ)·θ_Instruct + λ·θ_Thinking between {_link(ends.instruct)} (λ = 0, "
        f"answers at once) and {_link(ends.thinking)} (λ = 1, deliberates first)."
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
        measured = "; ".join(_score(m.benchmark, m.accuracy, m.mean_tokens, m.n) for m in variant.measured) or "not yet"
        lines.append(f"| {variant.lambda_:g} | {name} | {measured} |")
    return "\n".join(lines) + "\n"


def _score(benchmark: str, accuracy: float, tokens: float, n: int) -> str:
    return f"{_inline(benchmark)}: {accuracy:.1%} at {tokens:,.0f} tokens (n = {n})"


def _scores(variant: Variant) -> str:
    if not variant.measured:
        return ""
    lines = [
        "",
        "## Measured",
        "",
        "| benchmark | accuracy | mean tokens of an answer | queries |",
        "|---|---|---|---|",
    ]
    lines += [f"| {_inline(m.benchmark)} | {m.accuracy:.1%} | {m.mean_tokens:,.0f} | {m.n} |" for m in variant.measured]
    return "\n".join([*lines, ""])


def _eval_results(variant: Variant) -> bytes | None:
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = []
    for m in variant.measured:
        # Only `owner/dataset#task` names a benchmark of the Hub; others are in the card's own table.
        found = _BENCHMARK.fullmatch(m.benchmark)
        if found:
            notes = f"{m.mean_tokens:.0f} tokens an answer on average, n = {m.n}"
            value = round(100 * m.accuracy, 2)
            entries.append(EvalResultEntry(dataset_id=found[1], task_id=found[2], value=value, notes=notes))
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return text.encode() if entries else None


def _endpoint_lines(family: Family) -> str:
    lines = []
    for name, end in (("Instruct (λ = 0)", family.endpoints.instruct), ("Thinking (λ = 1)", family.endpoints.thinking)):
        commit = f" at commit `{end.commit}`" if end.commit else ", a local folder"
        lines.append(f"- {name}: {_link(end)}{commit}; {end.architecture}, {end.parameters:,} parameters")
    return "\n".join(lines) + "\n"


def _link(end: Endpoint) -> str:
    repo = hub_id(end)
    return f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{_inline(end.source)}`"


def hub_id(end: Endpoint) -> str | None:
    """Return an endpoint's id on the Hub; None for a folder that is not in the Hub's cache."""
    if end.commit:
        return end.source.partition("@")[0]
    cached = _CACHED.search(end.source)
    return f"{cached[1]}/{cached[2]}" if cached else None


def _dtype(family: Family) -> str:
    recipe = parse_recipe(family.recipe, "recipe")
    return recipe.out_dtype or recipe.dtype or family.endpoints.instruct.dtype


def _inline(text: str) -> str:
    return re.sub(r"[|`\[\]<>\r\n]", " ", text)


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
