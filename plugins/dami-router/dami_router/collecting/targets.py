"""The work of a run: which λ, which server for each, and which answers are missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
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

__all__ = ["lanes", "pair_of", "targets", "with_caps"]

_DIGITS = 6


def targets(router: Router, only: Sequence[float] = (), lambdas: Sequence[float] = ()) -> list[RolloutTarget]:
    """Return the targets by λ: every variant with a server, or the live servers at the given `lambdas`.

    `only` keeps the variants at these λ. Raises MisuseError if no server has a λ, or a choice is required.
    """
    live = router.fleet.of(LIVE)
    if lambdas:
        if not live:
            raise MisuseError("--lambdas needs a live server; router.yml has none", hint="choose variants with --only")
        if only:
            raise MisuseError("--only chooses variants, --lambdas the λ of live servers: give only one of the two")
        return [_live(x, live) for x in sorted({_rounded(x) for x in lambdas})]
    if not router.config.variants:
        raise MisuseError("a live server answers at any λ: choose some", hint="--lambdas 0,0.25,0.5,0.75,1")
    found = [target for v in router.config.variants if (target := _target(router, v)) is not None]
    known = [target.lambda_ for target in found]
    if doubled := {x for x in known if known.count(x) > 1}:
        raise MisuseError(f"two variants have λ={min(doubled):g}; rollouts need one variant per λ")
    wanted = [_rounded(x) for x in only]
    for x in wanted:
        if x not in known:
            raise MisuseError(
                f"no variant with λ={x:g} has a server", hint=f"served: {listed(f'{k:g}' for k in known)}"
            )
    return [target for target in found if not wanted or target.lambda_ in wanted]


def with_caps(found: Sequence[RolloutTarget], caps: Sequence[int], at: Sequence[float] = ()) -> list[RolloutTarget]:
    """Return the targets, and those at the λ of `at` once more for each cap on their thinking tokens.

    `at` is the largest λ by default. Raises MisuseError for a λ that is not among the targets.
    """
    known = [target.lambda_ for target in found]
    wanted = {_rounded(x) for x in at} or {max(known)}
    if strange := sorted(wanted - set(known)):
        raise MisuseError(f"--caps-at: λ={strange[0]:g} is not run", hint=f"run are {listed(f'{k:g}' for k in known)}")
    capped = [replace(t, cap=cap) for t in found if t.lambda_ in wanted for cap in sorted(set(caps))]
    return [*found, *capped]


def pair_of(router: Router, wanted: Sequence[RolloutTarget]) -> str | None:
    """Return the names of the endpoints behind the live servers; None if there is none, or none reports them."""
    if not any(target.variant == LIVE for target in wanted):
        return None
    for replica in router.fleet.of(LIVE):
        told = replica.identity.info.get("live") if replica.identity else None
        ends = [told.get(side) for side in ("instruct", "thinking")] if isinstance(told, dict) else []
        if ends and all(isinstance(end, dict) for end in ends):
            return " → ".join(_told(end) for end in ends)
    return None


def _told(end: Any) -> str:
    """Return an endpoint's name from a live server, with its commit, else with the digest of its files' digests."""
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
    """Return the missing answers: a list per variant and one for all live servers, question by question."""
    by_server: dict[str, list[RolloutTarget]] = {}
    for target in wanted:
        by_server.setdefault(target.variant, []).append(target)
    return [
        [
            (target, question, sample)
            for question in questions
            for target in group
            for sample in range(samples)
            if (question.id, target.lambda_, target.cap, sample) not in done
        ]
        for group in by_server.values()
    ]


def _rounded(lambda_: float) -> float:
    if not 0.0 <= lambda_ <= 1.0:
        raise MisuseError(f"λ={lambda_:g} is outside [0, 1]")
    # Rounded as in rollouts: 0.1 + 0.2 and 0.3 are one λ.
    return round(lambda_, _DIGITS)
