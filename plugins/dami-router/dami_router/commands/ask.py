"""`dami ask`: answer one query with the variant at its λ."""

from __future__ import annotations

from pathlib import Path

import click

from dami_router.cli import command
from dami_router.commands.shared_options import query_options
from dami_router.output import Output

__all__ = ["ask"]


@command(
    "ask",
    examples=('dami ask router.yml "What is 17 · 23?"', 'dami ask router.yml "What is 17 · 23?" --model dami:1'),
    help="Answer one query with the servers of router.yml: estimate λ, choose the variant, and fall back to the "
    "nearest one if it fails. The answer goes to stdout, the decision to stderr.",
)
@query_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit of the answer, in tokens.")
def ask(output: Output, config: Path, query: str, effort: str | None, model: str, max_tokens: int | None) -> None:
    """Answer one query."""
    import asyncio

    from dami_router.commands.one_query import ask as answer

    decision, variant, completion = asyncio.run(answer(config, query, model, effort, max_tokens))
    output.note(f"λ = {decision.lambda_:g} by {decision.estimator}, answered by {variant}")
    text = completion["choices"][0]["message"].get("content") or ""
    told = {"answered_by": variant, "decision": decision.as_dict(), "completion": completion}
    output.result(text, {"answer": text, **told})
