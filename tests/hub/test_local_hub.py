"""The local Hub is as strict as the tests need it to be: what the real one refuses, it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hub_server import rules
from hub_server.running import FINE_TOKEN, READ_TOKEN, TOKEN, RunningHub
from huggingface_hub import HfApi
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
     regular(".eval_results/x.yaml", b"- {dataset: {id: a/b}, value: 1}"),
     {"key": "deletedFile", "value": {"path": "none"}}],
    ids=["parent", "git", "weights", "binary", "card", "score", "not there"],
)  # fmt: skip
def test_what_a_commit_may_not_hold(hub: RunningHub, repo: str, line: dict[str, Any]) -> None:
    """Paths outside, large or binary files in git, unsound cards and deletions of nothing are refused."""
    assert commit(hub, repo, line).status_code in (400, 404)
    assert set(hub.store.repos[repo].resolve("main").files) == {".gitattributes"}


@pytest.mark.parametrize(
    ("front", "says"),
    [
        ("license: Apache 2.0", "license"), ("license: mit\nbase_model: ./x", "base_model"),
        ("license: mit\nbase_model_relation: blend", "base_model_relation"), ("license: mit\ntags: dami", "tags"),
        ("license: [", "parsing"),
    ],
)  # fmt: skip
def test_metadata_is_validated_by_its_route_and_by_a_commit(hub: RunningHub, repo: str, front: str, says: str) -> None:
    """The closed list of licences and the forms of fields are checked; a card without metadata is a warning."""
    card = f"---\n{front}\n---\n# Card\n"
    answer = ask(hub, "POST", "/api/validate-yaml", None, json={"content": card, "repoType": "model"})
    assert (answer.status_code, says in answer.json()["errors"][0]["message"]) == (400, True)
    if says != "parsing":
        assert commit(hub, repo, regular("README.md", card.encode())).status_code == 400
    bare = ask(hub, "POST", "/api/validate-yaml", None, json={"content": "# Card", "repoType": "model"})
    assert (bare.status_code, bool(bare.json()["warnings"])) == (200, True)


@pytest.mark.parametrize("name", ["x.git", "x.ipynb", "a--b", "a..b", "-a", "a.", "f" * 97, "é"])
def test_names_that_are_forbidden(hub: RunningHub, name: str) -> None:
    """A repository cannot have a name that the Hub refuses."""
    made = ask(hub, "POST", "/api/repos/create", json={"name": name, "organization": "acme"})
    assert (made.status_code, hub.store.repos) == (400, {})


def test_names_are_case_insensitive(hub: RunningHub, repo: str) -> None:
    """Another spelling is the same repository, told by its own name, and cannot be made again."""
    assert ask(hub, "GET", "/api/models/acme/MODEL").json()["id"] == repo
    assert ask(hub, "POST", "/api/repos/create", json={"name": "Model", "organization": "acme"}).status_code == 409


def test_a_renamed_repository_is_found_by_its_old_name(hub: RunningHub, repo: str) -> None:
    """The old address leads to the new one, for reading, for committing and in collections."""
    collection = hub.store.new_collection("acme", "c", None, False)
    collection["items"].append({"_id": "0" * 24, "id": repo, "type": "model", "position": 0})
    hub.store.rename(repo, "acme/other")
    assert ask(hub, "GET", f"/api/models/{repo}", follow_redirects=False).status_code == 307
    assert ask(hub, "GET", f"/api/models/{repo}").json()["id"] == "acme/other"
    assert commit(hub, repo, regular("a.txt", b"a")).status_code == 200
    assert collection["items"][0]["id"] == "acme/other"


def test_storage_is_limited(hub: RunningHub, repo: str) -> None:
    """Objects beyond a namespace's private or public storage are refused with the Hub's messages, known ones not."""
    public = hub.store.create_repo("acme/public", private=False)
    hub.store.quotas |= {("acme", "private"): len(DATA), ("acme", "public"): len(DATA) - 1}
    body = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": SHA256, "size": len(DATA)}]}
    refused = ask(hub, "POST", f"/{public.id}.git/info/lfs/objects/batch", json=body)
    assert (refused.status_code, "storage patterns" in refused.headers["x-error-message"]) == (403, True)
    href = upload(hub, repo)
    assert href is not None
    ask(hub, "PUT", href, None, content=DATA)
    assert upload(hub, repo) is None
    more = {**body, "objects": [{"oid": "0" * 64, "size": 1}]}
    refused = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", json=more)
    assert (refused.status_code, "storage limit reached" in refused.headers["x-error-message"]) == (403, True)


def test_one_file_is_limited(hub: RunningHub, repo: str) -> None:
    """An object over the limit gets an error of its own instead of an address."""
    body = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": SHA256, "size": rules.MAX_FILE + 1}]}
    (found,) = ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", json=body).json()["objects"]
    assert (found["error"]["code"], "actions" in found) == (422, False)


def test_requests_are_limited_by_kind(hub: RunningHub, repo: str) -> None:
    """Every answer tells what is left; beyond the limit there is 429, while files can still be resolved."""
    hub.hub.limits["api"] = 2
    answers = [ask(hub, "GET", f"/api/models/{repo}") for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert [a.headers["ratelimit"].split(";")[:2] for a in answers] == [
        ['"api"', "r=1"], ['"api"', "r=0"], ['"api"', "r=0"]
    ]  # fmt: skip
    assert answers[0].headers["ratelimit-policy"] == '"fixed window";"api";q=2;w=300'
    assert ask(hub, "GET", f"/{repo}/resolve/main/.gitattributes").status_code == 200


def test_gated_files_need_access(hub: RunningHub, repo: str) -> None:
    """A gated repository can be looked at; its files are for those who were granted access."""
    found = hub.store.repos[repo]
    found.gated, found.private = True, False
    path = f"/{repo}/resolve/main/.gitattributes"
    assert ask(hub, "GET", f"/api/models/{repo}", None).json()["gated"] == "manual"
    refused = ask(hub, "GET", path)
    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
    assert ask(hub, "GET", path, None).status_code == 401
    found.granted.add("ann")
    assert ask(hub, "GET", path).status_code == 200


def test_collections_come_in_pages(hub: RunningHub) -> None:
    """A list is cut into pages that name the next one; huggingface_hub's client reads all of them."""
    for number in range(5):
        hub.store.new_collection("acme", f"c{number}", None, False)
    hub.hub.collections.page = 2
    first = ask(hub, "GET", "/api/collections?owner=acme")
    assert (len(first.json()), "next" in first.links) == (2, True)
    listed = HfApi(hub.url, token=TOKEN).list_collections(owner="acme")
    assert [collection.title for collection in listed] == [f"c{number}" for number in range(5)]


def test_a_fine_grained_token_writes_where_it_may(hub: RunningHub) -> None:
    """Its rights are those of its scopes, which whoami tells."""
    me = ask(hub, "GET", "/api/whoami-v2", FINE_TOKEN).json()
    assert me["auth"]["accessToken"]["fineGrained"]["scoped"][0]["entity"]["name"] == "ann"
    codes = [
        ask(hub, "POST", "/api/repos/create", FINE_TOKEN, json={"name": "x", **owner}).status_code
        for owner in ({}, {"organization": "acme"})
    ]
    assert codes == [200, 403]


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
