"""`dami deploy`: every target's files against the schemas that their projects publish, and against a running router."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployments import COMMIT, deploy, documents, family
from fakes.world import Client, World
from jsonschema import Draft7Validator, Draft202012Validator

from dami_merge.lab import copy_pair
from dami_router.cli import main
from dami_router.config.router_schema import Limits
from dami_router.config.router_yml import load_config
from dami_router.deploying.deploy_targets import TARGETS
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.features import HashedText
from dami_router.estimators.quantile import QuantileMap
from dami_router.estimators.store import save
from dami_router.estimators.training import TrainingSettings, train
from dami_router.manifest.family import load_family
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout

SCHEMAS = Path(__file__).parent.parent / "deploy_schemas"
CUSTOM = {
    "InferencePool": "inferencepool", "HTTPRoute": "httproute", "LLMInferenceService": "llminferenceservice",
    "RayService": "rayservice",
}  # fmt: skip
OPTIONS = {
    "compose": ["--gpus", "2"], "compose/tgi": ["--engine", "tgi"], "compose/live": ["--live"],
    "compose/replicas": ["--replicas", "2"],
    "production-stack": [], "production-stack/replicas": ["--replicas", "3"],
    "kserve": [], "kserve/large": ["--gpu-memory", "12"], "gateway": [], "ray": [], "llama-server": [],
}  # fmt: skip
CASES = list(OPTIONS)
KEYS = {"DAMI_KEY": "k", "DAMI_SERVERS_KEY": "s"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each target writes for one family."""
    place = tmp_path_factory.mktemp("deploy")
    source = family(place / "family")
    for case, options in OPTIONS.items():
        assert deploy(place / case.replace("/", "-"), source, case.split("/")[0], *options) == 0
    return {case: place / case.replace("/", "-") for case in OPTIONS}


def closed(schema: Any) -> Any:
    """Return a resource's schema that refuses unknown fields, as `kubectl apply` with strict validation does."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def validator(name: str, *, strict: bool = True) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    return Draft202012Validator(closed(schema) if strict else schema)


def objects(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every Kubernetes object that `kubectl apply -k` would send."""
    for name in documents(folder / "kustomization.yaml")[0]["resources"]:
        yield from documents(folder / name)


CLUSTER = [case for case in CASES if case.split("/")[0] in ("production-stack", "kserve", "gateway", "ray")]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("compose")])
def test_compose_files_are_valid_by_the_compose_specification(written: dict[str, Path], case: str) -> None:
    """compose.yaml passes the specification's own JSON Schema, which refuses unknown keys."""
    schema = json.loads((SCHEMAS / "compose.json").read_text())
    (data,) = documents(written[case] / "compose.yaml")
    Draft7Validator(schema).validate(data)
    wrong = {**data, "services": {**data["services"], "router": {"image": "x", "helthcheck": {}}}}
    assert not Draft7Validator(schema).is_valid(wrong)


@pytest.mark.parametrize("case", CLUSTER)
def test_kubernetes_objects_are_valid(written: dict[str, Path], case: str) -> None:
    """Built-in kinds pass Kubernetes' own schemas strictly, custom resources those of their definitions."""
    import kubernetes_validate

    for found in objects(written[case]):
        if found["kind"] in CUSTOM:
            validator(CUSTOM[found["kind"]]).validate(found)
        else:
            kubernetes_validate.validate(found, "1.34", strict=True)
        for template in templates(found):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": template}
            named = [{"image": "set-by-the-platform", **one} for one in template["containers"]]
            kubernetes_validate.validate({**pod, "spec": {**template, "containers": named}}, "1.34", strict=True)


def templates(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod's spec below an object."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from templates(value)
    elif isinstance(node, list):
        for one in node:
            yield from templates(one)


@pytest.mark.parametrize("case", CLUSTER)
def test_the_checks_of_kubernetes_objects_can_fail(written: dict[str, Path], case: str) -> None:
    """A misspelt field of any object is found, so that the test above means something."""
    import kubernetes_validate

    for found in objects(written[case]):
        if "spec" not in found:
            continue
        wrong = {**found, "spec": {**found["spec"], "repliccas": 1}}
        if found["kind"] in CUSTOM:
            assert not validator(CUSTOM[found["kind"]]).is_valid(wrong)
        else:
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(wrong, "1.34", strict=True)


@pytest.mark.parametrize("case", ["production-stack", "production-stack/replicas"])
def test_values_are_valid_by_the_chart(written: dict[str, Path], case: str) -> None:
    """values.yaml passes the chart's values.schema.json, and has no key that the schema does not know."""
    (values,) = documents(written[case] / "values.yaml")
    validator("production-stack-values").validate(values)
    for model in values["servingEngineSpec"]["modelSpec"]:
        assert model["modelRevision"] == COMMIT
        assert model["vllmConfig"]["extraArgs"][:2] == ["--served-model-name", "Qwen3-4B-DAMI-" + model["name"]]
    assert values["routerSpec"]["routingLogic"] == ("roundrobin" if case == "production-stack" else "prefixaware")


@pytest.mark.parametrize("case", CLUSTER)
def test_names_refer_to_what_is_there(written: dict[str, Path], case: str) -> None:
    """Every ConfigMap, Secret, ServiceAccount and Service that an object names is generated, made or from its chart."""
    folder = written[case]
    (kustom,) = documents(folder / "kustomization.yaml")
    made = {(found["kind"], found["metadata"]["name"]) for found in objects(folder)}
    made |= {("ConfigMap", one["name"]) for one in kustom["configMapGenerator"]}
    made |= {("Secret", one["name"]) for one in kustom["secretGenerator"]}
    assert kustom["generatorOptions"] == {"disableNameSuffixHash": True}  # custom resources' references stay right
    text = "\n".join(json.dumps(found) for found in objects(folder))
    for kind, pattern in (
        ("Secret", r'"secretKeyRef": \{"name": "([^"]+)"'),
        ("ConfigMap", r'"configMap": \{"name": "([^"]+)"'),
        ("ServiceAccount", r'"serviceAccountName": "([^"]+)"'),
        ("Service", r'"endpointPickerRef": \{"name": "([^"]+)"'),
    ):
        for name in re.findall(pattern, text):
            assert (kind, name) in made
    for name in kustom["configMapGenerator"][0]["files"]:
        assert (folder / name).is_file()
    assert all(len(name) <= 63 and re.fullmatch(r"[a-z][-a-z0-9]*", name) for _, name in made)


@pytest.mark.parametrize("case", CASES)
def test_the_generated_router_yml_passes_check(
    written: dict[str, Path], case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dami check` finds nothing to warn about but plain http to other machines, with the key from the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(written[case] / "router.yml"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (stopped.value.code or 0, found["ok"], found["findings"]) == (0, True, [])
    assert found["asks_for_keys"]


@pytest.mark.parametrize("case", CASES)
def test_files_say_how_to_use_them_and_hold_no_key(written: dict[str, Path], case: str) -> None:
    """The main file opens with commands, then a request and its reply; `.env` is an example only."""
    folder = written[case]
    main_file = {"compose": "compose.yaml", "llama-server": "router.yml"}.get(case.split("/")[0], "kustomization.yaml")
    opening = re.match(r"(?:#.*\n)+", (folder / main_file).read_text(encoding="utf-8"))
    assert opening is not None
    assert re.search(r"curl -si http://127.0.0.1:8000/v1/chat/completions(.*\n)*.*HTTP/1.1 200 OK", opening[0])
    for path in folder.iterdir():
        assert path.suffix == ".json" or path.read_text(encoding="utf-8").startswith(("#", ";")), path.name
    assert (folder / ".env.example").read_text().splitlines()[-3:-1][0].startswith(("DAMI_", "#"))
    assert not (folder / ".env").exists()
    assert set(re.findall(r"^(\w+)=(.*)$", (folder / ".env.example").read_text(), re.M)) == {
        ("DAMI_KEY", ""), ("HF_TOKEN", ""), *([("DAMI_SERVERS_KEY", "")] if guarded(case) else []),
    }  # fmt: skip


def guarded(case: str) -> bool:
    """Whether the servers of a target have routes on a Gateway, and so a key of their own."""
    return case.split("/")[0] in ("kserve", "gateway")


def served(case: str, folder: Path) -> dict[str, str]:
    """Return which name the server behind each URL of router.yml gets, read from the target's own files."""
    kind = case.split("/")[0]
    if kind == "compose":
        services = documents(folder / "compose.yaml")[0]["services"]
        flag = "--model-id" if case == "compose/tgi" else "--served-model-name"
        return {
            f"http://{name}:8000": one["command"][one["command"].index(flag) + 1]
            for name, one in services.items()
            if flag in one["command"]
        }
    if kind == "production-stack":
        models = documents(folder / "values.yaml")[0]["servingEngineSpec"]["modelSpec"]
        url = "http://qwen3-4b-dami-router-service"
        return {url: ",".join(model["vllmConfig"]["extraArgs"][1] for model in models)}
    if kind == "kserve":
        base = "http://kserve-ingress-gateway-istio.kserve.svc.cluster.local/default/"
        services = [one for one in objects(folder) if one["kind"] == "LLMInferenceService"]
        return {base + one["metadata"]["name"]: one["spec"]["model"]["name"] for one in services}
    if kind == "gateway":
        names = {one["metadata"]["name"]: one for one in objects(folder) if one["kind"] == "Deployment"}
        found = {}
        for route in (one for one in objects(folder) if one["kind"] == "HTTPRoute"):
            (rule,) = route["spec"]["rules"]
            target = rule["backendRefs"][0]
            if target.get("kind") == "InferencePool":
                args = names[target["name"]]["spec"]["template"]["spec"]["containers"][0]["args"]
                path = rule["matches"][0]["path"]["value"]
                gateway = "http://inference-gateway-istio.default.svc.cluster.local"
                found[gateway + path.removesuffix("/v1")] = args[args.index("--served-model-name") + 1]
        return found
    if kind == "ray":
        apps = documents(folder / "serve.yml")[0]["applications"]
        return {
            "http://127.0.0.1:8000" + app["route_prefix"]: app["args"]["llm_configs"][0]["model_loading_config"][
                "model_id"
            ]
            for app in apps
            if "llm_configs" in app["args"]
        }
    parser = configparser.ConfigParser()
    parser.read_string(re.sub(r"^version = 1$", "", (folder / "models.ini").read_text(), flags=re.M))
    return {"http://127.0.0.1:8080": ",".join(name for name in parser.sections() if name != "*")}


@pytest.mark.parametrize("case", [case for case in CASES if case != "compose/live"])
def test_every_target_answers_through_its_own_router_yml(
    written: dict[str, Path], case: str, world: World, tmp_path: Path
) -> None:
    """Small servers, named as the target's files name them, stand in the containers' places: each λ reaches its own."""
    folder = written[case]
    text = re.sub(r"^#.*\n", "", (folder / "router.yml").read_text(encoding="utf-8"), flags=re.M)
    places = served(case, folder)
    assert set(places) == set(re.findall(r"http://[^\s'\",\]]+", text))
    for url in sorted(places, key=len, reverse=True):
        text = re.sub(rf"{re.escape(url)}(?![\w-])", f"http://127.0.0.1:{stand_in(world, case, places[url])}", text)
    (tmp_path / "router.yml").write_text(text)
    (tmp_path / "dami_family.json").write_bytes((folder / "dami_family.json").read_bytes())
    client: Client = world.proxy(text.replace("./dami_family.json", str(tmp_path / "dami_family.json")), KEYS)
    opening = "".join(path.read_text() for path in folder.iterdir())
    promised = re.search(r"x-dami-lambda: (\S+)\n. +x-dami-variant: (\S+)", opening)
    assert promised is not None
    low = client.post(
        "/v1/chat/completions",
        {"model": "dami", "reasoning_effort": "low", "messages": [{"role": "user", "content": "17*23?"}]},
        authorization="Bearer k",
    )
    assert (low.headers["x-dami-lambda"], low.variant) == promised.groups()
    for lambda_, variant in ((0, "l000"), (0.6, "l060"), (1, "l100")):
        reply = client.post(
            "/v1/chat/completions",
            {"model": f"dami:{lambda_}", "messages": [{"role": "user", "content": "2+2?"}]},
            authorization="Bearer k",
        )
        assert (reply.status, reply.variant) == (200, f"Qwen3-4B-DAMI-{variant}")
    assert client.chat("2+2?").status == 401


def stand_in(world: World, case: str, names: str) -> int:
    """Start a server with these models; returns its port."""
    if case == "compose/tgi":
        return int(world.tgi(names).port)
    server = world.upstream(names.split(",")[0])
    server.models = {"object": "list", "data": [{"id": name, "object": "model"} for name in names.split(",")]}
    return int(server.port)


def test_the_router_has_what_it_needs_of_the_manifest(written: dict[str, Path]) -> None:
    """The copied manifest keeps names, commits, templates and figures, and leaves out hashes, λ by layer and recipe."""
    found = load_family(written["gateway"] / "dami_family.json")
    assert [v.hub.revision for v in found.variants if v.hub] == [COMMIT] * 3
    assert [v.chat_template.opens_think for v in found.variants] == [False, True, True]
    assert (found.recipe, found.variants[0].files, found.variants[0].resolved) == ("", {}, [])


def words(case: str, written: dict[str, Path], service: str) -> list[str]:
    """Return a server's command line in a compose file."""
    found: list[str] = documents(written[case] / "compose.yaml")[0]["services"][service]["command"]
    return found


def test_engines_get_the_flags_that_the_family_needs(written: dict[str, Path]) -> None:
    """vLLM's reasoning parser where the template opens `<think>`, the commit, the share of the GPU; TGI's own flags."""
    plain, thinks = words("compose", written, "l000"), words("compose", written, "l060")
    assert "--reasoning-parser" not in plain
    assert thinks[thinks.index("--reasoning-parser") + 1] == "qwen3"
    assert plain[0].startswith("/models/")
    assert plain[plain.index("--gpu-memory-utilization") + 1] == "0.45"
    tgi = words("compose/tgi", written, "l060")
    assert tgi[tgi.index("--max-total-tokens") + 1] == "32768"
    assert "--enable-prefill-logprobs" not in tgi


def test_a_live_server_holds_the_familys_pair(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """--live names both endpoints at their commits, the path and the template; the router knows the server by them."""
    source = family(tmp_path / "f", commit=COMMIT)
    assert deploy(tmp_path / "o", source, "compose", "--live", "--gpu-memory", "16") == 0
    command = words("compose", {"compose": tmp_path / "o"}, "live")
    pair = [f"Qwen/Qwen3-4B-{side}-2507@{COMMIT}" for side in ("Instruct", "Thinking")]
    assert command[:4] == [*pair, "--engine", "vllm"]
    options = dict(pairwise(command[4:]))
    assert (options["--path"], options["--chat-template"], options["--max-length"]) == ("uniform", "instruct", "32768")
    own, vllm = command[: command.index("--")], command[command.index("--") + 1 :]
    assert vllm == ["--gpu-memory-utilization", "0.9", "--tensor-parallel-size", "2"]
    assert own[-2:] == ["--max-length", "32768"]
    capsys.readouterr()
    copy_pair(tmp_path / "lab")
    own[:2] = [str(tmp_path / "lab" / side) for side in ("instruct", "thinking")]
    own[own.index("--max-length") + 1] = "128"
    with pytest.raises(SystemExit) as stopped:
        main(["live", "--print", *own, "--", *vllm])
    assert not stopped.value.code
    assert shlex.split(capsys.readouterr().out)[-4:] == vllm
    ends = {side: {"name": f"Qwen/Qwen3-4B-{side.title()}-2507", "commit": COMMIT} for side in ("instruct", "thinking")}
    server = world.live(**ends, path="uniform")
    text = (tmp_path / "o" / "router.yml").read_text().replace("http://live:8000", f"http://127.0.0.1:{server.port}")
    text = text.replace("./dami_family.json", str(tmp_path / "o" / "dami_family.json"))
    client: Client = world.proxy(text, KEYS)
    body = {"model": "dami:0.37", "messages": [{"role": "user", "content": "2+2?"}]}
    reply = client.post("/v1/chat/completions", body, authorization="Bearer k")
    assert (reply.status, reply.variant) == (200, "dami:0.37")


def test_servers_on_one_gpu_start_one_after_the_other(tmp_path: Path) -> None:
    """Three servers on two GPUs: two share one, with half of it each, and the second waits for the first."""
    assert deploy(tmp_path / "o", family(tmp_path / "f"), "compose", "--gpus", "2") == 0
    services = documents(tmp_path / "o" / "compose.yaml")[0]["services"]
    gpus = [services[n]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for n in
            ("l000", "l060", "l100")]  # fmt: skip
    assert gpus == [["0"], ["1"], ["0"]]
    assert list(services["l100"]["depends_on"]) == ["l000"]
    assert "depends_on" not in services["l060"]
    assert list(services["router"]["depends_on"]) == ["l000", "l060", "l100"]


@pytest.mark.parametrize("target", ["compose", "production-stack", "kserve", "gateway", "ray"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_address_of_several_replicas_is_balanced(tmp_path: Path, target: str, replicas: int) -> None:
    """The router tries a failed call again where a variant's replicas share an address; compose gives each its own."""
    assert deploy(tmp_path / "o", family(tmp_path / "family"), target, "--replicas", str(replicas)) == 0
    backends = load_config(tmp_path / "o" / "router.yml", KEYS).backends
    assert {one.balanced for one in backends} == {replicas > 1 and target != "compose"}
    assert len(backends) == 3 * (replicas if target == "compose" else 1)


def test_the_users_settings_are_in_the_generated_router_yml(tmp_path: Path) -> None:
    """--router adds estimator, policy and keys, copies the files that they name, and lets TGI score prompts."""
    (tmp_path / "section.yml").write_text(
        "estimator: {chain: [effort, {confidence: {form: auto}}], fixed: 0.6}\n"
        "policy: {sticky: true}\nthinking: pass\napi_keys_env: [TEAM_A, TEAM_B]\n"
    )
    source = family(tmp_path / "f")
    options = ("--engine", "tgi", "--router", str(tmp_path / "section.yml"))
    assert deploy(tmp_path / "o", source, "compose", *options) == 0
    config = load_config(tmp_path / "o" / "router.yml", {"TEAM_A": "a", "TEAM_B": "b"})
    assert (config.policy.sticky, config.api_keys, config.thinking) == (True, ("a", "b"), "pass")
    assert config.timeouts.total == 1800
    services = documents(tmp_path / "o" / "compose.yaml")[0]["services"]
    assert "--enable-prefill-logprobs" in services["l100"]["command"]
    assert set(services["router"]["environment"]) == {"TEAM_A", "TEAM_B"}


def test_estimators_travel_with_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that the settings name are copied and mounted; a ConfigMap has no folders, and the command says so."""
    rollouts = [
        Rollout(f"q{i}", f"question {i}", x, x if i % 2 else 1.0, int(10 + 90 * x)) for i in range(20) for x in (0, 1)
    ]
    save(train(grid_of(rollouts), TrainingSettings(knots=1, folds=2), encoder=HashedText(4)), tmp_path / "EST")
    CalibratedMap(16, {"instruct": QuantileMap.fit([i / 100 for i in range(100)], 0.3, 0.6)}).save(
        tmp_path / "map.json"
    )
    source, settings = family(tmp_path / "f"), tmp_path / "section.yml"
    settings.write_text("estimator: {chain: [{trained: EST}, {confidence: {map: map.json}}]}\n")
    assert deploy(tmp_path / "o", source, "compose", "--router", str(settings)) == 0
    assert load_config(tmp_path / "o" / "router.yml", KEYS).estimator.estimators
    mounts = documents(tmp_path / "o" / "compose.yaml")[0]["services"]["router"]["volumes"]
    assert {mount["target"] for mount in mounts} >= {"/etc/dami/EST", "/etc/dami/map.json"}
    assert deploy(tmp_path / "k", source, "kserve", "--router", str(settings)) == 2
    assert "a ConfigMap holds files without folders" in capsys.readouterr().err
    settings.write_text("shadow: {estimator: {confidence: {map: map.json}}}\n")
    assert deploy(tmp_path / "k", source, "kserve", "--router", str(settings)) == 0
    (kustom,) = documents(tmp_path / "k" / "kustomization.yaml")
    assert "map.json" in kustom["configMapGenerator"][0]["files"]


def test_a_manifest_cannot_write_yaml_or_variables(tmp_path: Path) -> None:
    """What Compose would interpolate in a path is escaped."""
    source = family(tmp_path / "a$HOME{x}", pushed=())
    assert deploy(tmp_path / "o", source, "compose") == 0
    text = (tmp_path / "o" / "compose.yaml").read_text()
    assert "a$$HOME{x}" in text
    assert yaml.safe_load(text)["services"]["l000"]["volumes"][1]["source"].replace("$$", "$") == str(
        source / "Qwen3-4B-DAMI-l000"
    )


def test_kserve_splits_large_models_by_its_own_field(written: dict[str, Path]) -> None:
    """Tensor parallelism is `parallelism.tensor`, from which KServe makes the flag: it is not given twice."""
    service = next(one for one in objects(written["kserve/large"]) if one["kind"] == "LLMInferenceService")
    (container,) = service["spec"]["template"]["containers"]
    assert service["spec"]["parallelism"] == {"tensor": 2}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "--tensor-parallel-size" not in shlex.split(container["env"][0]["value"])


PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for words in json.loads(sys.argv[1]):
    read = parser.parse_args(words)
    print("READ", json.dumps([read.model_tag, read.served_model_name, read.max_model_len, read.reasoning_parser]))
"""


@pytest.mark.vllm
@pytest.mark.skipif("DAMI_VLLM_PYTHON" not in os.environ, reason="needs a Python with vLLM; see `make test-vllm`")
def test_vllms_own_parser_reads_the_command_lines(written: dict[str, Path]) -> None:
    """`vllm serve` of the version that is named takes every word, and reads them as they are meant."""
    lines = [words("compose", written, name) for name in ("l000", "l060")]
    lines += [
        one["spec"]["template"]["spec"]["containers"][0]["args"]
        for one in documents(written["gateway"] / "servers.yaml")
    ]
    lines += [
        ["model", *shlex.split(one["spec"]["template"]["containers"][0]["env"][0]["value"])]
        for one in objects(written["kserve"])
        if one["kind"] == "LLMInferenceService"
    ]
    done = subprocess.run(
        [os.environ["DAMI_VLLM_PYTHON"], "-c", PARSE, json.dumps(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("READ ")]
    assert [one[2] for one in read] == [32768] * len(lines)
    assert [one[3] for one in read] == ["", "qwen3", "", "qwen3", "qwen3", "", "qwen3", "qwen3"]
    assert read[2][:2] == ["acme/Qwen3-4B-DAMI-l000", ["Qwen3-4B-DAMI-l000"]]


def test_flags_follow_the_family(tmp_path: Path) -> None:
    """Other architectures get DeepSeek's parser, a split its size, mixed templates their λ; one GPU gets no split."""
    source = family(tmp_path / "f", name="7B-Chat", architecture="Olmo3ForCausalLM", parameters=60_000_000_000)
    manifest = json.loads((source / "dami_family.json").read_text())
    for variant in manifest["variants"]:
        variant["chat_template"]["source"] = "thinking" if variant["lambda"] >= 0.6 else "instruct"
    (source / "dami_family.json").write_text(json.dumps(manifest))
    assert deploy(tmp_path / "g", source, "gateway", "--namespace", "chat") == 0
    servers = documents(tmp_path / "g" / "servers.yaml")
    assert [one["metadata"]["name"] for one in servers] == [
        "dami-7b-chat-l000",
        "dami-7b-chat-l060",
        "dami-7b-chat-l100",
    ]
    args = servers[1]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--reasoning-parser") + 1] == "deepseek_r1"
    assert args[args.index("--tensor-parallel-size") + 1] == "2"
    pools = [one for one in documents(tmp_path / "g" / "pools.yaml") if one["kind"] == "InferencePool"]
    assert {one["spec"]["endpointPickerRef"]["failureMode"] for one in pools} == {"FailOpen"}
    pickers = [one for one in documents(tmp_path / "g" / "pools.yaml") if one["kind"] == "Deployment"]
    for one in pickers:
        (picker,) = one["spec"]["template"]["spec"]["containers"]
        assert picker["args"][picker["args"].index("--pool-namespace") + 1] == "chat"
        assert one["metadata"]["name"] == picker["args"][1] + "-epp"
    assert deploy(tmp_path / "c", source, "compose", "--live") == 0
    live = words("compose", {"compose": tmp_path / "c"}, "live")
    assert live[live.index("--chat-template") + 1] == "from(0.6)"
    assert deploy(tmp_path / "one", source, "compose", "--gpu-memory", "192") == 0
    assert "--tensor-parallel-size" not in words("compose", {"compose": tmp_path / "one"}, "l000")


def test_probes_wait_for_the_weights(tmp_path: Path) -> None:
    """A server has ten minutes and a download at 100 MB/s until it must be ready: 87 minutes for 438 GiB."""
    source = family(tmp_path / "f", lambdas=(0.0, 1.0), parameters=235_093_634_560)
    times = {}
    for target in ("compose", "production-stack", "gateway"):
        assert deploy(tmp_path / target, source, target) == 0
    for one in documents(tmp_path / "gateway" / "servers.yaml"):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        times[one["metadata"]["name"]] = container["startupProbe"]["failureThreshold"] * 10
        assert one["spec"]["progressDeadlineSeconds"] > times[one["metadata"]["name"]]
        assert {container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe")} == {"/health"}
    values = documents(tmp_path / "production-stack" / "values.yaml")[0]["servingEngineSpec"]["startupProbe"]
    times["chart"] = values["failureThreshold"] * values["periodSeconds"]
    services = documents(tmp_path / "compose" / "compose.yaml")[0]["services"]
    times["compose"] = int(services["l000"]["healthcheck"]["start_period"].removesuffix("s"))
    assert all(5301 <= seconds <= 5310 for seconds in times.values()), times


def test_json_says_what_will_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has servers, sizes and files."""
    assert deploy(tmp_path / "o", family(tmp_path / "f"), "compose", "--only", "0", "--only", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [server["variant"] for server in found["servers"]] == ["Qwen3-4B-DAMI-l000", "Qwen3-4B-DAMI-l100"]
    assert found["bytes_on_each_gpu"] == 2 * 4_022_468_096 + (2 << 30) + 32768 * 36 * 2 * 8 * 128 * 2
    assert set(found["files"]) == {path.name for path in (tmp_path / "o").iterdir()}


def test_the_help_lists_every_target() -> None:
    """The command's choices are the targets that exist."""
    from dami_router.commands.deploy import deploy as command

    (option,) = [parameter for parameter in command.params if parameter.name == "target"]
    assert list(option.type.choices) == list(TARGETS)  # type: ignore[attr-defined]


def test_the_image_of_the_router_is_small_and_not_root(written: dict[str, Path]) -> None:
    """The Dockerfile's last stage has no torch, a user that is not root, and the command that the files start."""
    text = (Path(__file__).parents[4] / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    last = stages[-1]
    assert last.startswith("python:3.13-slim AS router")
    assert "torch" not in last
    assert re.findall(r"^(?:USER|ENTRYPOINT) (.*)$", last, re.M) == ["65532:65532", '["dami"]']
    assert any(re.match(r"\S+ AS live\n", stage) for stage in stages)
    router = documents(written["compose"] / "compose.yaml")[0]["services"]["router"]
    assert (router["read_only"], router["cap_drop"], router["command"][0]) == (True, ["ALL"], "serve")
    pod = documents(written["kserve"] / "dami.yaml")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["terminationGracePeriodSeconds"] > Limits().drain


def test_the_guide_lists_what_is_applied(written: dict[str, Path]) -> None:
    """docs/deploy.md shows the objects and containers of this family, and the commands that the files have."""
    guide = (Path(__file__).parents[4] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (kustom,) = documents(written["kserve"] / "kustomization.yaml")
    made = {(one["apiVersion"].rpartition("/")[0], one["kind"].lower(), one["metadata"]["name"])
            for one in objects(written["kserve"])}  # fmt: skip
    made |= {("", kind, kustom[f"{key}Generator"][0]["name"])
             for kind, key in (("configmap", "configMap"), ("secret", "secret"))}  # fmt: skip
    lines = {f"{kind}{'.' * bool(group)}{group}/{name}" for group, kind, name in made}
    assert set(re.findall(r"^(\S+) created$", guide, re.M)) == lines
    services = documents(written["compose"] / "compose.yaml")[0]["services"]
    containers = re.findall(r"Container qwen3-4b-dami-(\w+)-1 +Healthy", guide)
    assert containers == list(services)
    ports = set(re.findall(r"port-forward svc/(\S+ \S+)", guide))
    assert ports == {"qwen3-4b-dami-router 8000:80", "qwen3-4b-dami-serve-svc 8000:8000"}
    files = "".join((written[case] / "kustomization.yaml").read_text() for case in ("kserve", "gateway", "ray"))
    assert ports == set(re.findall(r"port-forward svc/(\S+ \S+)", files))
