"""The Hub's HTTP interface over a `Store`."""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from hub_server.store import File, Refused, Repo, Store, User

Handler = Callable[[Request], Awaitable[Response]]
_MAX_REGULAR = 10 << 20


class Hub:
    """The handlers. Files over `multipart_over` bytes are uploaded in parts of `part_size`."""

    def __init__(self, store: Store, *, multipart_over: int = 200_000, part_size: int = 1 << 17) -> None:
        self.store, self.multipart_over, self.part_size = store, multipart_over, part_size
        self.commits = 0

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
            ("GET", "/api/collections", self.list_collections),
            ("POST", "/api/collections", self.create_collection),
            ("GET", "/api/collections/{owner}/{slug}", self.get_collection),
            ("POST", "/api/collections/{owner}/{slug}/items", self.add_item),
            ("PATCH", "/api/collections/{owner}/{slug}/items/{item}", self.update_item),
        ]
        return Starlette(routes=[Route(path, _told(handler), methods=[method]) for method, path, handler in table])

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

    def writer(self, request: Request, namespace: str) -> User:
        user = self.user(request)
        assert user is not None
        if not user.may_write(namespace):
            raise Refused(403, f"You don't have the rights to write to the namespace {namespace}")
        return user

    def repo(self, request: Request, *, write: bool = False) -> Repo:
        owner, name = request.path_params["owner"], request.path_params["name"]
        kind = "datasets/" if request.url.path.startswith(("/datasets/", "/api/datasets/")) else ""
        repo = self.store.repos.get(f"{kind}{owner}/{name}")
        user = self.user(request, required=False)
        hidden = repo is not None and repo.private and not (user and owner in (user.name, *user.orgs))
        if repo is None or hidden:
            status = 404 if user else 401  # the Hub does not tell strangers what exists
            raise Refused(status, "Repository not found", "RepoNotFound")
        if write:
            self.writer(request, owner)
        return repo

    async def whoami(self, request: Request) -> Response:
        user = self.user(request)
        assert user is not None
        auth = {"accessToken": {"displayName": "test", "role": user.role}}
        return JSONResponse({"type": "user", "name": user.name, "orgs": [{"name": o} for o in user.orgs], "auth": auth})

    # Repositories

    async def create(self, request: Request) -> Response:
        data = await request.json()
        user = self.user(request)
        assert user is not None
        owner = data.get("organization") or user.name
        self.writer(request, owner)
        name = data["name"]
        if not re.fullmatch(r"[\w][\w.-]{0,94}[\w]", name) or "--" in name or ".." in name:
            raise Refused(400, f"Invalid repo name: {name}")
        if data.get("type", "model") != "model":
            raise Refused(400, "only models here")
        private = data.get("visibility") == "private" or bool(data.get("private"))
        repo = self.store.create_repo(f"{owner}/{name}", private)
        return JSONResponse({"url": f"{request.base_url}{repo.id}", "name": repo.id, "id": repo.id})

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, re.S)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not isinstance(data, dict):
            return JSONResponse({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        errors = [{"message": text} for text in _card_errors(data)]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def info(self, request: Request) -> Response:
        repo = self.repo(request)
        commit = repo.resolve(unquote(request.path_params.get("revision", "main")))
        readme = commit.files.get("README.md")
        id = repo.id.removeprefix("datasets/")
        sizes = request.query_params.get("blobs") == "True"  # as huggingface_hub writes it; no sizes without
        data: dict[str, Any] = {
            "id": id, "modelId": id, "sha": commit.sha, "private": repo.private, "tags": [],
            "author": id.split("/")[0],
            "siblings": [
                {"rfilename": path, **({"size": file.size} if sizes else {})}
                for path, file in sorted(commit.files.items())
            ],
        }  # fmt: skip
        if readme:
            front = re.match(r"---\n(.*?)\n---\n", self.store.blobs[readme.sha256].decode(), re.S)
            if front:
                data["cardData"] = yaml.safe_load(front[1])
        return JSONResponse(data)

    async def refs(self, request: Request) -> Response:
        repo = self.repo(request)
        found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
        return JSONResponse({"branches": found, "converts": [], "tags": []})

    async def tree(self, request: Request) -> Response:
        commit = self.repo(request).resolve(unquote(request.path_params["revision"]))
        return JSONResponse([file.entry(path) for path, file in sorted(commit.files.items())])

    async def paths_info(self, request: Request) -> Response:
        commit = self.repo(request).resolve(unquote(request.path_params["revision"]))
        wanted = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([commit.files[p].entry(p) for p in wanted if p in commit.files])

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
            mode = "lfs" if _is_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular"
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
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise Refused(400, f"Invalid path: {path}")
        if key == "file":
            content = base64.b64decode(value["content"], validate=True)
            if _is_lfs(path, len(content), content[:512]):
                raise Refused(400, f"{path} must be uploaded as an LFS file")
            if path == "README.md":
                front = re.match(r"---\n(.*?)\n---\n", content.decode(), re.S)
                if front and _card_errors(yaml.safe_load(front[1])):
                    raise Refused(400, "Invalid metadata in README.md")
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
        return JSONResponse({"transfer": "basic", "objects": [self._upload(request, repo, o) for o in data["objects"]]})

    def _upload(self, request: Request, repo: Repo, item: dict[str, Any]) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
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

    # Collections

    def collection(self, request: Request, *, write: bool = False) -> dict[str, Any]:
        found = self.store.collections.get(f"{request.path_params['owner']}/{request.path_params['slug']}")
        user = self.user(request, required=False)
        owner = request.path_params["owner"]
        if found is None or (found["private"] and not (user and owner in (user.name, *user.orgs))):
            raise Refused(404, "Collection not found")
        if write:
            self.writer(request, owner)
        return found

    async def list_collections(self, request: Request) -> Response:
        owners = request.query_params.getlist("owner")
        user = self.user(request, required=False)
        mine = (user.name, *user.orgs) if user else ()
        found = [c for c in self.store.collections.values() if not owners or c["owner"]["name"] in owners]
        shown = [c for c in found if not c["private"] or c["owner"]["name"] in mine]
        # As on the real Hub, a list shows four items of each and no position.
        return JSONResponse(
            [{k: v for k, v in {**c, "items": c["items"][:4]}.items() if k != "position"} for c in shown]
        )

    async def create_collection(self, request: Request) -> Response:
        data = await request.json()
        self.writer(request, data["namespace"])
        if not data["title"] or len(data["title"]) > 60 or len(data.get("description") or "") > 150:
            raise Refused(400, "title of at most 60, description of at most 150 characters")
        made = self.store.new_collection(
            data["namespace"], data["title"], data.get("description"), bool(data.get("private"))
        )
        return JSONResponse(made)

    async def get_collection(self, request: Request) -> Response:
        return JSONResponse(self.collection(request))

    async def add_item(self, request: Request) -> Response:
        collection = self.collection(request, write=True)
        data = await request.json()
        item, note = data["item"], data.get("note")
        if item["type"] != "model" or item["id"] not in self.store.repos:
            raise Refused(404, "Item not found")
        if any(item["id"] == there["id"] for there in collection["items"]):
            raise Refused(409, "Item already in the collection")
        if len(note or "") > 500:
            raise Refused(400, "note too long")
        number = len(collection["items"])
        collection["items"].append(
            {"_id": f"{number:024x}", "id": item["id"], "type": "model", "position": number,
             **({"note": {"text": note, "html": note}} if note else {})}
        )  # fmt: skip
        return JSONResponse(collection)

    async def update_item(self, request: Request) -> Response:
        collection = self.collection(request, write=True)
        data = await request.json()
        for item in collection["items"]:
            if item["_id"] == request.path_params["item"]:
                if "note" in data:
                    item["note"] = {"text": data["note"], "html": data["note"]}
                return JSONResponse({"success": True})
        raise Refused(404, "Item not found")


def _told(handler: Handler) -> Handler:
    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            return JSONResponse({"error": refused.message, **refused.more}, refused.status, headers)

    return told


def _storage(request: Request) -> str:
    # Another host, as the real storage is: clients must neither follow there on HEAD nor send their token.
    return str(request.base_url).replace("127.0.0.1", "localhost")


def _is_lfs(path: str, size: int, sample: bytes) -> bool:
    if path.endswith((".safetensors", ".bin")) or size > _MAX_REGULAR:
        return True
    try:
        # A sample may end inside a character, which this decoder waits for.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


def _card_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if not isinstance(data.get("license"), str):
        errors.append('"license" must be a string')
    for base in data.get("base_model") or []:
        if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", base):
            errors.append(f'"base_model" with value "{base}" is not valid')
    if data.get("base_model_relation") not in (None, "merge", "finetune", "adapter", "quantized"):
        errors.append('"base_model_relation" is not valid')
    return errors


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Response(content, headers={**headers, "Accept-Ranges": "bytes"})
    start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
    if start >= len(content):
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    span = {"Content-Range": f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"}
    return Response(content[start : end + 1], 206, {**headers, **span})
