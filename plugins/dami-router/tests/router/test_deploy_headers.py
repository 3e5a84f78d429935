"""What the files of `dami deploy` tell: commands that work as written, who can reach what, and which keys are needed.

A family without weights; the files are read, and the commands that need no cluster are run.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from deployments import deploy, documents, family
from fakes.world import Client, World
from hypothesis import given
from hypothesis import strategies as st

from dami_router.deploying.deploy_targets import TARGETS
from dami_router.deploying.written_files import comment
from dami_router.manifest.family import load_family

CLUSTER = ["production-stack", "kserve", "gateway", "ray"]
VALUES = {
    "gpus": ["2"], "live": [], "gateway": ["a/b"], "gateway_url": ["http://g"], "namespace": ["x"], "engine": ["vllm"],
    "gpu_memory": ["80"], "replicas": ["2"], "image": ["i"],
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of three variants."""
    return family(tmp_path_factory.mktemp("headers") / "f")


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each target writes for it."""
    place = tmp_path_factory.mktemp("written")
    assert [deploy(place / target, source, target) for target in TARGETS] == [0] * len(TARGETS)
    return {target: place / target for target in TARGETS}


def opening(path: Path) -> str:
    """Return the comment at the beginning of a file, one line for each paragraph."""
    lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line[:1] in ("#", ";")]
    return re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines))


def first(target: str, folder: Path) -> str:
    return opening(folder / TARGETS[target].first)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_first_file_says_who_reaches_the_servers(written: dict[str, Path], target: str) -> None:
    """Every target's opening names what answers without the router's key, or the key that the servers ask for."""
    said = first(target, written[target])
    assert re.search("without a key|ask for no key|answer to everyone who reaches the Gateway", said)
    assert ("DAMI_SERVERS_KEY" in said) == (target in ("kserve", "gateway"))
    if target == "ray":
        assert "/l000, /l060, /l100 answer there without a key" in said


@pytest.mark.parametrize("target", ["kserve", "gateway"])
def test_servers_on_a_gateway_ask_for_a_key_that_the_router_sends(written: dict[str, Path], target: str) -> None:
    """vLLM's VLLM_API_KEY and the router's `api_key_env` are one entry of the Secret, on every server."""
    folder = written[target]
    (config,) = documents(folder / "router.yml")
    assert [one["api_key_env"] for one in config["backends"]] == ["DAMI_SERVERS_KEY"] * 3
    name = "servers.yaml" if target == "gateway" else "services.yaml"
    served = [container for one in documents(folder / name) for container in containers(one)]
    wanted = {"name": "qwen3-4b-dami-keys", "key": "DAMI_SERVERS_KEY"}
    found = [env["valueFrom"]["secretKeyRef"] for one in served for env in one["env"] if env["name"] == "VLLM_API_KEY"]
    assert found == [wanted] * 3
    (router,) = containers(documents(folder / "dami.yaml")[0])
    assert {"name": "DAMI_SERVERS_KEY", "valueFrom": {"secretKeyRef": wanted}} in router["env"]


def containers(found: dict[str, Any]) -> list[dict[str, Any]]:
    template = found.get("spec", {}).get("template", {})
    return list(template.get("spec", template).get("containers", []))


@pytest.mark.parametrize("target", ["kserve", "gateway"])
def test_the_router_sends_the_servers_key_and_not_the_clients(
    written: dict[str, Path], target: str, world: World
) -> None:
    """Small servers in the variants' places see DAMI_SERVERS_KEY, whatever key the client sent."""
    text = (written[target] / "router.yml").read_text(encoding="utf-8")
    servers = []
    for number in ("l000", "l060", "l100"):
        servers.append(world.upstream(f"Qwen3-4B-DAMI-{number}"))
        text = re.sub(rf"url: http://\S+-{number}$", f"url: {servers[-1].url}", text, flags=re.M)
    text = text.replace("./dami_family.json", str(written[target] / "dami_family.json"))
    client: Client = world.proxy(text, {"DAMI_KEY": "k", "DAMI_SERVERS_KEY": "s"})
    for lambda_, server in zip((0, 0.6, 1), servers, strict=True):
        body = {"model": f"dami:{lambda_}", "messages": [{"role": "user", "content": "2+2?"}]}
        assert client.post("/v1/chat/completions", body, authorization="Bearer k").status == 200
        assert [call.headers["authorization"] for call in server.calls] == ["Bearer s"]


def test_a_pools_route_is_open_where_vllm_asks_for_the_key(tmp_path: Path, source: Path) -> None:
    """Only /v1, and the routes of `pass_through`, lead to a pool: /invocations and /tokenize do not."""
    (tmp_path / "s.yml").write_text("pass_through: [/v1/embeddings, /score]\n")
    assert deploy(tmp_path / "o", source, "gateway", "--router", str(tmp_path / "s.yml")) == 0
    routes = [one for one in documents(tmp_path / "o" / "pools.yaml") if one["kind"] == "HTTPRoute"]
    for one in routes:
        base = "/default/" + one["metadata"]["name"]
        rules = one["spec"]["rules"]
        assert [rule["matches"][0]["path"]["value"] for rule in rules] == [f"{base}/v1", f"{base}/score"]
        paths = [rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"] for rule in rules]
        assert paths == ["/v1", "/score"]
    assert "but not for /score (pass_through)" in first("gateway", tmp_path / "o")


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("keys", ["[]", ""])
def test_no_key_is_asked_for_where_the_router_has_none(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], target: str, keys: str
) -> None:
    """With an empty `api_keys_env` no file names a key, the request sends none, and the command warns."""
    (tmp_path / "s.yml").write_text(f"api_keys_env: {keys}\n")
    assert deploy(tmp_path / "o", source, target, "--router", str(tmp_path / "s.yml")) == 0
    assert "warning: the router will ask clients for no key: api_keys_env of" in capsys.readouterr().err
    for path in (tmp_path / "o").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search("DAMI_KEY|DAMI_SERVERS_KEY|VLLM_API_KEY|Authorization", text), path.name
    (config,) = documents(tmp_path / "o" / "router.yml")
    assert config["api_keys_env"] == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "DAMI_SERVERS_KEY"])
def test_a_key_of_clients_is_no_other_secret(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A variable of .env that has another use is refused as the key that clients send."""
    (tmp_path / "s.yml").write_text(f"api_keys_env: [TEAM, {name}]\n")
    assert deploy(tmp_path / "o", source, "gateway", "--router", str(tmp_path / "s.yml")) == 2
    assert f"{name} in .env is for another use" in capsys.readouterr().err


def test_a_route_has_no_more_paths_than_a_gateway_takes(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fifteen routes outside /v1 fit beside it, sixteen are refused; those below /v1 count as one."""
    for number, code in ((15, 0), (16, 2)):
        paths = [*(f"/x{i}" for i in range(number)), "/v1/embeddings"]
        (tmp_path / "s.yml").write_text(f"pass_through: [{', '.join(paths)}]\n")
        assert deploy(tmp_path / str(number), source, "gateway", "--router", str(tmp_path / "s.yml")) == code
    assert "at most 16 paths, found 17" in capsys.readouterr().err


def test_each_of_several_keys_is_asked_for(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys of the settings are named where .env is made and in .env.example; there is nothing to warn about."""
    (tmp_path / "s.yml").write_text("api_keys_env: [TEAM_A, TEAM_B]\n")
    assert deploy(tmp_path / "o", source, "kserve", "--router", str(tmp_path / "s.yml")) == 0
    assert "warning" not in capsys.readouterr().err
    assert "cp .env.example .env    # and set TEAM_A, TEAM_B, DAMI_SERVERS_KEY" in first("kserve", tmp_path / "o")
    names = re.findall(r"^(\w+)=$", (tmp_path / "o" / ".env.example").read_text(), re.M)
    assert names == ["TEAM_A", "TEAM_B", "DAMI_SERVERS_KEY", "HF_TOKEN"]


@pytest.mark.parametrize(
    ("target", "option"), [(target, option) for target, one in TARGETS.items() for option in sorted(one.unused)]
)
def test_an_option_without_effect_is_a_misuse(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], target: str, option: str
) -> None:
    """The message names the targets that the option is for, and those accept it."""
    flag = "--" + option.replace("_", "-")
    assert deploy(tmp_path / "o", source, target, flag, *VALUES[option]) == 2
    message = capsys.readouterr().err
    assert f"{flag} is for --target " in message
    able = re.findall(r"[a-z-]+", message.split(f"{flag} is for --target ")[1].split(";")[0].replace(" or ", " "))
    assert able == [name for name, other in TARGETS.items() if option not in other.unused]
    if option != "live":  # a live server needs a family at known commits; test_deploy.py has one
        assert deploy(tmp_path / "able", source, able[0], flag, *VALUES[option]) == 0


@pytest.mark.parametrize("more", [["--only", "0"], ["--engine", "tgi"]])
def test_live_takes_no_option_of_separate_servers(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """--live has every λ and runs on vLLM: an option that it would ignore is refused."""
    assert deploy(tmp_path / "o", source, "compose", "--live", *more) == 2
    assert f"{more[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["compose", "kserve"])
def test_the_check_of_the_header_runs_as_written(
    tmp_path: Path, source: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With .env filled in, the command in router.yml finds nothing to warn about, also for a part of the family."""
    monkeypatch.delenv("DAMI_KEY", raising=False)
    assert deploy(tmp_path / "o", source, target, "--only", "0", "--only", "1") == 0
    folder = tmp_path / "o"
    assert [v.lambda_ for v in load_family(folder / "dami_family.json").variants] == [0, 1]
    (command,) = re.findall(r"^ +(set -a; .*dami check.*)$", opening(folder / "router.yml"), re.M)
    example = (folder / ".env.example").read_text()
    (folder / ".env").write_text(re.sub(r"^(\w+_KEY)=$", r"\1=k", example, flags=re.M))
    python = f'dami() {{ {shlex.quote(sys.executable)} -c "from dami_router.cli import main; main()" "$@"; }}; '
    done = subprocess.run(
        ["sh", "-c", python + command], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ready to serve\n" in done.stdout


def test_ray_without_kubernetes_is_told_its_keys(written: dict[str, Path]) -> None:
    """serve.yml names the folder, the key that every node needs, and the paths that answer without it."""
    said = opening(written["ray"] / "serve.yml")
    assert "this folder at /etc/dami there, and DAMI_KEY in the environment of `ray start`:" in said
    assert "answer there without a key" in said


def test_headers_name_files_that_are_there(written: dict[str, Path]) -> None:
    """Only Ray's folder has a Dockerfile to build from, and what a header applies or converts into exists by then."""
    for target in CLUSTER:
        said = first(target, written[target])
        (build,) = re.findall(r"docker build -t \S+ (.*)", said)
        assert build == ("-f Dockerfile PATH/TO/dami-merge" if target == "ray" else "PATH/TO/dami-merge")
        assert (written[target] / "Dockerfile").exists() == (target == "ray")
        for name in re.findall(r"-f (\S+\.ya?ml)", said):
            assert (written[target] / name).exists()
            assert name not in documents(written[target] / "kustomization.yaml")[0]["resources"]
    said = first("llama-server", written["llama-server"])
    assert said.index("mkdir -p models\n") < said.index("--outfile models/")


def test_a_laptop_is_sized_in_q8_0_and_for_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    """llama-server's summary has the memory of a model of 8.5 bits a weight, and refuses no model for a GPU's size."""
    assert deploy(tmp_path / "o", source, "llama-server") == 0
    said = capsys.readouterr().out
    assert "8.5 GiB for a loaded model: weights in q8_0" in said
    assert "25.4 GiB for all" in said
    assert "GPU" not in said
    assert "each needs 8.5 GiB" in first("llama-server", tmp_path / "o")
    large = family(tmp_path / "large", parameters=1_000_000_000_000)
    assert deploy(tmp_path / "l", large, "llama-server", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_of_each_model"] == 10**12 * 34 // 32 + 32768 * 36 * 2 * 8 * 128 * 2
    assert found["gpus_each"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "all 3 variants; --only λ chooses"), (["--only", "0.6"], "1 of 3 variants")],
)
def test_the_summary_says_how_much_of_the_family_is_deployed(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """One variant's id names the whole family: the output says that all of it is deployed."""
    assert deploy(tmp_path / "o", source, "compose", *options) == 0
    assert f"family   Qwen3-4B-DAMI: {said}\n" in capsys.readouterr().out


def test_the_settings_are_checked_against_the_family(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An alias of a variant is right, a budget below every variant wrong, `family` not the settings' to say."""
    section = tmp_path / "s.yml"
    section.write_text("aliases: {fast: Qwen3-4B-DAMI-l000}\n")
    assert deploy(tmp_path / "a", source, "compose", "--router", str(section)) == 0
    for text, told in (
        ("family: ./f\n", "s.yml:1: family: the family to deploy gives it"),
        ("\npolicy: {budget: {mean_lambda: 0.1}}\n", "s.yml:2"),
        ("\naliases: {fast: nothing}\n", "s.yml:2"),
    ):
        section.write_text(text)
        capsys.readouterr()
        assert deploy(tmp_path / "o", source, "compose", "--only", "0.6", "--router", str(section)) == 2
        assert told in capsys.readouterr().err


def test_addresses_in_comments_are_whole(written: dict[str, Path]) -> None:
    """Every address of a comment is on one line, and comments leave no word alone on a line."""
    text = (written["kserve"] / "services.yaml").read_text()
    assert "http://kserve-ingress-gateway-istio.kserve.svc.cluster.local" in text
    for folder in written.values():
        for path in folder.glob("*.y*ml"):
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            assert not [line for line in lines if re.fullmatch(r"# \S+", line)], path


@given(st.lists(st.from_regex(r"[a-z]{1,9}(-[a-z]{1,9}){0,2}|https?://[a-z./-]{1,130}", fullmatch=True), min_size=1))
def test_a_comment_keeps_its_words_and_fills_its_lines(words: list[str]) -> None:
    """No word is broken or lost; a paragraph has as few lines as fit, however its source was wrapped."""
    text = " ".join(words)
    lines = comment("\n".join(words) + "\n\n  a command   stays").splitlines()
    assert lines[-2:] == ["#", "#   a command   stays"]
    body = [line.removeprefix("# ") for line in lines[:-2]]
    assert " ".join(body).split() == words
    fewest = textwrap.wrap(text, 116, break_long_words=False, break_on_hyphens=False)
    assert len(body) == len(fewest)
    assert all(len(line) <= 116 or " " not in line for line in body)
