"""λ of a step's tokens in vLLM's V2 model runner, the default on GPUs.

The runner prepares a step outside of its CUDA graphs. The tokens' λ are written there, into the tensor that the graph
was captured with.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from vllm_dami.lambda_rows import LambdaRows

__all__ = ["LambdaModelState"]


class LambdaModelState(DefaultModelState):  # type: ignore[misc]  # vLLM is not installed for type checks
    """vLLM's own state of a decoder, and λ."""

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Write λ of the step's tokens; nothing is passed to the model."""
        starts = input_batch.query_start_loc[: input_batch.num_reqs + 1]
        seats = input_batch.idx_mapping[: input_batch.num_reqs]
        LambdaRows.of(self.vllm_config).fill(starts, input_batch.num_tokens_after_padding, seats)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs
