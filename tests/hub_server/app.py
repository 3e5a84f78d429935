"""The Hub's HTTP interface over a `Store`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from hub_server import rules
from hub_server.collections_api import CollectionRoutes
from hub_server.rules import is_lfs
from hub_server.store import File, Moved, Refused, Repo, Store, User

Handler = Callable[[Request], Awaitable[Response]]


class Hub:
    """The handlers. Files over `multipart_over` bytes are uploaded in parts of `part_size`."""

    def __init__(self, store: Store, *, multipart_over: int = 200_000, part_size: int = 1 << 17) -> None:
        self.store, self.multipart_over, self.part_size = store, multipart_over, part_size
        self.commits, self.max_file = 0, rules.MAX_FILE
        self.collections = CollectionRoutes(self)
        self.limits = {"api": rules.API_LIMIT, "resolvers": rules.RESOLVER_LIMIT}
        self.used = dict.fromkeys(self.limits, 0)
        self.window_began = time.monotonic()

    def app(self) -> Starlette:
        """Return the application."""
        repo = "/api/models/{owner}/{name}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", repo, self.info),
            ("GET", repo + "/revision/{revision:path}", self.info),
            ("GET", repo + "/refs", self.refs),
            ("GET", repo + "/tree/{revision}", self.tree),
            ("POST", repo + "/paths-info/{revision}", self.paths_info),
            ("POST", repo + "/branch/{branch:path}", self.branch),
            ("POST", repo + "/preupload/{revision:path}", self.preupload),
            ("POST", repo + "/commit/{revision:path}", self.commit),
            ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", "/lfs/{upload}", self.lfs_put),
            ("PUT", "/lfs/{upload}/{part:int}", self.lfs_put),
            ("POST", "/lfs/{upload}/complete", self.lfs_complete),
            ("POST", "/lfs/{upload}/verify", self.lfs_verify),
            ("GET", "/lfs/objects/{sha256}", self.lfs_get),
            ("GET", "/api/datasets/{owner}/{name}", self.info),
            ("GET", "/api/datasets/{owner}/{name}/revision/{revision:path}", self.info),
            ("GET", "/datasets/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ("GET", "/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ("GET", "/api/collections", self.collections.list),
            ("POST", "/api/collections", self.collections.create),
            ("GET", "/api/collections/{owner}/{slug}", self.collections.get),
            ("POST", "/api/collections/{owner}/{slug}/items", self.collections.add),
            ("PATCH", "/api/collections/{owner}/{slug}/items/{item}", self.collections.update),
            ("DELETE", "/api/collections/{owner}/{slug}/items/{item}", self.collections.remove),
        ]
        return Starlette(routes=[Route(path, self._told(h), methods=[method]) for method, path, h in table])

    def _told(self, handler: Handler) -> Handler:
        async def told(request: Request) -> Response:
            limits, over = ({}, False) if request.url.path.startswith("/lfs/") else self._count(request)
            try:
                if over:
                    raise Refused(429, "We had to rate limit you. See https://huggingface.co/docs/hub/rate-limits")
                response = await handler(request)
            except Moved as moved:
                # A relative address, which huggingface_hub follows (`_httpx_follow_relative_redirects_with_backoff`).
                response = RedirectResponse(moved.path, 307)
            except Refused as refused:
                headers = {"X-Error-Message": refused.message}
                if refused.code:
                    headers["X-Error-Code"] = refused.code
                response = JSONResponse({"error": refused.message, **refused.more}, refused.status, headers)
            response.headers.update(limits)
            return response

        return told

    def _count(self, request: Request) -> tuple[dict[str, str], bool]:
        """Count a request; headers as https://huggingface.co/docs/hub/rate-limits#http-headers has them."""
        if time.monotonic() - self.window_began > rules.WINDOW:
            self.used, self.window_began = dict.fromkeys(self.limits, 0), time.monotonic()
        kind = "resolvers" if "/resolve/" in request.url.path else "api"
        over = self.used[kind] >= self.limits[kind]
        self.used[kind] += not over
        left, wait = self.limits[kind] - self.used[kind], int(self.window_began + rules.WINDOW - time.monotonic())
        policy = f'"fixed window";"{kind}";q={self.limits[kind]};w={rules.WINDOW}'
        return {"RateLimit": f'"{kind}";r={left};t={wait}', "RateLimit-Policy": policy}, over

    # Who asks, and for what

    def user(self, request: Request, *, required: bool = True) -> User | None:
        header = request.headers.get("authorization")
        if header is None:
            if required:
                raise Refused(401, "Invalid username or password.")
            return None
        user = self.store.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, request: Request, namespace: str, repo: str | None = None) -> User:
        user = self.user(request)
        assert user is not None
        if not user.may_write(namespace, repo):
            raise Refused(403, f"You don't have the rights to write to the namespace {namespace}")
        return user

    def repo(self, request: Request, *, write: bool = False) -> Repo:
        owner, name = request.path_params["owner"], request.path_params["name"]
        kind = "datasets/" if request.url.path.startswith(("/datasets/", "/api/datasets/")) else ""
        # https://huggingface.co/docs/hub/repositories-settings#renaming-or-transferring-a-repo: the old address leads
        # to the new one.
        moved = self.store.moved.get(f"{kind}{owner}/{name}".lower())
        if moved is not None:
            raise Moved(request.url.path.replace(f"{owner}/{name}", moved, 1))
        repo = self.store.find(f"{kind}{owner}/{name}")
        user = self.user(request, required=False)
        hidden = repo is not None and repo.private and not (user and owner in (user.name, *user.orgs))
        if repo is None or hidden:
            status = 404 if user else 401  # the Hub does not tell strangers what exists
            raise Refused(status, "Repository not found", "RepoNotFound")
        if write:
            self.writer(request, owner, repo.id)
        return repo

    async def whoami(self, request: Request) -> Response:
        user = self.user(request)
        assert user is not None
        orgs = [{"type": "org", "name": name, "roleInOrg": user.role_in_org} for name in user.orgs]
        token: dict[str, Any] = {"displayName": "test", "role": user.role}
        if user.role == "fineGrained":
            token["fineGrained"] = {"global": [], "scoped": user.scoped}
        auth = {"type": "access_token", "accessToken": token}
        return JSONResponse({"type": "user", "name": user.name, "orgs": orgs, "auth": auth})

    # Repositories

    async def create(self, request: Request) -> Response:
        data = await request.json()
        user = self.user(request)
        assert user is not None
        owner = data.get("organization") or user.name
        self.writer(request, owner)
        name = data["name"]
        error = rules.name_error(name)
        if error:
            raise Refused(400, error)
        if data.get("type", "model") != "model":
            raise Refused(400, "only models here")
        private = data.get("visibility") == "private" or bool(data.get("private"))
        repo = self.store.create_repo(f"{owner}/{name}", private)
        return JSONResponse({"url": f"{request.base_url}{repo.id}", "name": repo.id, "id": repo.id})

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        try:
            data = rules.card_data(content)
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not isinstance(data, dict):
            return JSONResponse({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        errors = [{"message": text} for text in rules.card_errors(data)]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def info(self, request: Request) -> Response:
        repo = self.repo(request)
        commit = repo.resolve(unquote(request.path_params.get("revision", "main")))
        readme = commit.files.get("README.md")
        id = repo.id.removeprefix("datasets/")
        sizes = request.query_params.get("blobs") == "True"  # as huggingface_hub writes it; no sizes without
        data: dict[str, Any] = {
            "id": id, "modelId": id, "sha": commit.sha, "private": repo.private, "tags": [],
            "gated": "manual" if repo.gated else False,
            "author": id.split("/")[0],
            "siblings": [
                {"rfilename": path, **({"size": file.size} if sizes else {})}
                for path, file in sorted(commit.files.items())
            ],
        }  # fmt: skip
        if readme:
            card = rules.card_data(self.store.blobs[readme.sha256].decode())
            if card:
                data["cardData"] = card
        return JSONResponse(data)

    async def refs(self, request: Request) -> Response:
        repo = self.repo(request)
        found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
        return JSONResponse({"branches": found, "converts": [], "tags": []})

    async def tree(self, request: Request) -> Response:
        commit = self.repo(request).resolve(unquote(request.path_params["revision"]))
        return JSONResponse([file.entry(path) for path, file in sorted(commit.files.items())])

    async def paths_info(self, request: Request) -> Response:
        repo = self.repo(request)
        commit = repo.resolve(unquote(request.path_params["revision"]))
        form = parse_qs((await request.body()).decode())
        entries = [commit.files[p].entry(p) for p in form.get("paths", []) if p in commit.files]
        if form.get("expand", ["false"])[0].lower() == "true":
            for entry in entries:
                last = repo.last_commit(commit, entry["path"])
                entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return JSONResponse(entries)

    async def branch(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        name = unquote(request.path_params["branch"])
        if name in repo.branches:
            raise Refused(409, f"Reference already exists: {name}")
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise Refused(400, f"Invalid branch name: {name}")
        start = (await request.json()).get("startingPoint", "main")
        repo.branches[name] = repo.resolve(start).sha
        return Response(status_code=200)

    async def preupload(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        head = repo.resolve(unquote(request.path_params["revision"]))
        found = []
        for file in (await request.json())["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular"
            there = head.files.get(file["path"])
            oid = (there.sha256 if there.lfs else there.oid) if there else None
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": found})

    async def commit(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        branch = unquote(request.path_params["revision"])
        if branch not in repo.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        head = repo.resolve(branch)
        if lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Refused(400, "Expected a header with a summary")
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != head.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._apply(repo, files, line["key"], line["value"])
        self.commits += 1
        made = self.store.write(repo, branch, lines[0]["value"]["summary"], files, head.sha)
        url = f"{request.base_url}{repo.id}/commit/{made.sha}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": made.sha, "hookOutput": ""})

    def _apply(self, repo: Repo, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        error = rules.path_error(path)
        if error:
            raise Refused(400, error)
        if key == "file":
            content = base64.b64decode(value["content"], validate=True)
            if is_lfs(path, len(content), content[:512]):
                raise Refused(400, f"{path} must be uploaded as an LFS file")
            if path == "README.md":
                card = rules.card_data(content.decode())
                if card and rules.card_errors(card):
                    raise Refused(400, "Invalid metadata in README.md")
            if path.startswith(".eval_results/") and (error := rules.eval_error(content.decode())):
                raise Refused(400, error)
            files[path] = self.store.regular(content)
        elif key == "lfsFile":
            if value["algo"] != "sha256" or value["oid"] not in repo.objects:
                raise Refused(400, f"Your push was rejected because an LFS pointer pointed to a missing file: {path}")
            if value.get("size") != len(self.store.blobs[value["oid"]]):
                raise Refused(400, f"{path}: the size of the LFS object is not {value.get('size')}")
            files[path] = self.store.lfs(value["oid"])
        elif key == "deletedFile":
            if path not in files:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[path]
        else:
            raise Refused(400, f"Unknown operation: {key}")

    # Large files: the storage behind the presigned URLs asks for no token, and refuses to be given one

    async def lfs_batch(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        data = await request.json()
        if data["operation"] != "upload" or data.get("hash_algo") != "sha256":
            raise Refused(400, "expected an upload with sha256")
        self._check_storage(repo, [item for item in data["objects"] if item["oid"] not in repo.objects])
        return JSONResponse({"transfer": "basic", "objects": [self._upload(request, repo, o) for o in data["objects"]]})

    def _check_storage(self, repo: Repo, objects: list[dict[str, Any]]) -> None:
        """Refuse what a namespace has no room for: https://huggingface.co/docs/hub/storage-limits.

        Messages: huggingface/huggingface_hub issues 3049 (private) and 3366 (public).
        """
        namespace = repo.id.split("/")[0]
        quota = self.store.quotas.get((namespace, "private" if repo.private else "public"))
        size = sum({item["oid"]: item["size"] for item in objects}.values())
        if quota is None or not size or self.store.stored(namespace, private=repo.private) + size <= quota:
            return
        if repo.private:
            raise Refused(403, "Private repository storage limit reached, please upgrade your plan to increase it")
        raise Refused(403, "Your storage patterns tripped our internal systems! Please contact us")

    def _upload(self, request: Request, repo: Repo, item: dict[str, Any]) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
        if size > self.max_file:
            # The form of an error for one object: github.com/git-lfs/git-lfs, docs/api/batch.md.
            return {"oid": oid, "size": size, "error": {"code": 422, "message": "File is too large"}}
        if oid in repo.objects:
            return {"oid": oid, "size": size}
        upload = hashlib.sha256(f"{repo.id} {oid} {len(self.store.uploads)}".encode()).hexdigest()
        self.store.uploads[upload] = {"repo": repo.id, "oid": oid, "size": size, "parts": {}}
        base = f"{_storage(request)}lfs/{upload}"
        verify = {"href": f"{request.base_url}lfs/{upload}/verify", "header": {}}
        if size <= self.multipart_over:
            return {"oid": oid, "size": size, "actions": {"upload": {"href": base}, "verify": verify}}
        header = {str(i + 1): f"{base}/{i + 1}" for i in range(-(-size // self.part_size))}
        header["chunk_size"] = str(self.part_size)
        action = {"href": f"{base}/complete", "header": header}
        return {"oid": oid, "size": size, "actions": {"upload": action, "verify": verify}}

    def _of_upload(self, request: Request) -> dict[str, Any]:
        found = self.store.uploads.get(request.path_params["upload"])
        if found is None:
            raise Refused(403, "Signature expired")
        return found

    async def lfs_put(self, request: Request) -> Response:
        if "authorization" in request.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        upload = self._of_upload(request)
        body = await request.body()
        part = request.path_params.get("part")
        if part is None:
            self._keep(upload, body)
            return Response(headers={"ETag": '"single"'})
        upload["parts"][part] = body
        return Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    async def lfs_complete(self, request: Request) -> Response:
        upload = self._of_upload(request)
        data = await request.json()
        parts = [upload["parts"].get(part["partNumber"], b"") for part in data["parts"]]
        if [f'"{hashlib.md5(part).hexdigest()}"' for part in parts] != [part["etag"] for part in data["parts"]]:
            raise Refused(400, "One or more of the specified parts could not be found")
        self._keep(upload, b"".join(parts))
        return JSONResponse({})

    def _keep(self, upload: dict[str, Any], content: bytes) -> None:
        if len(content) != upload["size"] or hashlib.sha256(content).hexdigest() != upload["oid"]:
            raise Refused(400, "The content does not have the announced size and sha256")
        self.store.blobs[upload["oid"]] = content
        self.store.repos[upload["repo"]].objects.add(upload["oid"])

    async def lfs_verify(self, request: Request) -> Response:
        self.user(request)
        upload = self._of_upload(request)
        data = await request.json()
        if data != {"oid": upload["oid"], "size": upload["size"]} or upload["oid"] not in self.store.blobs:
            raise Refused(404, "LFS object not found")
        return JSONResponse({})

    async def lfs_get(self, request: Request) -> Response:
        if "authorization" in request.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        return _content(request, self.store.blobs[request.path_params["sha256"]], {})

    async def resolve(self, request: Request) -> Response:
        repo = self.repo(request)
        user = self.user(request, required=False)
        if repo.gated and not (user and user.name in repo.granted):
            # huggingface_hub/errors.py, GatedRepoError; https://huggingface.co/docs/hub/models-gated.
            status = 403 if user else 401
            raise Refused(status, f"Access to model {repo.id} is restricted", "GatedRepo")
        commit = repo.resolve(unquote(request.path_params["revision"]))
        file = commit.files.get(request.path_params["path"])
        headers = {"X-Repo-Commit": commit.sha}
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        if not file.lfs:
            headers["ETag"] = f'"{file.oid}"'
            return _content(request, self.store.blobs[file.sha256], headers)
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return RedirectResponse(f"{_storage(request)}lfs/objects/{file.sha256}", 302, headers)


def _storage(request: Request) -> str:
    # Another host, as the real storage is: clients must neither follow there on HEAD nor send their token.
    return str(request.base_url).replace("127.0.0.1", "localhost")


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Response(content, headers={**headers, "Accept-Ranges": "bytes"})
    start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
    if start >= len(content):
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    span = {"Content-Range": f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"}
    return Response(content[start : end + 1], 206, {**headers, **span})
