"""λ per request inside stock vLLM, through its public extension points.

    vllm serve INSTRUCT --hf-overrides '{"architectures": ["DamiQwen3ForCausalLM"]}' \
      --additional-config '{"dami": {"thinking": "THINKING"}}' \
      --logits-processors vllm_dami.lambda_requests:LambdaRequests --middleware vllm_dami.http_middleware.DamiMiddleware

`dami live INSTRUCT THINKING --engine vllm` starts this command, and `--print` prints it.

- `plugin`: registers `Dami…ForCausalLM` for every architecture of vLLM; vLLM calls it in every process.
- `pair_settings`, `request_lambda`: what a server and what a request may say; no vLLM, no torch.
- `pair_classes`: vLLM's own class of an architecture, with both endpoints' weights.
- `pair_surgery`, `pair_layers`: exchange what holds weights; the layers that mix two endpoints.
- `lambda_rows`: λ of each row of the batch, and of each token of a step.
- `lambda_requests`, `lambda_state`: from a request's fields to these rows, in vLLM's V1 and V2 model runner.
- `uniform_worker`: one λ for everybody, in one model's memory.
- `http_middleware`: `/info`, the route that sets λ, and cache salts.
"""
