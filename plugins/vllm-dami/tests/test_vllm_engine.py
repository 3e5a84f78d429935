"""vLLM with a pair in it against Transformers on merged weights: opt-in, `make test-vllm`.

The engines run in one child process, by a Python that has vLLM; the references are computed here.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.live import make_live_pair, model_class, variant
from support.pairs import Pair

from vllm_dami.pair_refusals import ARCHITECTURES
from vllm_dami.request_lambda import SALT, salt_for

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        "DAMI_VLLM_PYTHON" not in os.environ, reason="DAMI_VLLM_PYTHON names no Python with vLLM; `make test-vllm` does"
    ),
]
CHILD = Path(__file__).parent / "engine_child.py"
SHAPE = {"head_dim": 32, "hidden_size": 128, "vocab_size": 512}
TOLERANCE = 1e-4
BLOCK = 32
FILTERS = [{"filter": "q_proj", "value": "late(0.5)"}, {"filter": "mlp", "value": "power(2)"}, {"value": "uniform"}]


def ask(orders: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Run engines in a process of their own; returns what each answered, or its error."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    with (folder / "child.log").open("w") as log:
        subprocess.run(
            [os.environ["DAMI_VLLM_PYTHON"], CHILD, folder / "out.json"], input=json.dumps(orders), text=True,
            env=kept | settings, stdout=log, stderr=subprocess.STDOUT, timeout=1500, check=True,
        )  # fmt: skip
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    return found


def order(pair: Pair, rounds: list[Any], architecture: str | None = "DamiQwen3ForCausalLM", **more: Any) -> Any:
    """Return the order for one engine."""
    options = {
        "skip_tokenizer_init": True, "max_model_len": 256, "max_num_batched_tokens": 64, **more.pop("options", {})
    }  # fmt: skip
    return {
        "model": str(pair.instruct), "thinking": str(pair.thinking), "architecture": architecture, "rounds": rounds,
        "options": options, **more,
    }  # fmt: skip


def request(prompt: list[int], lambda_: float | None, max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    """Return one request; `salt` gives it the salt for its λ."""
    extra: dict[str, Any] = {} if lambda_ is None else {"lambda": lambda_}
    fields: dict[str, Any] = {"prompt": prompt}
    if more.pop("salted", False):
        fields["salt"] = extra[SALT] = salt_for(lambda_)
    for name in ("at", "abort_at"):
        if name in more:
            fields[name] = more.pop(name)
    params = {"max_tokens": max_tokens, "detokenize": False, "extra_args": extra, **more}
    return {**fields, "params": params}


def some_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Return requests of random λ, lengths, arrival times and options."""
    chance = random.Random(seed)
    found = []
    for i in range(count):
        lambda_ = chance.choice([0.0, 1.0, None, *[round(chance.random(), 6) for _ in range(7)]])
        more: dict[str, Any] = {"at": chance.randrange(count)}
        if i % 7 == 0:
            more |= {"n": 3, "temperature": 1.0}
        if i % 5 == 0:
            more |= {"prompt_logprobs": 0}
        if i % 17 == 0:
            more |= {"abort_at": more["at"] + chance.randrange(1, 5)}
        prompt = [chance.randrange(3, 500) for _ in range(chance.randrange(1, 120))]
        found.append(request(prompt, lambda_, chance.randrange(1, 20), **more))
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small Qwen3 with heads that vLLM has on a CPU."""
    return make_live_pair(tmp_path_factory.mktemp("qwen3"), "qwen3", **SHAPE)


WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "gemma": {}, "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 20}, "glm4": {"attention_bias": True},
    "granite": MULTIPLIERS, "llama": {"attention_bias": True, "mlp_bias": True}, "ministral3": {"sliding_window": 5},
    "mistral": {"sliding_window": 5}, "olmo2": {}, "olmo3": WINDOW, "phi3": {}, "qwen2": {},
    "qwen3": {"tie_word_embeddings": False}, "smollm3": {"no_rope_layers": [1, 0, 1]},
}  # fmt: skip
"""What a class can do beside the plain decoder, switched on. Half of them have a head of their own."""
FEW = some_requests(6, 5)


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Pair, Any]]:
    """A pair of every architecture, and what vLLM answered with it."""
    folder = tmp_path_factory.mktemp("architectures")
    pairs = {
        kind: make_live_pair(folder / kind, kind, **SHAPE, **{"tie_word_embeddings": i % 2 == 0, **more})
        for i, (kind, more) in enumerate(CASES.items())
    }
    names = {kind: f"Dami{architecture_of(pair)}" for kind, pair in pairs.items()}
    found = ask([order(pair, [FEW], names[kind]) for kind, pair in pairs.items()], folder)
    return {kind: (pairs[kind], result) for kind, result in zip(CASES, found, strict=True)}


def architecture_of(pair: Pair) -> str:
    return str(json.loads((pair.instruct / "config.json").read_text())["architectures"][0])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small Qwen3-MoE."""
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    return make_live_pair(tmp_path_factory.mktemp("moe"), "qwen3_moe", **SHAPE, **more, mlp_only_layers=[])


RANDOM = some_requests(200, 1)
LONG = [[random.Random(i).randrange(3, 500) for _ in range(3 * BLOCK + 5)] for i in range(2)]
TWICE = [
    request(LONG[0], lambda_, salted=True, at=20 * i) for i, lambda_ in enumerate((0.2, 0.9, 0.2, 0.9, None, None))
]
UNSALTED = [request(LONG[1], lambda_, at=20 * i) for i, lambda_ in enumerate((0.2, 0.9, 0.2, 0.9))]
CROWD = [request([random.Random(i).randrange(3, 500) for _ in range(60)], i / 8, 60) for i in range(8)]
SPREAD = some_requests(12, 3)
COMPILED = some_requests(24, 4)
ONE = [request(LONG[0], None)]


@pytest.fixture(scope="module")
def answers(pair: Pair, mixture: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every engine of this file answered."""
    uniform = {"architecture": "DamiUniformQwen3ForCausalLM", "dami": {"lambda": 0.3}}
    experts = {"architecture": "DamiUniformQwen3MoeForCausalLM", "dami": {"lambda": 0.3}}
    changing = [ONE, {"set": 0.8}, ONE, {"set": 0.3}, ONE]
    small = {"num_gpu_blocks_override": 9, "block_size": BLOCK, "disable_log_stats": False}
    orders = {
        "random": order(pair, [RANDOM], options={"enable_prefix_caching": True}),
        "cached": order(pair, [TWICE, UNSALTED], options={"enable_prefix_caching": True, "block_size": BLOCK}),
        "crowd": order(pair, [CROWD], options=small),
        "spread": order(pair, [SPREAD], dami={"path": FILTERS}),
        "compiled": order(pair, [COMPILED], options={"enforce_eager": False}),
        "uniform": order(pair, changing, **uniform),
    }
    guess = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    apart = {
        # vLLM keeps some state of an engine that did not start, and of one without experts.
        "mixture": order(mixture, [ONE], **experts),
        "no other mixture": order(mixture, [ONE, {"set": 0.8}], **experts),
        "no mixture": order(mixture, [ONE], architecture="DamiQwen3MoeForCausalLM"),
        "no lora": order(pair, [ONE], options={"enable_lora": True}),
        "no speculation": order(pair, [ONE], options={"speculative_config": guess}),
        "no thinking": order(pair, [ONE], dami={"thinking": ""}),
    }
    found = ask(list(orders.values()), tmp_path_factory.mktemp("child"))
    answered = dict(zip(orders, found, strict=True))
    for name, alone in apart.items():
        (answered[name],) = ask([alone], tmp_path_factory.mktemp("child"))
    return answered


class Reference:
    """Transformers' log-probabilities on merged weights."""

    def __init__(self, pair: Pair, path: str = "uniform", default: float = 0.5) -> None:
        self.default = default
        self._model = lru_cache(None)(lambda lambda_: variant(pair, lambda_, path))

    @torch.inference_mode()
    def check(self, asked: dict[str, Any], got: dict[str, Any]) -> None:
        """Compare every log-probability, and every greedy token."""
        lambda_ = asked["params"]["extra_args"].get("lambda", self.default)
        prompt = asked["prompt"]
        for tokens, logprobs in zip(got["tokens"], got["logprobs"], strict=True):
            all_ = self._model(lambda_)(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
            wanted = all_[len(prompt) - 1 : -1]
            ours = torch.tensor(logprobs)
            theirs = wanted.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert (ours - theirs).abs().max() < TOLERANCE
            if asked["params"].get("temperature", 0.0) == 0.0:
                # Another token than Transformers' is fine only where both are as likely.
                assert (wanted.max(-1).values - theirs).max() < TOLERANCE
            if got["prompt"] is not None and len(prompt) > 1:
                before = all_[: len(prompt) - 1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
                assert (torch.tensor(got["prompt"]) - before).abs().max() < TOLERANCE

    def check_all(self, asked: list[dict[str, Any]], got: list[Any]) -> int:
        """Compare a round; returns how many requests were answered in full."""
        full = 0
        for one, reply in zip(asked, got, strict=True):
            if reply is None or reply["reasons"][0] == "abort":
                assert "abort_at" in one
                continue
            assert {len(tokens) for tokens in reply["tokens"]} == {one["params"]["max_tokens"]}
            self.check(one, reply)
            full += 1
        return full


def outputs(answers: dict[str, Any], name: str) -> Any:
    assert "error" not in answers[name], answers[name]
    return answers[name]["outputs"]


def test_two_hundred_requests_of_their_own_lambda(pair: Pair, answers: dict[str, Any]) -> None:
    """Random λ, lengths and arrival times, n > 1, log-probabilities of prompts, long prompts in chunks, aborts."""
    (got,) = outputs(answers, "random")
    assert Reference(pair).check_all(RANDOM, got) >= 185


def test_prefix_caching_never_mixes_two_lambdas(pair: Pair, answers: dict[str, Any]) -> None:
    """One prompt at two λ, twice: the second time comes from the cache, and each is what a cold server answers."""
    got, unsalted = outputs(answers, "cached")
    assert Reference(pair).check_all(TWICE, got) == len(TWICE)
    assert [reply["cached"] for reply in got] == [0, 0, 3 * BLOCK, 3 * BLOCK, 0, 3 * BLOCK]
    assert Reference(pair).check_all(UNSALTED, unsalted) == len(UNSALTED)
    assert [reply["cached"] for reply in unsalted] == [0] * 4


def test_rows_that_are_preempted(pair: Pair, answers: dict[str, Any]) -> None:
    """With too little memory for keys and values, requests stop, start again and keep their λ."""
    (got,) = outputs(answers, "crowd")
    assert Reference(pair).check_all(CROWD, got) == len(CROWD)
    assert answers["crowd"]["preemptions"] > 0


def test_compiled(pair: Pair, answers: dict[str, Any]) -> None:
    """The same with torch.compile: one graph for every λ."""
    (got,) = outputs(answers, "compiled")
    assert Reference(pair).check_all(COMPILED, got) >= 20


def test_a_path_that_tells_fused_projections_apart(pair: Pair, answers: dict[str, Any]) -> None:
    """q, k and v are one product in vLLM, and each output has the λ of its own part."""
    (got,) = outputs(answers, "spread")
    assert SpreadReference(pair).check_all(SPREAD, got) >= 10


class SpreadReference(Reference):
    """The same along a path with filters, merged tensor by tensor."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self._model = lru_cache(None)(lambda lambda_: merged_along(pair, FILTERS, lambda_))


def merged_along(pair: Pair, path: list[dict[str, str]], lambda_: float) -> Any:
    """Return Transformers' model with each tensor at λ along a path with filters."""
    import transformers
    from safetensors.torch import load_file

    from dami_merge.interpolation.depth import Anatomy
    from dami_merge.interpolation.formula import interpolate
    from dami_merge.interpolation.path import parse_path

    ends = [load_file(side / "model.safetensors") for side in pair]
    anatomy = Anatomy.of(ends[0])
    merged = {}
    for name in ends[0]:
        chosen = next(entry["value"] for entry in path if entry.get("filter", "") in name)
        at = parse_path(chosen).lambda_at(lambda_, anatomy.place(name))
        merged[name] = interpolate(ends[0][name], ends[1][name], at)
    config = transformers.AutoConfig.from_pretrained(pair.instruct)
    return model_class(config).from_pretrained(None, config=config, state_dict=merged, dtype="auto").eval()


def test_one_lambda_at_a_time(pair: Pair, answers: dict[str, Any]) -> None:
    """Weights are set again in place; each time the model is the variant."""
    for lambda_, got in zip((0.3, 0.8, 0.3), outputs(answers, "uniform"), strict=True):
        Reference(pair, default=lambda_).check(ONE[0], got[0])


def test_a_mixture_at_the_lambda_it_started_with(mixture: Pair, answers: dict[str, Any]) -> None:
    """Its experts are interpolated too; another λ is refused, since vLLM would keep some of the old experts."""
    ((got,),) = outputs(answers, "mixture")
    Reference(mixture, default=0.3).check(ONE[0], got)
    assert "another λ cannot be set" in answers["no other mixture"]["error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no mixture", "Qwen3MoeForCausalLM is not supported"), ("no lora", "LoRA"),
        ("no speculation", "speculative decoding"), ("no thinking", "--additional-config"),
    ],
)  # fmt: skip
def test_refused_by_name_at_start(answers: dict[str, Any], name: str, words: str) -> None:
    """What was not made or not tested does not start."""
    assert words in answers[name].get("error", "it started")


@pytest.mark.parametrize("kind", CASES)
def test_architecture(architectures: dict[str, tuple[Pair, Any]], kind: str) -> None:
    """Biases, windows, QK-norms, multipliers, tied and untied heads: the log-probabilities of merged weights."""
    pair, answered = architectures[kind]
    assert "error" not in answered, answered
    assert Reference(pair).check_all(FEW, answered["outputs"][0]) >= 4


def test_every_supported_architecture_has_a_case(architectures: dict[str, tuple[Pair, Any]]) -> None:
    """The list that the plug-in accepts is the list that is compared here."""
    assert {architecture_of(pair) for pair, _ in architectures.values()} == ARCHITECTURES
