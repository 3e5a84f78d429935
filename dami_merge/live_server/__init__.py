"""The server around the live engine: `dami serve`'s proxy with one backend, which is this process itself.

- `jobs`: the engine's thread, and the requests that it works on.
- `asked`, `fields`, `known_fields`: read a request, and refuse fields that are unknown or not supported.
- `openai_form`, `tgi_form`: replies, whole and streamed, in both languages.
- `calls`: the router's calls, answered here instead of over HTTP.
- `describing`: what `/info` says, so that a router can tell one pair from another.
- `serving`: all of it behind one address.

Keys, limits, queue, metrics, drain, effort, estimators, budgets and `/v1/route` are the proxy's own.
"""
