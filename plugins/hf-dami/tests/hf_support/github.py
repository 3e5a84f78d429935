"""GitHub as `hf extensions install` sees it: a proxy for HTTPS that answers for github.com itself.

It holds one repository, made from a folder. Hosts that are not GitHub's are refused, and every host
that was asked for is noted.
"""

from __future__ import annotations

import io
import socket
import ssl
import subprocess
import threading
import zipfile
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"
_HOSTS = ("github.com", "raw.githubusercontent.com")


def certificate(folder: Path) -> Path:
    """Make a certificate for GitHub's names that only this test trusts; one file with its key."""
    path = folder / "github.pem"
    names = ",".join(f"DNS:{host}" for host in _HOSTS)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", f"subjectAltName={names}", "-keyout", path, "-out", folder / "certificate.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + (folder / "certificate.pem").read_text())
    return path


def archive(folder: Path) -> bytes:
    """Pack a folder as GitHub packs a repository: everything under one directory."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, Path(f"hf-dami-{SHA}") / path.relative_to(folder))
    return packed.getvalue()


class GitHub:
    """The stand-in at `url`, with the repository `someone/hf-dami`; `hosts` are those that were asked for."""

    def __init__(self, repository: Path, certificate: Path) -> None:
        self.hosts: list[str] = []
        self._answers = {
            "/someone/hf-dami": b"",
            "/someone/hf-dami/archive/HEAD.zip": archive(repository),
            "/someone/hf-dami/HEAD/pyproject.toml": (repository / "pyproject.toml").read_bytes(),
            "/someone/hf-dami.git/info/refs": f"001e# service\n0000{SHA} HEAD\0multi_ack\n".encode(),
        }
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            host = _head(connection).split(" ")[1].rpartition(":")[0]
            self.hosts.append(host)
            if host not in _HOSTS:
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                with self._tls.wrap_socket(connection, server_side=True) as secure:
                    while head := _head(secure):
                        secure.sendall(self._answer(head))
            except OSError:
                return

    def _answer(self, head: str) -> bytes:
        method, target, _ = head.split(" ", 2)
        body = self._answers.get(target.partition("?")[0])
        status = "200 OK" if body is not None else "404 Not Found"
        sent = b"" if body is None or method == "HEAD" else body
        return f"HTTP/1.1 {status}\r\ncontent-length: {len(sent)}\r\n\r\n".encode() + sent


def _head(connection: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            return ""
        received += piece
    return received.decode("latin-1")
