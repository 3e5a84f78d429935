"""Run by a Python that has vLLM: engines and requests as JSON on stdin, what they answered as JSON in a file.

Each run is one engine in this process. A request joins at its step, and may be aborted at another; so requests of many
lengths join, leave and move while others are under way.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

PROCESSOR = "vllm_dami.lambda_requests:LambdaRequests"


def main() -> None:
    """Run all engines of the order, one after the other."""
    results: list[Any] = []
    for order in json.load(sys.stdin):
        try:
            results.append(run(order))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
        gc.collect()
    Path(sys.argv[1]).write_text(json.dumps(results))


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Answer rounds of requests with one engine; returns an answer for each request of each round."""
    from vllm import LLM

    plain = order.get("architecture") is None
    more: dict[str, Any] = {}
    if not plain:
        more = {
            "hf_overrides": {"architectures": [order["architecture"]]},
            "additional_config": {"dami": {"thinking": order["thinking"], **order.get("dami", {})}},
        }
        uniform = order["architecture"].startswith("DamiUniform")
        worker = {"worker_extension_cls": "vllm_dami.uniform_worker.LambdaWorker"}
        more |= worker if uniform else {"logits_processors": [PROCESSOR]}
    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "seed": 0, **more, **order["options"]}
    llm = LLM(order["model"], **options)
    found = []
    for requests in order["rounds"]:
        if isinstance(requests, dict):  # another λ for everybody
            llm.collective_rpc("set_lambda", args=(requests["set"],))
            llm.reset_prefix_cache()
        else:
            found.append(answer(llm.llm_engine, requests))
    counted = {metric.name: getattr(metric, "value", None) for metric in metrics(llm)}
    stop(llm)
    return {"outputs": found, "preemptions": counted.get("vllm:num_preemptions")}


def metrics(llm: Any) -> list[Any]:
    """Return vLLM's counters; none unless it logs them."""
    return list(llm.get_metrics()) if llm.llm_engine.log_stats else []


def stop(llm: Any) -> None:
    """Free an engine's memory, for the next one in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()


def answer(engine: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each request at its step, abort it at another, and step until all have ended."""
    ended: dict[str, Any] = {}
    step = 0
    waiting = list(enumerate(requests))
    while waiting or engine.has_unfinished_requests():
        for i, request in list(waiting):
            if request.get("at", 0) <= step:
                waiting.remove((i, request))
                engine.add_request(str(i), prompt_of(request), params_of(request))
        for i, request in enumerate(requests):
            if request.get("abort_at") == step:
                engine.abort_request([str(i)])
        for output in engine.step():
            if output.finished or output.request_id not in ended:
                ended[output.request_id] = output
        step += 1
    return [described(ended.get(str(i))) for i in range(len(requests))]


def prompt_of(request: dict[str, Any]) -> Any:
    """Return vLLM's form of a prompt, with its salt."""
    prompt = {"prompt": request["text"]} if "text" in request else {"prompt_token_ids": request["prompt"]}
    return {**prompt, **({"cache_salt": request["salt"]} if "salt" in request else {})}


def params_of(request: dict[str, Any]) -> Any:
    """Return a request's sampling parameters."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    fields = {"temperature": 0.0, "logprobs": 0, "ignore_eos": True, **request["params"]}
    if "regex" in fields:
        fields["structured_outputs"] = StructuredOutputsParams(regex=fields.pop("regex"))
    return SamplingParams(**fields)


def described(output: Any) -> dict[str, Any] | None:
    """Return what a request got: tokens and their log-probabilities, the prompt's, and how much came from a cache."""
    if output is None or not output.finished:
        return None
    prompt = output.prompt_logprobs
    pairs = zip(output.prompt_token_ids[1:], prompt[1:], strict=True) if prompt else ()
    return {
        "tokens": [list(choice.token_ids) for choice in output.outputs],
        "logprobs": [
            [entry[token].logprob for token, entry in zip(choice.token_ids, choice.logprobs, strict=True)]
            for choice in output.outputs
        ],
        "texts": [choice.text for choice in output.outputs],
        "prompt": [entry[token].logprob for token, entry in pairs] if prompt else None,
        "cached": output.num_cached_tokens,
        "reasons": [choice.finish_reason for choice in output.outputs],
    }


if __name__ == "__main__":
    from vllm_dami.plugin import register

    register()
    main()
