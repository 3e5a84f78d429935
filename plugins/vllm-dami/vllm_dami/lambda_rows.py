"""λ of each row of the batch, and of each token of a step, in tensors that keep their place.

The layers read `tokens` and nothing else, so the compiled graph and the CUDA graph of a step are the same for every λ.
`rows` follows the model runner's batch: both runners tell which request sits in which row.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from dami_merge.live.spread import Spread

__all__ = ["LambdaRows"]

_KNOWN: weakref.WeakValueDictionary[int, LambdaRows] = weakref.WeakValueDictionary()


class LambdaRows:
    """One engine's rows. `head` is the group of the model's head.

    `tokens` is (groups, most tokens of a step), fp32, on the model's device; a group is a set of parameters that
    always have the same λ.
    """

    def __init__(self) -> None:
        self._spread: Spread | None = None
        self._lambdas: dict[int, float | None] = {}
        self._changed: set[int] = set()
        self.head = 0

    @classmethod
    def of(cls, vllm_config: Any) -> LambdaRows:
        """Return the rows of the engine with this configuration, the same object to model, processor and runner."""
        # vLLM's runner gives one configuration to all of them; it cannot be hashed.
        key = id(vllm_config.compilation_config)
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = cls()
        return found

    def allocate(
        self, spread: Spread, most_rows: int, most_tokens: int, device: torch.device, default: float | None = None
    ) -> None:
        """Allocate the tensors; the model knows how λ spreads over its parameters.

        `default` is for requests without λ; None is the recipe's own.
        """
        self._default = default
        groups = max(spread.groups.values()) + 1
        self._spread = spread
        # vLLM makes a model with its device as the default one.
        self._host = torch.zeros(groups, most_rows, device="cpu")
        self._rows = torch.zeros(groups, most_rows, device=device)
        self._positions = torch.arange(most_tokens, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(groups, most_tokens, device=device)

    def put(self, row: int, lambda_: float | None) -> None:
        """Seat a request at λ (None: the server's default) in a row."""
        self._lambdas[row] = lambda_
        self._changed.add(row)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """Move a row to another place, or swap two."""
        there = self._lambdas.get(target)
        self.put(target, self._lambdas.get(source))
        if swap:
            self.put(source, there)

    def fill(self, starts: torch.Tensor, count: int, seats: torch.Tensor | None = None) -> None:
        """Write λ of the first `count` tokens.

        `starts` (rows + 1) says where the tokens of each row of the batch start; `seats` (rows) in which row its λ
        stands, if not in the same. Tokens behind the last row are padding. Nothing here waits for the device.
        """
        self._upload()
        row = torch.searchsorted(starts[1:], self._positions[:count], right=True).clamp_(max=starts.shape[0] - 2)
        if seats is not None:
            row = seats[row].long()
        self.tokens[:, :count] = self._rows[:, row]

    def _upload(self) -> None:
        if not self._changed:
            return
        assert self._spread is not None
        for row in self._changed:
            lambda_ = self._lambdas[row]
            self._host[:, row] = torch.tensor(self._spread.vector(self._default if lambda_ is None else lambda_))
        self._changed.clear()
        # A copy of its own, because the device may read it after the next change.
        host = self._host.pin_memory() if self._rows.is_cuda else self._host
        self._rows.copy_(host, non_blocking=True)

    def attach(self, hidden: torch.Tensor) -> torch.Tensor:
        """Append the head's λ to each token's hidden state, bit by bit: 4 bytes behind (tokens, features).

        vLLM picks hidden states for the head in several ways (the last of each row, a row's whole prompt). So λ
        travels with them.
        """
        lambdas = self.tokens[self.head, : hidden.shape[0], None].contiguous()
        return torch.cat((hidden, lambdas.view(hidden.dtype)), dim=-1)

    def detach(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states, and λ of each (tokens, 1); undoes `attach`."""
        features = hidden.shape[-1] - 4 // hidden.element_size()
        return hidden[:, :features].contiguous(), hidden[:, features:].contiguous().view(torch.float32)
