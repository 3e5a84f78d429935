"""The local Hub is as strict as the tests need it to be: what the real one refuses, it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hub_server.running import READ_TOKEN, TOKEN, RunningHub
from huggingface_hub.utils import get_session

DATA = b"weights" * 10
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def repo(hub: RunningHub) -> str:
    """A repository of the writer."""
    hub.store.create_repo("acme/model", private=True)
    return "acme/model"


def ask(hub: RunningHub, method: str, path: str, token: str | None = TOKEN, **how: Any) -> Any:
    """Send one request."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = path if path.startswith("http") else hub.url + path
    return get_session().request(method, url, headers={**headers, **how.pop("headers", {})}, **how)


def commit(hub: RunningHub, repo: str, *lines: dict[str, Any], token: str = TOKEN, **header: str) -> Any:
    """Send a commit; return its answer."""
    body = [{"key": "header", "value": {"summary": "test", "description": "", **header}}, *lines]
    data = b"\n".join(json.dumps(line).encode() for line in body)
    return ask(hub, "POST", f"/api/models/{repo}/commit/main", token, content=data)


def upload(hub: RunningHub, repo: str, oid: str = SHA256, size: int = len(DATA)) -> str | None:
    """Ask where to upload an object; None where it is there."""
    body = {
        "operation": "upload",
        "transfers": ["basic"],
        "hash_algo": "sha256",
        "objects": [{"oid": oid, "size": size}],
    }
    (found,) = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", json=body).json()["objects"]
    return str(found["actions"]["upload"]["href"]) if "actions" in found else None


LFS_FILE = {"key": "lfsFile", "value": {"path": "m.safetensors", "algo": "sha256", "oid": SHA256, "size": len(DATA)}}


def regular(path: str, content: bytes) -> dict[str, Any]:
    """Return a commit's line for a file that git keeps."""
    value = {"content": base64.b64encode(content).decode(), "path": path, "encoding": "base64"}
    return {"key": "file", "value": value}


def test_large_files_are_checked(hub: RunningHub, repo: str) -> None:
    """An object of another size or sha256 is refused, one that is right is kept and not asked for again."""
    href = upload(hub, repo)
    assert href is not None
    assert ask(hub, "PUT", href, None, content=DATA[:-1]).status_code == 400
    assert ask(hub, "PUT", href, None, content=DATA[:-1] + b"x").status_code == 400
    assert commit(hub, repo, LFS_FILE).status_code == 400
    assert ask(hub, "PUT", href, content=DATA).status_code == 400  # the storage wants no token
    assert ask(hub, "PUT", href, None, content=DATA).status_code == 200
    assert upload(hub, repo) is None
    assert commit(hub, repo, LFS_FILE).status_code == 200


def test_an_object_of_another_repository_is_not_there(hub: RunningHub, repo: str) -> None:
    """A commit cannot refer to what was uploaded elsewhere."""
    other = hub.store.create_repo("acme/other", private=False)
    href = upload(hub, other.id)
    assert href is not None
    ask(hub, "PUT", href, None, content=DATA)
    assert commit(hub, repo, LFS_FILE).status_code == 400
    assert commit(hub, other.id, LFS_FILE).status_code == 200


def test_a_commit_follows_the_one_it_names(hub: RunningHub, repo: str) -> None:
    """A commit whose parent is not the head is refused, and changes nothing."""
    head = hub.store.repos[repo].branches["main"]
    assert commit(hub, repo, regular("a.txt", b"a"), parentCommit=head).status_code == 200
    assert commit(hub, repo, regular("a.txt", b"b"), parentCommit=head).status_code == 412
    assert hub.store.blobs[hub.store.repos[repo].resolve("main").files["a.txt"].sha256] == b"a"


@pytest.mark.parametrize(
    "line",
    [regular("../a", b"x"), regular("a/.git/b", b"x"), regular("m.safetensors", b"x"), regular("a.png", b"\x00\xff"),
     regular("README.md", b"---\nbase_model:\n- ./lab\nlicense: mit\n---\n"),
     {"key": "deletedFile", "value": {"path": "none"}}],
    ids=["parent", "git", "weights", "binary", "card", "not there"],
)  # fmt: skip
def test_what_a_commit_may_not_hold(hub: RunningHub, repo: str, line: dict[str, Any]) -> None:
    """Paths outside, large or binary files in git, unsound cards and deletions of nothing are refused."""
    assert commit(hub, repo, line).status_code in (400, 404)
    assert set(hub.store.repos[repo].resolve("main").files) == {".gitattributes"}


def test_who_may_do_what(hub: RunningHub, repo: str) -> None:
    """Strangers do not learn of a private repository; a reader may look and not write; an unknown token is told so."""
    path = f"/api/models/{repo}"
    assert ask(hub, "GET", path, None).status_code == 401
    assert ask(hub, "GET", path, READ_TOKEN).status_code == 200
    assert ask(hub, "GET", path, "hf_unknown").status_code == 401
    assert commit(hub, repo, regular("a", b"a"), token=READ_TOKEN).status_code == 403
    assert ask(hub, "POST", "/api/repos/create", json={"name": "x", "organization": "others"}).status_code == 403
    assert ask(hub, "POST", "/api/repos/create", json={"name": "model", "organization": "acme"}).status_code == 409
    assert ask(hub, "GET", "/api/models/acme/none").status_code == 404
