"""One λ for everybody: `--worker-extension-cls vllm_dami.uniform_worker.LambdaWorker` and `DamiUniform…ForCausalLM`.

The model is vLLM's own. `collective_rpc("set_lambda", args=(0.6,))` loads other weights into the same memory, in the
way that vLLM has for reinforcement learning; the caller sees to it that no request is under way.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from dami_router.errors import MisuseError
from vllm_dami.pair_surgery import unknown_layers

__all__ = ["LambdaWorker"]


class LambdaWorker:
    """What every worker of vLLM can do besides."""

    model_runner: Any

    def set_lambda(self, lambda_: float) -> None:
        """Load the weights at λ; if that fails, those from before. Mixtures of experts are refused."""
        model = self.model_runner.get_model()
        if unknown := unknown_layers(model):
            kind, name = next(iter(unknown.items()))
            raise MisuseError(
                f"another λ cannot be set: it was not tested that vLLM loads a {kind} again (`{name}`)",
                hint="start the server with a recipe that has this λ",
            )
        before = model.uniform_lambda
        try:
            self._load(model, lambda_)
        except Exception:
            self._load(model, before)
            raise

    def _load(self, model: Any, lambda_: float | None) -> None:
        model.uniform_lambda = lambda_
        # The model reads its own files, whatever it is given here.
        self.model_runner.reload_weights(weights_iterator=iter(()))
        for layer in model.modules():
            # A tied head shares the embeddings' weight, and on a CPU has a packed copy, which a reload does not renew.
            if isinstance(layer, VocabParallelEmbedding):
                layer.quant_method.process_weights_after_loading(layer)

    def get_lambda(self) -> float | None:
        """Return the λ of the weights; None is the server's default."""
        found: float | None = self.model_runner.get_model().uniform_lambda
        return found
