"""One λ for everybody: `--worker-extension-cls vllm_dami.uniform_worker.LambdaWorker` and `DamiUniform…ForCausalLM`.

The model is vLLM's own. `collective_rpc("set_lambda", args=(0.6,))` loads other weights into the same memory, in the
way that vLLM has for reinforcement learning; the caller sees to it that no request is under way.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

__all__ = ["LambdaWorker"]


class LambdaWorker:
    """What every worker of vLLM can do besides."""

    model_runner: Any

    def set_lambda(self, lambda_: float) -> None:
        """Load the weights at λ."""
        model = self.model_runner.get_model()
        before, model.uniform_lambda = model.uniform_lambda, lambda_
        try:
            # The model reads its own files, whatever it is given here.
            self.model_runner.reload_weights(weights_iterator=iter(()))
        except BaseException:
            model.uniform_lambda = before
            raise
        for layer in model.modules():
            # A tied head shares the embeddings' weight, and on a CPU has a packed copy, which a reload does not renew.
            if isinstance(layer, VocabParallelEmbedding):
                layer.quant_method.process_weights_after_loading(layer)

    def get_lambda(self) -> float | None:
        """Return the λ of the weights; None is the server's default."""
        found: float | None = self.model_runner.get_model().uniform_lambda
        return found
