"""Where servers may be: several variants behind one URL, under a path, over TLS with authorities of one's own, IPv6."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from fakes.upstream import Call, Upstream, chat, plain, send
from fakes.world import World

from dami_router.cli import main
from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError

VARIANTS = "variants: [{id: v-l000, lambda: 0}, {id: v-l100, lambda: 1}]\n"
FIXED = "estimator: {fixed: 0}\nretries: {backoff: 0.001}"


def models(*names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


class Gateway(Upstream):
    """One address for several models, told apart by `model`, under a path: as gateways and LiteLLM's proxy have it."""

    prefix = "/serving/team-a"

    def __init__(self, names: Sequence[str], **options: Any) -> None:
        super().__init__(self._chat, models=models(*names), **options)

    async def get(self, call: Call, writer: Any) -> None:
        found = call.path == f"{self.prefix}/v1/models"
        await send(writer, 200 if found else 404, self.models if found else {"error": "no such path"})

    async def _chat(self, call: Call, writer: Any) -> None:
        known = call.json["model"] in [entry["id"] for entry in self.models["data"]]
        right = known and call.path == f"{self.prefix}/v1/chat/completions"
        await send(writer, 200 if right else 404, chat(call.json["model"]) if right else {"error": "no such model"})


class Clear(Upstream):
    """A server without TLS that answers whatever comes, as real ones do, with a 400 in plain HTTP."""

    async def _connection(self, reader: Any, writer: Any) -> None:
        await reader.read(1)
        await send(writer, 400, {"error": "not HTTP"})
        writer.close()


def tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def pem(authority: trustme.CA, folder: Path, name: str) -> str:
    path = folder / f"{name}.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def test_two_variants_behind_one_url_are_told_apart_by_model(world: World) -> None:
    """Each request names its variant's model to the gateway, below its path, and each variant's model is checked."""
    gateway = world.start(Gateway(["v-l000", "served-100"]))
    url = gateway.url + gateway.prefix
    client = world.proxy(
        f"{VARIANTS}backends:\n  - {{variant: v-l000, url: '{url}', protocol: openai}}\n"
        f"  - {{variant: v-l100, url: '{url}/v1', protocol: openai, model: served-100}}\n{FIXED}"
    )
    for name, served in (("dami:0", "v-l000"), ("dami:1", "served-100"), ("v-l100", "served-100")):
        assert client.chat(model=name).json["choices"][0]["message"]["content"] == served
    assert [replica.health for replica in client.app.router.fleet.replicas] == ["alive", "alive"]
    assert {call.path for call in gateway.calls} == {f"{gateway.prefix}/v1/chat/completions"}


def test_a_model_that_a_gateway_does_not_list_yet_is_down_and_not_wrong(world: World) -> None:
    """The router starts, answers with the other variant, and uses the model once the gateway lists it."""
    gateway = world.start(Gateway(["v-l000"]))
    url = gateway.url + gateway.prefix
    client = world.proxy(
        f"{VARIANTS}backends:\n  - {{variant: v-l000, url: '{url}', protocol: openai}}\n"
        f"  - {{variant: v-l100, url: '{url}', protocol: openai}}\n{FIXED}"
    )
    slow = client.app.router.fleet.replicas[1]
    assert (slow.health, slow.trouble) == ("dead", "serves v-l000, and not v-l100 now")
    assert client.chat(model="dami:1").variant == "v-l000"
    gateway.models = models("v-l000", "v-l100")
    world.loop.run(client.app.router.prober.probe(slow))
    assert client.chat(model="dami:1").variant == "v-l100"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_backend_trusts_its_own_authority(world: World, tmp_path: Path, host: str) -> None:
    """Over TLS on IPv4 and IPv6, with two authorities that only their own backends trust."""
    first, second = trustme.CA(), trustme.CA()
    low = world.start(Upstream(models=models("v-l000"), host=host, tls=tls(first, host)))
    high = world.start(Upstream(models=models("v-l100"), host=host, tls=tls(second, host)))
    pem(first, tmp_path, "first")
    client = world.proxy(
        f"{VARIANTS}backends:\n"
        f"  - {{variant: v-l000, url: '{low.url}', protocol: openai, ca: {pem(first, tmp_path, 'first')}}}\n"
        f"  - {{variant: v-l100, url: '{high.url}', protocol: openai, ca: {pem(second, tmp_path, 'second')}}}\n{FIXED}"
    )
    assert [client.chat(model=f"dami:{x}").variant for x in (0, 1)] == ["v-l000", "v-l100"]
    assert (len(low.calls), len(high.calls)) == (1, 1)


def test_a_certificate_that_is_not_trusted_is_called_that(world: World, tmp_path: Path) -> None:
    """Of an unknown authority, of another name, of another backend's authority; with what to do where that is known."""
    known, other = trustme.CA(), trustme.CA()
    unknown = world.start(Upstream(models=models("v-l000"), tls=tls(known, "127.0.0.1")))
    elsewhere = world.start(Upstream(models=models("v-l100"), tls=tls(known, "example.org")))
    clear = world.start(Clear())
    own = pem(known, tmp_path, "known")
    client = world.proxy(
        "variants: [{id: v-l000, lambda: 0}, {id: v-l050, lambda: 0.5}, {id: v-l100, lambda: 1}]\nbackends:\n"
        f"  - {{variant: v-l000, url: '{unknown.url}', protocol: openai}}\n"
        f"  - {{variant: v-l100, url: '{elsewhere.url}', protocol: openai, ca: {own}}}\n"
        f"  - {{variant: v-l050, url: 'https://127.0.0.1:{clear.port}', protocol: openai, ca: {own}}}\n"
        f"  - {{variant: v-l050, url: '{unknown.url}', protocol: openai, ca: {pem(other, tmp_path, 'other')}}}\n{FIXED}"
    )
    troubles = [replica.trouble for replica in client.app.router.fleet.replicas]
    assert re.fullmatch(r"the server's certificate is not trusted: .*; name its authority as `ca`", troubles[0])
    assert re.fullmatch(r"the server's certificate is not trusted: (?!.*`ca`).*127\.0\.0\.1.*", troubles[1])
    assert "speaks no TLS" in troubles[2]
    assert troubles[3] == troubles[0]
    failed = client.chat()
    assert failed.status == 502
    assert "not trusted" in failed.body.decode() or "no TLS" in failed.body.decode()


def test_a_name_that_does_not_resolve_is_called_that(world: World) -> None:
    """Neither refused nor timed out: the name is wrong."""
    client = world.proxy(
        "variants: [{id: v-l000, lambda: 0}]\n"
        f"backends: [{{variant: v-l000, url: 'http://nowhere.invalid:1', protocol: openai}}]\n{FIXED}"
    )
    trouble = client.app.router.fleet.replicas[0].trouble
    assert trouble in ("the host name does not resolve: nowhere.invalid", "connecting timed out")


@pytest.mark.parametrize(
    ("ca", "url", "said"),
    [("none.pem", "https://h", "none.pem: no such file"), ("bad.pem", "https://h", "holds no certificate in PEM form"),
     ("bad.pem", "http://h", "has no effect on http://h"), ("", "https://h", "expected text")],
)  # fmt: skip
def test_an_authority_that_cannot_be_used_is_refused(tmp_path: Path, ca: str, url: str, said: str) -> None:
    """With the line of router.yml, before a server is asked."""
    (tmp_path / "bad.pem").write_text("no certificate")
    text = f"{VARIANTS}backends:\n  - {{variant: v-l000, url: '{url}', protocol: openai, ca: '{ca}'}}\n"
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        parse_config(text, {}, tmp_path)
    assert caught.value.message.startswith("router.yml:3: backends[0].ca")


def test_check_says_that_a_certificate_is_not_trusted(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dami check --probe` names the server and what to do, and exits with 1."""
    server = world.start(Upstream(plain(), models=models("v-l000"), tls=tls(trustme.CA(), "127.0.0.1")))
    path = tmp_path / "router.yml"
    path.write_text(
        f"variants: [{{id: v-l000, lambda: 0}}]\n"
        f"backends: [{{variant: v-l000, url: '{server.url}', protocol: openai}}]\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path), "--probe", "--json"])
    found = json.loads(capsys.readouterr().out)["servers"][0]
    assert (stopped.value.code, found["health"]) == (1, "dead")
    assert found["trouble"].endswith("name its authority as `ca`")
