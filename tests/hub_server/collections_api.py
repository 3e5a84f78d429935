"""The Hub's routes for collections."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub_server.rules import PAGE
from hub_server.store import Refused, Store, User


class Host(Protocol):
    """What the routes need of the Hub."""

    store: Store

    def user(self, request: Request, *, required: bool = True) -> User | None:
        """Return who asks."""

    def writer(self, request: Request, namespace: str) -> User:
        """Return who asks; refuse those who may not write."""


class CollectionRoutes:
    """Handlers; lengths of titles, descriptions and notes are those of `HfApi.create_collection` and its like."""

    page = PAGE

    def __init__(self, host: Host) -> None:
        self.host = host

    def find(self, request: Request, *, write: bool = False) -> dict[str, Any]:
        """Return the collection that a request names."""
        owner = request.path_params["owner"]
        found = self.host.store.collections.get(f"{owner}/{request.path_params['slug']}")
        user = self.host.user(request, required=False)
        if found is None or (found["private"] and not (user and owner in (user.name, *user.orgs))):
            raise Refused(404, "Collection not found")
        if write:
            self.host.writer(request, owner)
        return found

    async def list(self, request: Request) -> Response:
        owners = request.query_params.getlist("owner")
        user = self.host.user(request, required=False)
        mine = (user.name, *user.orgs) if user else ()
        found = [c for c in self.host.store.collections.values() if not owners or c["owner"]["name"] in owners]
        shown = [c for c in found if not c["private"] or c["owner"]["name"] in mine]
        start = int(request.query_params.get("cursor", "0"))
        end = start + min(self.page, int(request.query_params.get("limit", self.page)))
        # A list shows the first items of each (`HfApi.list_collections`: "truncated") and no position.
        data = [{k: v for k, v in {**c, "items": c["items"][:4]}.items() if k != "position"} for c in shown[start:end]]
        following = request.url.include_query_params(cursor=end)
        return JSONResponse(data, headers={"Link": f'<{following}>; rel="next"'} if end < len(shown) else {})

    async def create(self, request: Request) -> Response:
        data = await request.json()
        self.host.writer(request, data["namespace"])
        if not data["title"] or len(data["title"]) > 60 or len(data.get("description") or "") > 150:
            raise Refused(400, "title of at most 60, description of at most 150 characters")
        made = self.host.store.new_collection(
            data["namespace"], data["title"], data.get("description"), bool(data.get("private"))
        )
        return JSONResponse(made)

    async def get(self, request: Request) -> Response:
        return JSONResponse(self.find(request))

    async def add(self, request: Request) -> Response:
        collection = self.find(request, write=True)
        data = await request.json()
        item, note = data["item"], data.get("note")
        repo = self.host.store.find(item["id"])
        if item["type"] != "model" or repo is None:
            raise Refused(404, "Item not found")
        if any(repo.id == there["id"] for there in collection["items"]):
            raise Refused(409, "Item already in the collection")
        if len(note or "") > 500:
            raise Refused(400, "note too long")
        number = self.host.store.next_number()
        collection["items"].append(
            {"_id": f"{number:024x}", "id": repo.id, "type": "model", "position": len(collection["items"]),
             **({"note": {"text": note, "html": note}} if note else {})}
        )  # fmt: skip
        return JSONResponse(collection)

    async def update(self, request: Request) -> Response:
        items = self.find(request, write=True)["items"]
        item = self._item(request, items)
        data = await request.json()
        if "note" in data:
            item["note"] = {"text": data["note"], "html": data["note"]}
        if "position" in data:
            items.remove(item)
            items.insert(data["position"], item)
        _number(items)
        return JSONResponse({"success": True})

    async def remove(self, request: Request) -> Response:
        items = self.find(request, write=True)["items"]
        items.remove(self._item(request, items))
        _number(items)
        return JSONResponse({"success": True})

    def _item(self, request: Request, items: Any) -> dict[str, Any]:
        found: dict[str, Any] | None = next((i for i in items if i["_id"] == request.path_params["item"]), None)
        if found is None:
            raise Refused(404, "Item not found")
        return found


def _number(items: Any) -> None:
    for position, item in enumerate(items):
        item["position"] = position
