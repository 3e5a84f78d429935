"""What a run has to ask for: which λ, who answers at each, and what of it is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dami_router.collecting.asking import RolloutTarget
from dami_router.collecting.rollout_journal import Key
from dami_router.config.specs import VariantSpec
from dami_router.datasets import Question
from dami_router.errors import MisuseError
from dami_router.messages.pinning import LIVE, pin
from dami_router.router import Router
from dami_router.shared.suggestions import listed
from dami_router.upstream.fleet import Replica

__all__ = ["lanes", "pair_of", "targets"]

_DIGITS = 6


def targets(router: Router, only: Sequence[float] = (), lambdas: Sequence[float] = ()) -> list[RolloutTarget]:
    """Return who is to answer, by λ: every variant with a server, or the live servers at given `lambdas`.

    `only` keeps the variants at these λ. Raises MisuseError where there is nobody for a λ, or no choice was made.
    """
    live = router.fleet.of(LIVE)
    if lambdas:
        if not live:
            raise MisuseError("--lambdas is for live servers, and router.yml has none", hint="--only chooses variants")
        if only:
            raise MisuseError("--only chooses variants, --lambdas what a live server is asked for: give one of the two")
        return [_live(x, live) for x in sorted({_rounded(x) for x in lambdas})]
    if not router.config.variants:
        raise MisuseError("a live server has every λ: say which to ask for", hint="--lambdas 0,0.25,0.5,0.75,1")
    found = [target for v in router.config.variants if (target := _target(router, v)) is not None]
    known = [target.lambda_ for target in found]
    if doubled := {x for x in known if known.count(x) > 1}:
        raise MisuseError(f"two variants have λ={min(doubled):g}; rollouts are told apart by λ")
    wanted = [_rounded(x) for x in only]
    for x in wanted:
        if x not in known:
            raise MisuseError(
                f"no variant with λ={x:g} has a server", hint=f"served: {listed(f'{k:g}' for k in known)}"
            )
    return [target for target in found if not wanted or target.lambda_ in wanted]


def pair_of(router: Router, wanted: Sequence[RolloutTarget]) -> str | None:
    """Return the names of the endpoints behind the live servers; None where none is asked, or none says it."""
    if not any(target.variant == LIVE for target in wanted):
        return None
    for replica in router.fleet.of(LIVE):
        told = replica.identity.info.get("live") if replica.identity else None
        ends = [told.get(side) for side in ("instruct", "thinking")] if isinstance(told, dict) else []
        if ends and all(isinstance(end, dict) for end in ends):
            return " → ".join(_told(end) for end in ends)
    return None


def _told(end: Any) -> str:
    """Name an endpoint as a live server describes it, with its commit, else the digest of its files' digests."""
    files = json.dumps(end.get("files"), sort_keys=True)
    return f"{end.get('name')}@{end.get('commit') or hashlib.sha256(files.encode()).hexdigest()[:16]}"


def _target(router: Router, variant: VariantSpec) -> RolloutTarget | None:
    lambda_ = _rounded(variant.lambda_)
    if router.fleet.of(variant.id):
        return RolloutTarget(lambda_, variant.id, variant.id, variant.opens_think)
    live = router.fleet.of(LIVE)
    return _live(lambda_, live) if live else None


def _live(lambda_: float, servers: Sequence[Replica]) -> RolloutTarget:
    return RolloutTarget(lambda_, LIVE, pin(lambda_), any(server.opens_think(lambda_) for server in servers))


def lanes(
    wanted: Sequence[RolloutTarget], questions: Sequence[Question], samples: int, done: set[Key]
) -> list[list[tuple[RolloutTarget, Question, int]]]:
    """Return what is missing, a list for each variant and one for all live servers, question by question."""
    by_server: dict[str, list[RolloutTarget]] = {}
    for target in wanted:
        by_server.setdefault(target.variant, []).append(target)
    return [
        [
            (target, question, sample)
            for question in questions
            for target in group
            for sample in range(samples)
            if (question.id, target.lambda_, sample) not in done
        ]
        for group in by_server.values()
    ]


def _rounded(lambda_: float) -> float:
    if not 0.0 <= lambda_ <= 1.0:
        raise MisuseError(f"λ={lambda_:g} is outside [0, 1]")
    # As rollouts are read: 0.1 + 0.2 and 0.3 are one λ.
    return round(lambda_, _DIGITS)
