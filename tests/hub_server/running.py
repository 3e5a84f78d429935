"""Starting the Hub: in a thread of the tests, or as a program."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from hub_server.app import Hub
from hub_server.faults import Faults
from hub_server.store import Store, User

TOKEN = "hf_writerSecretTokenForTests"
READ_TOKEN = "hf_readerSecretTokenForTests"
FINE_TOKEN = "hf_fineGrainedSecretTokenForTests"


@dataclass
class RunningHub:
    """A Hub that listens: its address, its state, and its faults."""

    url: str
    hub: Hub
    faults: Faults

    @property
    def store(self) -> Store:
        """What the Hub keeps."""
        return self.hub.store

    def reset(self) -> None:
        """Become a new, empty Hub at the same address."""
        self.hub = make(self.hub.multipart_over)
        self.faults.app = self.hub.app()
        self.faults.forget()

    @property
    def commits(self) -> int:
        """How many commits were made by requests so far."""
        return self.hub.commits

    def sent(self, pattern: str) -> list[str]:
        """Return the requests that contain a text, in order."""
        return [request for request in self.faults.log if pattern in request]


def make(multipart_over: int) -> Hub:
    """Make a Hub with tokens of `ann`, of the organisation `acme`: one that writes, one fine-grained; `bob` reads."""
    scoped = ({"entity": {"type": "user", "name": "ann"}, "permissions": ["repo.content.read", "repo.write"]},)
    users = {
        TOKEN: User("ann", ("acme",)), READ_TOKEN: User("bob", ("acme",), "read"),
        FINE_TOKEN: User("ann", ("acme",), "fineGrained", scoped=scoped),
    }  # fmt: skip
    return Hub(Store(users), multipart_over=multipart_over)


@contextmanager
def running(port: int = 0, multipart_over: int = 200_000) -> Iterator[RunningHub]:
    """Run a Hub on loopback while the block runs."""
    hub = make(multipart_over)
    faults = Faults(hub.app())
    config = uvicorn.Config(faults, host="127.0.0.1", port=port, log_level="error", lifespan="off", http="h11")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    try:
        yield RunningHub(f"http://127.0.0.1:{address[1]}", hub, faults)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
