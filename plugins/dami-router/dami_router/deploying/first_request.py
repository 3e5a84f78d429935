"""The end of every opening comment: a request to the router, and the reply to expect."""

from __future__ import annotations

__all__ = ["first_request"]


def first_request(url: str, key: str) -> str:
    """Return commands that ask the router at `url`, and what comes back; `key` is a variable of the shell."""
    return f"""\
Then ask, and read which variant answered:

  curl -si {url}/v1/chat/completions -H "Authorization: Bearer ${key}" -H 'Content-Type: application/json' \\
    -d '{{"model": "dami", "reasoning_effort": "low", "messages": [{{"role": "user", "content": "What is 17 * 23?"}}]}}'

  HTTP/1.1 200 OK
  x-dami-lambda: 0.3
  x-dami-variant: ...
  {{"choices": [{{"message": {{"role": "assistant", "content": "17 * 23 = 391 ..."}}}}], ...}}"""
