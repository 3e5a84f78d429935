"""Families on the Hugging Face Hub: reading a manifest there without the weights, and saying what went wrong.

A family is asked for by the id of a variant's repository, of a repository with a branch a
variant (`ORG/name@branch` for one of them), or by the slug of its collection. Needs the extra
`hub`; huggingface_hub is imported when it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dami_router.errors import CheckpointError, DamiError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, MAX_MANIFEST_BYTES, Family, Variant, load_family, parse_family

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubId", "Published", "fetch_family", "find_published", "hub_api", "parse_hub_id", "read_manifest", "told"]

_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,127}", re.ASCII)
_SLUG = re.compile(r".+-[0-9a-f]{24}", re.ASCII)
_REVISION = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True)
class HubId:
    """What a user named: a repository or a collection, and a revision where one was given."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True)
class Published:
    """A variant on the Hub: its description, and the commit of the repository that holds its files."""

    variant: Variant
    repo: str
    revision: str


def parse_hub_id(text: str) -> HubId:
    """Read `ORG/name`, `ORG/name@revision`, a collection's slug, or the address of any of them."""
    address = re.fullmatch(r"https?://[^/]+/(?:collections/)?([^?#]+?)(?:/tree/([^/?#]+))?/?", text)
    name, revision = (address[1], address[2]) if address else (text, None)
    name, _, after = name.partition("@")
    revision = after or revision
    if not _ID.fullmatch(name) or ".." in name or (revision and not _REVISION.fullmatch(revision)):
        raise MisuseError(
            f"{text!r:.120}: expected an id on the Hub such as ORG/name, ORG/name@branch or a collection's slug"
        )
    return HubId(name, revision)


def hub_api() -> HfApi:
    """Return huggingface_hub's client, with HF_ENDPOINT and the user's token; raises MisuseError without the extra."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise MisuseError("families on the Hub need huggingface_hub", hint="pip install 'dami-router[hub]'") from None
    if os.environ.get("DAMI_DEBUG") != "1":
        logging.set_verbosity(40)  # errors alone: its warnings show signed addresses
    disable_progress_bars()
    return HfApi(library_name="dami")


def fetch_family(text: str) -> Family:
    """Fetch the manifest alone of a family on the Hub, whole as it was pushed.

    Raises MisuseError for what is no id, FailureError where the Hub has no such family or
    cannot be reached, CheckpointError where the manifest is not sound.
    """
    place = parse_hub_id(text)
    api = hub_api()
    try:
        for repo in _repositories(api, place):
            found = read_manifest(api, repo, place.revision)
            if found is not None:
                return found[0]
    except DamiError:
        raise
    except Exception as error:
        raise told(error, str(place)) from None
    raise _no_family(place)


def find_published(text: str) -> tuple[Family, list[Published]]:
    """Find the variants that `text` names, each with the place of its files, sorted by λ.

    Files are looked for only in the repositories that the user named, whatever a manifest
    says. The family holds the named variants alone. Raises as `fetch_family` does.
    """
    place = parse_hub_id(text)
    api = hub_api()
    family: Family | None = None
    found: dict[str, Published] = {}
    try:
        for repo in _repositories(api, place):
            read = read_manifest(api, repo, place.revision)
            if read is None:
                continue
            if family is not None and _facts(read[0]) != _facts(family):
                raise CheckpointError(f"{place}: holds variants of different families or builds; pull them one by one")
            family = family or read[0]
            found |= {p.variant.id: p for p in _own(read[0], repo, read[1], place.revision)}
    except DamiError:
        raise
    except Exception as error:
        raise told(error, str(place)) from None
    if family is None or not found:
        raise _no_family(place)
    published = sorted(found.values(), key=lambda p: p.variant.lambda_)
    return _with_variants(family, [p.variant for p in published]), published


def read_manifest(api: HfApi, repo: str, revision: str | None = None) -> tuple[Family, str] | None:
    """Return the manifest in a repository and the commit it was read at; None where it has none."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    commit = revision
    try:
        try:
            facts = api.get_hf_file_metadata(url=hf_hub_url(repo, MANIFEST, revision=revision, endpoint=api.endpoint))
            commit = facts.commit_hash or revision
            if (facts.size or 0) > MAX_MANIFEST_BYTES:
                raise CheckpointError(f"{repo}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; not read")
        except OfflineModeIsEnabled:
            pass  # what is in the cache was bounded when it came
        path = Path(api.hf_hub_download(repo, MANIFEST, revision=commit))
    except EntryNotFoundError:
        return None
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{repo}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; not read")
    return parse_family(path.read_bytes(), f"{repo}: {MANIFEST}"), commit or "main"


def told(error: BaseException, where: str) -> DamiError:
    """Turn whatever huggingface_hub raises into one message with a way out; no token comes along."""
    cause = _root(error)
    if isinstance(cause, DamiError):
        return cause
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        text, hint = _answers(status, cause)
        return FailureError(f"{where}: {text}", hint=hint)
    kind = type(cause).__name__
    if type(cause).__module__.split(".")[0].startswith("httpx") or isinstance(cause, ConnectionError | TimeoutError):
        return FailureError(f"{where}: the connection to the Hub broke ({kind})", hint=_AGAIN)
    if kind == "LocalTokenNotFoundError":
        return FailureError("no token for the Hub", hint="`hf auth login`, or set HF_TOKEN")
    if kind == "HFValidationError":
        return MisuseError(f"{where}: not a name that the Hub accepts: {clean(str(cause))}")
    first = clean(str(cause)).strip().splitlines() or [""]
    return FailureError(f"{where}: {kind}: {first[0]}", hint=_AGAIN)


def clean(text: str) -> str:
    """Remove what must not be shown: the token, anything that looks like one, and signatures in addresses."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if token:
        text = text.replace(token, "hf_…")
    text = re.sub(r"\bhf_[A-Za-z0-9_]{6,}", "hf_…", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)


def _answers(status: int, error: BaseException) -> tuple[str, str | None]:
    if status == 404 or type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return "no such repository, collection or revision on the Hub, or a private one that this token cannot see", (
            "check the id; for a private one `hf auth login`"
        )
    server = clean(str(getattr(error, "server_message", None) or "")).strip()
    known = {
        401: ("the Hub does not accept the token", "`hf auth login`, or set HF_TOKEN to a valid token"),
        403: ("the token may not do that", "use a token with write access to the namespace: `hf auth login`"),
        409: ("another change of the same thing is in progress on the Hub", _AGAIN),
        412: ("it was changed on the Hub in the meantime; nothing was written over", _AGAIN),
        413: ("a file is too large for the Hub", "build with --max-shard-size 5GB"),
        429: ("the Hub asks to slow down", "wait some minutes, then " + _AGAIN),
    }
    text, hint = known.get(status, (f"the Hub answers {status}", _AGAIN if status >= 500 else None))
    return (f"{text} ({server})" if server and server not in text else text), hint


def _root(error: BaseException) -> BaseException:
    # The library wraps an upload's error, and a download's; what the Hub said is the cause.
    while type(error).__name__ in ("RuntimeError", "LocalEntryNotFoundError") and error.__cause__ is not None:
        error = error.__cause__
    return error


def _repositories(api: HfApi, place: HubId) -> Iterator[str]:
    from huggingface_hub.errors import HfHubHTTPError

    if place.revision is None and _SLUG.fullmatch(place.id):
        try:
            collection = api.get_collection(place.id)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
        else:
            for item in collection.items:
                if item.item_type == "model" and _ID.fullmatch(item.item_id):
                    yield item.item_id
            return
    yield place.id


def _own(family: Family, repo: str, commit: str, revision: str | None) -> Iterator[Published]:
    """Yield the variants whose files are in `repo`: those pushed there, else the one that it is named after."""
    here = [v for v in family.variants if v.hub is not None and v.hub.repo.lower() == repo.lower()]
    if revision is not None and len(here) > 1:
        here = [v for v in here if v.hub and (revision in (v.id, v.hub.revision) or v.id.endswith(f"-{revision}"))]
    for variant in here:
        assert variant.hub is not None
        yield Published(variant, repo, variant.hub.revision)
    if not here:
        # A copy under another owner: the manifest still names the original.
        yield from (Published(v, repo, commit) for v in family.variants if v.id.lower() == repo.split("/")[1].lower())


def _facts(family: Family) -> dict[str, Any]:
    return family.model_dump(exclude={"variants", "created_with"})


def _with_variants(family: Family, variants: list[Variant]) -> Family:
    return family.model_copy(update={"variants": variants})


def _no_family(place: HubId) -> FailureError:
    return FailureError(
        f"{place}: no {MANIFEST} with a variant of this repository there: not a family that `dami push` made",
        hint="name a variant's repository, a repository with branches, or the family's collection",
    )


def open_family(place: str | Path) -> Family:
    """Read a family from a file, a folder, or the Hub where no such path exists."""
    path = Path(place)
    if isinstance(place, Path) or path.exists() or not _looks_like_id(place):
        return load_family(path)
    return fetch_family(place)


def _looks_like_id(text: str) -> bool:
    if text.startswith(("./", "../", "/", "~")):
        return False
    try:
        parse_hub_id(text)
    except MisuseError:
        return False
    return True


def is_passing(error: BaseException) -> bool:
    """Whether a failure may be gone on the next try: a broken connection, or the Hub's own trouble."""
    cause = _root(error)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return bool(status >= 500 or status == 429)
    return type(cause).__module__.split(".")[0].startswith("httpx") or isinstance(cause, ConnectionError | TimeoutError)
