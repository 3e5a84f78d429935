"""`dami live --engine vllm`: the command that it starts, and setting λ of a server. No vLLM is needed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dami_merge.commands.live import live
from dami_merge.live_server import vllm_command
from dami_merge.live_server.vllm_command import VllmServer, require_vllm
from dami_merge.live_server.vllm_control import set_lambda
from dami_merge.recipes.order import order_of
from dami_router.errors import CheckpointError, FailureError, MisuseError

RECIPE = """\
merge_method: dami
base_model: {instruct}
models: [{{model: {thinking}}}]
parameters: {{lambda: "ramp(0.2, 0.8)"}}
dtype: float32
family:
  name: lab
  lambdas: [0, 1]
  path: [{{filter: mlp, value: late(0.5)}}, {{value: uniform}}]
  chat_template: {template}
"""


def options(command: list[str]) -> dict[str, str]:
    """Return the options of a command, the model as `model`."""
    start = command.index("serve") + 1
    words = command[start + 1 :]
    return {"model": command[start], **dict(zip(words[::2], words[1::2], strict=True))}


def server(*names: str, **more: Any) -> VllmServer:
    chosen = {name: more.pop(name, None) for name in ("path", "dtype", "chat_template", "name")}
    return VllmServer(order_of(names, **chosen), "127.0.0.1", 8010, **more)


def command_of(made: VllmServer) -> list[str]:
    return made.command(made.pair())


def test_the_command_of_a_pair(pair: tuple[str, str]) -> None:
    """Both endpoints, loopback, and the plug-in's parts by their names; what is not asked for is left to vLLM."""
    found = options(command_of(server(*pair, path="late(0.5)", max_rows=4)))
    assert (found["model"], found["--host"], found["--max-num-seqs"]) == (pair[0], "127.0.0.1", "4")
    assert json.loads(found["--hf-overrides"]) == {"architectures": ["DamiQwen3ForCausalLM"]}
    settings = json.loads(found["--additional-config"])["dami"]
    assert (settings["thinking"], settings["path"], "lambda" in settings) == (pair[1], "late(0.5)", False)
    assert found["--logits-processors"] == "vllm_dami.lambda_requests:LambdaRequests"
    assert not {"--worker-extension-cls", "--max-model-len", "--dtype", "--revision", "--chat-template"} & set(found)


def test_one_lambda_at_a_time(pair: tuple[str, str]) -> None:
    """The other class of the architecture, and the worker that changes λ."""
    found = options(command_of(server(*pair, uniform=True, max_length=64)))
    assert json.loads(found["--hf-overrides"]) == {"architectures": ["DamiUniformQwen3ForCausalLM"]}
    assert found["--worker-extension-cls"] == "vllm_dami.uniform_worker.LambdaWorker"
    assert found["--max-model-len"] == "64"
    assert "--logits-processors" not in found


def test_a_recipe_brings_its_settings(pair: tuple[str, str], tmp_path: Path) -> None:
    """λ, path, dtype, name and template are the recipe's, as it has them."""
    path = tmp_path / "family.yml"
    path.write_text(RECIPE.format(instruct=pair[0], thinking=pair[1], template="instruct"))
    found = options(command_of(server(str(path))))
    settings = json.loads(found["--additional-config"])["dami"]
    assert settings["lambda"] == "ramp(0.2, 0.8)"
    assert settings["path"] == [{"filter": "mlp", "value": "late(0.5)"}, {"value": "uniform"}]
    assert (found["--dtype"], found["--served-model-name"], settings["name"]) == ("float32", "lab", "lab")


def test_templates(pair: tuple[str, str], tmp_path: Path) -> None:
    """Thinking's template is given in full; from(λ) gives both, and each renders as its endpoint's alone."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    texts = {0: "\n{{ messages }}-I\n", 1: "{# T #}\n{{ messages }}-T"}
    ends = []
    for i, folder in enumerate(pair):
        end = tmp_path / f"end{i}"
        shutil.copytree(folder, end)
        (end / "chat_template.jinja").write_text(texts[i])
        ends.append(str(end))
    assert options(command_of(server(*ends, chat_template="thinking")))["--chat-template"] == texts[1]
    both = options(command_of(server(*ends, chat_template="from(0.5)")))["--chat-template"]
    # As Transformers renders templates.
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for thinks, text in enumerate(texts.values()):
        alone = jinja.from_string(text).render(messages="m").strip("\n")
        assert jinja.from_string(both).render(messages="m", dami_thinking=bool(thinks)).strip("\n") == alone


def test_sampling_defaults_are_thinkings(pair: tuple[str, str]) -> None:
    """Whatever Instruct's file says, and greedy where Thinking's does not sample."""
    found = json.loads(options(command_of(server(*pair)))["--override-generation-config"])
    assert found["temperature"] == 0.0
    assert found["top_p"] is None


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "c"), ("a", "b.yml", "c")])
def test_what_to_serve_is_a_pair_or_a_recipe(names: tuple[str, ...]) -> None:
    """Anything else is misuse."""
    with pytest.raises(MisuseError, match="expected INSTRUCT and THINKING"):
        order_of(names, path=None, dtype=None, chat_template=None, name=None)


def test_a_recipe_with_slices_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    """vLLM builds the endpoints' own layers."""
    ends = ", ".join(f"{{model: {folder}, layer_range: [0, 4]}}" for folder in pair)
    path = tmp_path / "sliced.yml"
    path.write_text(
        f"merge_method: dami\nbase_model: {pair[0]}\nslices: [{{sources: [{ends}]}}]\nparameters: {{lambda: 0.5}}\n"
    )
    with pytest.raises(MisuseError, match="slices"):
        command_of(server(str(path)))


def test_endpoints_that_do_not_fit_are_refused_before_vllm_starts(pair: tuple[str, str], tmp_path: Path) -> None:
    """The message is that of every other command."""
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    config = json.loads((Path(pair[1]) / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="do not fit together"):
        command_of(server(pair[0], str(other)))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with the command that installs them; an old vLLM is refused too."""
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: None)
    with pytest.raises(MisuseError, match="needs vllm and vllm-dami") as refused:
        require_vllm()
    assert "pip install vllm==0.32.0 vllm-dami" in str(refused.value.hint)
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_command, "version", lambda name: "0.31.2+cpu")
    with pytest.raises(MisuseError, match=r"0\.31\.2 is too old"):
        require_vllm()
    monkeypatch.setattr(vllm_command, "version", lambda name: "0.32.0")
    require_vllm()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("a b --engine vllm --report x", "dami serve --report"),
        ("a b --engine vllm --no-ui", "leave it out"),
        ("a b --engine vllm --device cpu", "leave it out"),
        ("a b --engine vllm --router x.yml", "put `dami serve` in front of it"),
        ("a b --engine vllm --requests finish", "leave it out"),
        ("a b --requests stop", "leave it out"),
        ("a b --print", "add --engine vllm"),
        ("a b -- --enforce-eager", "add --engine vllm"),
        ("set 0.6 --mode uniform", "leave it out"),
        ("set 0.6 --engine vllm", "leave it out"),
    ],
)
def test_an_option_without_effect_is_refused(words: str, hint: str) -> None:
    """An option that another engine or `set` has is named, with what to do, even at its default."""
    option = next(word for word in words.split()[::-1] if word.startswith("--"))
    with pytest.raises(MisuseError, match=f"^{option}: ") as refused:
        live.main(words.split(), standalone_mode=False)
    assert hint in str(refused.value.hint)


def test_print_writes_the_command_that_would_run(pair: tuple[str, str]) -> None:
    """A shell reads the same words; vLLM's options behind `--` come last; nothing is started."""
    words = ["live", *pair, "--engine", "vllm", "--print", "--port", "1", "--", "--tensor-parallel-size", "2"]
    done = subprocess.run(
        [Path(sys.executable).parent / "dami", *words], capture_output=True, text=True, check=True, timeout=100
    )
    command = shlex.split(done.stdout)
    assert command[-2:] == ["--tensor-parallel-size", "2"]
    assert options(command)["--port"] == "1"


class Answering(BaseHTTPRequestHandler):
    """A server's `/v1/lambda`, as the plug-in's middleware answers it."""

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, reply = 200, {"lambda": fields["lambda"]}
        if self.path != "/v1/lambda":
            status, reply = 404, {}
        elif self.headers["authorization"] != "Bearer key":
            status, reply = 401, {"error": "Unauthorized"}
        elif fields["requests"] == "stop":
            status, reply = 400, {"error": {"message": "not now"}}
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    """The address of such a server."""
    with HTTPServer(("127.0.0.1", 0), Answering) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def test_setting_lambda_of_a_server(address: str) -> None:
    """The server's λ is returned; a bad one is misuse, and what the server says is in the message."""
    assert set_lambda(address, "0.6", "finish", "key") == 0.6
    for bad in ("x", "1.5", "nan"):
        with pytest.raises(MisuseError, match="expected a number"):
            set_lambda(address, bad, "finish", "key")
    with pytest.raises(FailureError, match="401: no reason given"):
        set_lambda(address, "0.6", "finish", None)
    with pytest.raises(FailureError, match="400: not now"):
        set_lambda(address, "0.6", "stop", "key")
    with pytest.raises(FailureError, match="404"):
        set_lambda(f"{address}/other", "0.6", "finish", "key")


def test_setting_lambda_where_no_server_is(address: str) -> None:
    """The message names the address."""
    with pytest.raises(FailureError, match=r"127\.0\.0\.1:1 cannot be reached: connection refused\n"):
        set_lambda("http://127.0.0.1:1", "0.6", "finish", None)
