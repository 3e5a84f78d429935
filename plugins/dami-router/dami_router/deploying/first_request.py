"""The end of every opening comment: a request to the router, and the reply to expect."""

from __future__ import annotations

from dami_router.choosing.policy import nearest
from dami_router.deploying.fleet_plan import FleetPlan
from dami_router.deploying.router_file import RouterSection
from dami_router.estimators.effort import EFFORTS

__all__ = ["first_request"]

_EFFORT = "low"


def first_request(plan: FleetPlan, section: RouterSection, url: str) -> str:
    """Return commands that ask the router at `url`, and what comes back where the settings are the defaults."""
    lambda_, variant = "...", "..."
    if not section.own:
        lambda_ = f"{EFFORTS[_EFFORT]:g}"
        variant = f"dami:{lambda_}" if plan.settings.live else _nearest(plan, EFFORTS[_EFFORT])
    source, key = "", ""
    if section.keys:
        source, key = "  . ./.env\n", f' -H "Authorization: Bearer ${section.keys[0]}"'
    return f"""\
Then ask, and read which variant answered:

{source}  curl -si {url}/v1/chat/completions{key} \\
    -H 'Content-Type: application/json' -d '{{"model": "dami", "reasoning_effort": "{_EFFORT}",
         "messages": [{{"role": "user", "content": "What is 17 * 23?"}}]}}'

  HTTP/1.1 200 OK
  x-dami-lambda: {lambda_}
  x-dami-variant: {variant}
  {{"choices": [{{"message": {{"role": "assistant", "content": "17 * 23 = 391 ..."}}}}], ...}}"""


def _nearest(plan: FleetPlan, lambda_: float) -> str:
    served = {server.variant.lambda_: server.variant.id for server in plan.servers if server.variant}
    return served[nearest(lambda_, list(served))]
