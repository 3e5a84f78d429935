"""What huggingface_hub raises, as one message that says what to do next.

No token and no signed address is part of any message.
"""

from __future__ import annotations

import errno
import os
import re
from urllib.parse import urlsplit

from dami_router.errors import DamiError, FailureError, MisuseError

__all__ = ["HubUnreachableError", "clean", "is_passing", "told"]

_AGAIN = "run the same command again"
_STORAGE = re.compile(r"storage (?:limit|pattern|quota)|quota|out of storage|upgrade your plan", re.IGNORECASE)
_READING = ("GET", "HEAD")


class HubUnreachableError(FailureError):
    """No answer came from the Hub: no connection, or offline mode."""


def told(error: BaseException, where: str, *, resumes: bool = False) -> DamiError:
    """Turn an exception of huggingface_hub into one message with a way out; an error of our own stays what it is.

    `where` is what the request was about: a repository, a collection, a file. `resumes`: the command continues what it
    had done when it is run again.
    """
    found = _message(error, where)
    if resumes and found.hint and found.hint.endswith(_AGAIN):
        found.hint += " to resume"
    return found


def _message(error: BaseException, where: str) -> DamiError:
    cause = _root(error)
    if isinstance(cause, DamiError):
        return cause
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        text, hint = _answer(status, cause)
        return FailureError(f"{where}: {text}", hint=hint)
    kind = type(cause).__name__
    if kind == "OfflineModeIsEnabled":  # a ConnectionError by its class, but nothing was asked
        return HubUnreachableError(
            f"{where}: HF_HUB_OFFLINE=1 is set, so the Hub was not asked", hint="unset HF_HUB_OFFLINE"
        )
    if _is_broken_connection(cause):
        return HubUnreachableError(f"{where}: the connection to the Hub broke ({kind})", hint=_AGAIN)
    if kind == "LocalTokenNotFoundError":
        return FailureError("no token for the Hub", hint="`hf auth login`, or set HF_TOKEN")
    if kind == "HFValidationError":
        return MisuseError(f"{where}: not a name that the Hub accepts: {clean(str(cause))}")
    if isinstance(cause, OSError) and cause.errno is not None:
        return FailureError(f"{where}: {cause.strerror}", hint=_local_hint(cause.errno))
    first = clean(str(cause)).strip().splitlines() or [""]
    return FailureError(f"{where}: {kind}: {first[0]}", hint=_AGAIN)


def is_passing(error: BaseException) -> bool:
    """Whether a retry may succeed: the connection broke, or the Hub had trouble of its own."""
    cause = _root(error)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return bool(status >= 500 or status == 429)
    return type(cause).__name__ != "OfflineModeIsEnabled" and _is_broken_connection(cause)


def clean(text: str) -> str:
    """Remove the token, anything that looks like one, and the signatures in addresses."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if token:
        text = text.replace(token, "hf_…")
    text = re.sub(r"\bhf_[A-Za-z0-9_]{6,}", "hf_…", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)


def _answer(status: int, error: BaseException) -> tuple[str, str | None]:
    server = clean(str(getattr(error, "server_message", None) or "")).strip()
    text, hint = _known(status, error, server)
    return (f"{text} ({server})" if server and server not in text else text), hint


def _known(status: int, error: BaseException, server: str) -> tuple[str, str | None]:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "gated: its owner must grant you access", "ask for access on its page on the Hub, then `hf auth login`"
    if kind == "DisabledRepoError":
        return "the Hub has disabled access to it", "see its page on the Hub"
    if kind == "RemoteEntryNotFoundError":
        return "the repository has no such file", "check the id"
    if status == 404 or kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return "no such repository, collection or revision on the Hub, or a private one that this token cannot see", (
            "check the id; for a private one `hf auth login`"
        )
    if status == 403:
        return _forbidden(error, server)
    if status == 429:
        return "the Hub asks to slow down", f"wait {_wait(error)}, then {_AGAIN}"
    known = {
        400: ("the Hub refuses the request", None),
        401: ("the Hub does not accept the token", "`hf auth login`, or set HF_TOKEN to a valid token"),
        402: ("the Hub asks for payment", "see the billing page of the namespace, then " + _AGAIN),
        409: ("another change of the same thing is in progress on the Hub", _AGAIN),
        412: ("it was changed on the Hub in the meantime; nothing was overwritten", _AGAIN),
        413: ("a file is too large for the Hub", "build with --max-shard-size 5GB"),
    }
    return known.get(status, (f"the Hub answers {status}", _AGAIN if status >= 500 else None))


def _forbidden(error: BaseException, server: str) -> tuple[str, str]:
    """Tell the reasons for a 403 apart: storage, a signed address that expired, the token's rights."""
    if _STORAGE.search(server):
        return "the namespace has no storage left for this", (
            "free storage or get more (https://huggingface.co/docs/hub/storage-limits; public and private storage "
            "have separate limits), then " + _AGAIN
        )
    response = getattr(error, "response", None)
    if _host(str(getattr(response, "url", ""))) != _host(_endpoint()):
        # Signed addresses of the storage expire; no token is sent there.
        return "the Hub's storage refuses the transfer", _AGAIN
    if getattr(getattr(response, "request", None), "method", "") in _READING:
        return "the token may not read that", "use a token with read access to it: `hf auth login`"
    return "the token may not do that", "use a token with write access to the namespace: `hf auth login`"


def _wait(error: BaseException) -> str:
    # https://huggingface.co/docs/hub/rate-limits#http-headers: `"api";r=0;t=55`, requests and seconds left.
    headers = getattr(getattr(error, "response", None), "headers", {})
    left = re.search(r"r=(\d+);\s*t=(\d+)", headers.get("ratelimit", ""))
    return f"{left[2]} seconds" if left and left[1] == "0" else "some minutes"


def _local_hint(number: int) -> str:
    known = {
        errno.ENOSPC: "free space on this disk, then ", errno.EDQUOT: "free space on this disk, then ",
        errno.EACCES: "check the folder's owner and mode, then ", errno.EROFS: "choose a writable folder, then ",
    }  # fmt: skip
    return known.get(number, "") + _AGAIN


def _is_broken_connection(cause: BaseException) -> bool:
    return type(cause).__module__.split(".")[0].startswith("httpx") or isinstance(cause, ConnectionError | TimeoutError)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def _root(error: BaseException) -> BaseException:
    # The library wraps an upload's error, and a download's; what the Hub said is the cause.
    while type(error).__name__ in ("RuntimeError", "LocalEntryNotFoundError") and error.__cause__ is not None:
        error = error.__cause__
    return error
