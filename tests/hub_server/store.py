"""What the Hub keeps: users, repositories with commits and branches, LFS objects, collections."""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from dataclasses import dataclass, field
from typing import Any


class Refused(Exception):
    """A request that the Hub answers with an error: status, its error code and message."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Moved(Exception):
    """A request that is led to another path, since its repository was renamed."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class User:
    """The owner of a token; `role` is read, write or fineGrained, which has rights in `scoped`."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    role_in_org: str = "write"
    scoped: tuple[dict[str, Any], ...] = ()

    def may_write(self, namespace: str, repo: str | None = None) -> bool:
        """Whether the token may write to a namespace, or to one repository: docs/hub/security-tokens."""
        if namespace not in (self.name, *self.orgs) or (namespace in self.orgs and self.role_in_org == "read"):
            return False
        names = (namespace, repo)
        fine = any(s["entity"]["name"] in names and "repo.write" in s["permissions"] for s in self.scoped)
        return self.role == "write" or (self.role == "fineGrained" and fine)


@dataclass(frozen=True)
class File:
    """A file of a commit: its content's sha256, its size, and whether git or LFS keeps it."""

    sha256: str
    size: int
    lfs: bool
    oid: str

    def entry(self, path: str) -> dict[str, Any]:
        """Describe the file as the tree API does."""
        data: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.lfs:
            data["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(pointer(self.sha256, self.size))}
        return data


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, File]
    date: str = "2026-01-01T00:00:00.000Z"


GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


def git_oid(content: bytes) -> str:
    """Return git's blob id."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """Return the text of an LFS pointer file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Repo:
    """A model repository."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    """The LFS objects that were uploaded to this repository."""
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    """Users that may read a gated repository."""

    def last_commit(self, commit: Commit, path: str) -> Commit:
        """Return the commit that gave a file its content."""
        before = self.commits.get(commit.parent or "")
        if before is None or before.files.get(path) != commit.files[path]:
            return commit
        return self.last_commit(before, path)

    def resolve(self, revision: str) -> Commit:
        """Find a commit by its id or a branch."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


class Store:
    """The whole state of a Hub."""

    def __init__(self, users: dict[str, User]) -> None:
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.moved: dict[str, str] = {}
        self.quotas: dict[tuple[str, str], int] = {}
        """Bytes of LFS objects, by namespace and `private` or `public`; no entry is no limit."""
        self._count = itertools.count(1)

    def next_number(self) -> int:
        """Return a number that was not given before."""
        return next(self._count)

    def find(self, repo_id: str) -> Repo | None:
        """Find a repository; names are case-insensitive (huggingface/huggingface_hub issues 1371 and 1453)."""
        wanted = repo_id.lower()
        return next((repo for key, repo in self.repos.items() if key.lower() == wanted), None)

    def rename(self, old: str, new: str) -> None:
        """Rename a repository; its old name leads to it."""
        self.repos[new] = self.repos.pop(old)
        self.repos[new].id = new
        self.moved[old.lower()] = new
        for collection in self.collections.values():
            for item in collection["items"]:
                item["id"] = new if item["id"] == old else item["id"]

    def stored(self, namespace: str, *, private: bool) -> int:
        """Return the bytes of a namespace's LFS objects, counted for each repository."""
        repos = [r for r in self.repos.values() if r.id.startswith(f"{namespace}/") and r.private == private]
        return sum(len(self.blobs[oid]) for repo in repos for oid in repo.objects)

    def create_repo(self, repo_id: str, private: bool) -> Repo:
        """Make a repository with its first commit, as the Hub does."""
        if self.find(repo_id) is not None:
            raise Refused(409, "You already created this model repo", url=repo_id)
        repo = self.repos[repo_id] = Repo(repo_id, private)
        self.write(repo, "main", "initial commit", {".gitattributes": self.regular(GITATTRIBUTES)}, None)
        return repo

    def put_dataset(
        self, repo_id: str, files: dict[str, bytes], *, branch: str = "main", private: bool = False
    ) -> None:
        """Make a dataset's repository, or put another state of it on a branch; large kinds of files go to LFS."""
        key = f"datasets/{repo_id}"
        repo = self.repos.get(key) or self.create_repo(key, private)
        kept = {path: self._kept(repo, path, content) for path, content in files.items()}
        self.write(repo, branch, "data", kept, None)

    def _kept(self, repo: Repo, path: str, content: bytes) -> File:
        file = self.regular(content)
        if not path.endswith(".parquet"):
            return file
        repo.objects.add(file.sha256)
        return self.lfs(file.sha256)

    def regular(self, content: bytes) -> File:
        """Keep a file that git holds itself."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return File(sha256, len(content), False, git_oid(content))

    def lfs(self, sha256: str) -> File:
        """Refer to an object of the large file storage."""
        size = len(self.blobs[sha256])
        return File(sha256, size, True, git_oid(pointer(sha256, size)))

    def write(self, repo: Repo, branch: str, title: str, files: dict[str, File], parent: str | None) -> Commit:
        """Put a commit on a branch."""
        number = self.next_number()
        text = json.dumps([repo.id, branch, title, parent, number, {p: f.oid for p, f in files.items()}])
        date = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, files, date)
        repo.commits[commit.sha] = commit
        repo.branches[branch] = commit.sha
        return commit

    def new_collection(self, owner: str, title: str, description: str | None, private: bool) -> dict[str, Any]:
        """Make a collection; one owner has no two of one title."""
        base = f"{owner}/{'-'.join(title.lower().split())}"
        for slug in self.collections:
            if slug.rsplit("-", 1)[0] == base:
                raise Refused(409, "You already have a collection with this title", slug=slug)
        slug = f"{base}-{secrets.token_hex(12)}"
        self.collections[slug] = {
            "slug": slug, "title": title, "description": description, "owner": {"name": owner}, "items": [],
            "private": private, "position": len(self.collections), "theme": "green", "upvotes": 0,
            "lastUpdated": "2026-01-01T00:00:00.000Z", "isUpvotedByUser": False, "gating": False,
        }  # fmt: skip
        return self.collections[slug]
