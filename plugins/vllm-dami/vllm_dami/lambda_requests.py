"""λ of the requests, as both of vLLM's model runners hand them out: `--logits-processors …:LambdaRequests`.

A processor is the one extension point that sees a request's `vllm_xargs` and follows it through the batch. It changes
no logits.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from vllm_dami.lambda_rows import LambdaRows
from vllm_dami.request_lambda import read_lambda, salted

__all__ = ["LambdaRequests"]


class LambdaRequests(LogitsProcessor, LogitsProcessorV2):  # type: ignore[misc]  # vLLM is not installed for type checks
    """Checks λ where requests arrive, and tells `LambdaRows` which row has which λ."""

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        self._rows = LambdaRows.of(vllm_config)

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Refuse an invalid λ; keep a request whose salt does not name its λ from reading cached keys and values."""
        lambda_ = read_lambda(params.extra_args)
        if not salted(params.extra_args, lambda_):
            params.skip_reading_prefix_cache = True

    def is_argmax_invariant(self) -> bool:
        """Tell that greedy sampling may skip this processor."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch (V1): added, then moved."""
        if batch_update is None:
            return
        for row, params, _, _ in batch_update.added:
            self._rows.put(row, read_lambda(params.extra_args))
        for source, target, direction in batch_update.moved:
            self._rows.move(source, target, swap=direction == MoveDirectionality.SWAP)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Seat a request (V2); it keeps its row. Returns False: no logits are changed."""
        self._rows.put(req_idx, read_lambda(sampling_params.extra_args))
        return False

    def apply(self, logits: Any, *_: Any) -> Any:
        """Return the logits as they are."""
        return logits
