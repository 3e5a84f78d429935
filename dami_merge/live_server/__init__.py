"""The server around the live engine: `dami serve`'s proxy with one backend, which is this process itself.

- `jobs`: the engine's thread; requests go in, tokens come out.
- `asked`, `fields`: what a request asks for, and what is refused because it would change the answer.
- `openai_form`, `tgi_form`: replies, whole and streamed, in both languages.
- `calls`: the router's calls, answered here instead of over HTTP.
- `describing`: what `/info` says, so that a router can tell one pair from another.
- `serving`: all of it behind one address.

Keys, limits, queue, metrics, drain, effort, estimators, budgets and `/v1/route` are the proxy's own.
"""
