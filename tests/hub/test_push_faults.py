"""`dami push` on bad days: every step fails in turn, and nothing is lost or half published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server.running import RunningHub
from support.hub_state import Command, nothing_half_published, published

from dami_router.manifest.family import load_family

ALWAYS = 99


def name(request: str, how: dict[str, Any]) -> str:
    """Name a fault in a test's id."""
    what = next(f"{key}={how[key]}" for key in ("status", "cut", "lost") if key in how)
    return f"{request.replace('.*', '')} {what} after {how.get('skip', 0)}"


FAILING: list[tuple[str, dict[str, Any], str]] = [
    ("GET /api/whoami", {"status": 401, "message": "Invalid credentials in Authorization header"}, "accept the token"),
    ("GET /api/whoami", {"status": 503}, "the Hub answers 503"),
    ("GET /api/models/acme/fam-l050$", {"status": 500}, "acme/fam-l050: the Hub answers 500"),
    ("POST /api/validate-yaml", {"status": 500}, "the card's metadata: the Hub answers 500"),
    ("POST /api/repos/create", {"status": 403, "skip": 1}, "may not do that"),
    ("POST /api/repos/create", {"status": 429, "skip": 1}, "asks to slow down"),
    ("POST /api/repos/create", {"cut": 0}, "the connection to the Hub broke"),
    ("POST .*/preupload/", {"status": 500, "skip": 1}, "the Hub answers 500"),
    ("POST .*/objects/batch", {"status": 429, "skip": 1}, "asks to slow down"),
    ("PUT /lfs/", {"cut": 50_000, "skip": 3}, "the connection to the Hub broke"),
    ("PUT /lfs/", {"status": 403, "message": "Signature expired", "skip": 2}, "Signature expired"),
    ("POST /lfs/.*/complete", {"status": 500, "skip": 1}, "the Hub answers 500"),
    ("POST /lfs/.*/verify", {"status": 404, "skip": 1}, "no such repository"),
    ("POST .*/commit/", {"status": 412, "skip": 1}, "changed on the Hub in the meantime"),
    ("POST .*/commit/", {"status": 409, "skip": 1}, "another change of the same thing"),
    ("POST .*/commit/", {"status": 503, "skip": 2}, "the Hub answers 503"),
    ("POST .*/commit/", {"cut": 10, "skip": 1}, "the connection to the Hub broke"),
    ("POST .*/commit/", {"status": 500, "skip": 4}, "the Hub answers 500"),
    ("GET /api/collections", {"status": 500}, "collection fam: the Hub answers 500"),
    ("POST /api/collections$", {"status": 403}, "collection fam: the token may not do that"),
    ("POST /api/collections/.*/items", {"status": 500, "skip": 1}, "collection fam: the Hub answers 500"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "how", "says"), FAILING, ids=[name(*f[:2]) for f in FAILING])
def test_a_failure_is_told_and_the_next_push_goes_on(
    hub: RunningHub, push: Command, family: Path, request_: str, how: dict[str, Any], says: str
) -> None:
    """Where a step keeps failing, push ends with 1 and its reason; run again, it finishes the same family."""
    hub.faults.plan(request_, times=ALWAYS, **how)
    failed = push("--jobs", "1")
    assert (failed.code, failed.out) == (1, "")
    assert says in failed.err
    assert "Traceback" not in failed.err
    assert "/lfs/" not in failed.err  # a signed address is a secret
    assert nothing_half_published(hub, family)
    assert load_family(family).variants[0].hub is None or repos_complete(hub)
    hub.faults.planned.clear()
    stored = {repo.id: set(repo.objects) for repo in hub.store.repos.values()}
    log = len(hub.faults.log)
    assert push().code == 0
    assert published(hub, family)
    sent_again = [line for line in hub.faults.log[log:] if line.startswith("PUT /lfs/")]
    missing = 3 * 2 - sum(map(len, stored.values()))  # weights and picture of each variant
    assert len(sent_again) <= missing * 4  # weights come in four parts
    assert bool(sent_again) == bool(missing)


def repos_complete(hub: RunningHub) -> bool:
    """Whether all three repositories have their files."""
    heads = [repo.resolve("main").files for repo in hub.store.repos.values()]
    return len(heads) == 3 and all("model.safetensors" in files for files in heads)


PASSING: list[tuple[str, dict[str, Any]]] = [
    ("POST .*/preupload/", {"status": 502}),
    ("POST .*/objects/batch", {"status": 429}),
    ("PUT /lfs/", {"cut": 50_000}),
    ("PUT /lfs/", {"status": 503}),
    ("POST /lfs/.*/complete", {"lost": True}),
    ("POST .*/commit/", {"status": 500}),
    ("POST .*/commit/", {"lost": True}),
    ("POST .*/commit/", {"lost": True, "skip": 3}),
]


@pytest.mark.parametrize(("request_", "how"), PASSING, ids=[name(*f) for f in PASSING])
def test_trouble_that_passes_is_sat_out(
    hub: RunningHub, push: Command, family: Path, request_: str, how: dict[str, Any]
) -> None:
    """A fault that happens once is retried within the push, and makes no second commit of the same files."""
    hub.faults.plan(request_, **how)
    done = push()
    assert done.code == 0, done.err
    assert published(hub, family)
    assert hub.commits == 6


def test_a_commit_in_between_is_not_written_over(hub: RunningHub, push: Command, family: Path) -> None:
    """Somebody's commit between our look and our commit is refused by the Hub, kept, and told."""
    push()
    repo = hub.store.repos["acme/fam-l050"]
    data = json.loads((family / "dami_family.json").read_text())
    data["variants"][0]["measured"] = [{"benchmark": "sums", "accuracy": 1.0, "mean_tokens": 3.0, "n": 4}]
    (family / "dami_family.json").write_text(json.dumps(data))

    original = hub.store.write

    def somebody(*arguments: Any) -> Any:
        hub.store.write = original  # type: ignore[method-assign]
        head = repo.resolve("main")
        original(repo, "main", "hello", {**head.files, "hello.txt": hub.store.regular(b"hello")}, head.sha)
        return original(*arguments)

    hub.store.write = somebody  # type: ignore[method-assign]
    done = push("--jobs", "1")
    assert done.code == 1
    assert "acme/fam-l050: it was changed on the Hub in the meantime" in done.err
    assert push().code == 0
    assert "hello.txt" in repo.resolve("main").files
