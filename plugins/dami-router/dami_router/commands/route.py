"""`dami route`: show the λ and the variant that a query would get, and why."""

from __future__ import annotations

from pathlib import Path

from dami_router.cli import command
from dami_router.commands.shared_options import query_options
from dami_router.output import Output

__all__ = ["route"]


@command(
    "route",
    examples=('dami route router.yml "What is 17 · 23?"', 'dami route router.yml "Why is the sky blue?" --effort low'),
    help="Show the decision for one query with its evidence, without generating an answer. Checks the health of the "
    "servers in router.yml, as the proxy would.",
)
@query_options
def route(output: Output, config: Path, query: str, effort: str | None, model: str) -> None:
    """Decide on one query."""
    import asyncio

    from dami_router.commands.one_query import decide

    decision = asyncio.run(decide(config, query, model, effort))
    evidence = "".join(f"\n  {name}: {value}" for name, value in decision.evidence.items())
    text = f"λ = {decision.lambda_:g} by {decision.estimator} → {decision.name()}{evidence}"
    output.result(
        f"{text}\nthen: {', '.join(decision.name(id) for id in decision.order[1:]) or 'none'}", decision.as_dict()
    )
