"""Setting the λ of a vLLM server that has one at a time, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException

from dami_merge.interpolation.schedule import check_lambda
from dami_router.errors import FailureError, MisuseError
from dami_router.shared.url_errors import reason_of

__all__ = ["set_lambda"]

_PATIENCE_S = 3600.0
_MOST = 1 << 16


def set_lambda(address: str, text: str, requests: str, key: str | None) -> float:
    """Set λ and return it; `requests` is finish or stop. Raises FailureError if the server does not do it."""
    try:
        lambda_ = check_lambda(float(text))
    except (ValueError, MisuseError):
        raise MisuseError(f"expected a number in [0, 1], found {text!r:.40}") from None
    body = json.dumps({"lambda": lambda_, "requests": requests}).encode()
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{address}/v1/lambda", body, headers)  # noqa: S310  (always http)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as reply:  # noqa: S310
            return float(json.loads(reply.read(_MOST))["lambda"])
    except urllib.error.HTTPError as error:
        start, key = "start it with `dami live … --engine vllm --mode uniform`", "--api-key-env names its key"
        hint = {401: key, 404: start, 405: start}.get(error.code)
        raise FailureError(f"{address} answered {error.code}: {_message(error.read(_MOST))}", hint=hint) from None
    except OSError as error:
        reason = reason_of(error)
        reason = reason[:1].lower() + reason[1:]
        raise FailureError(f"{address} cannot be reached: {reason}", hint="is the server running?") from None
    except (HTTPException, ValueError, LookupError, TypeError):
        hint = "is it vLLM with the plug-in vllm-dami?"
        raise FailureError(f"{address} did not answer with the λ that it set", hint=hint) from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return "no reason given"
