"""One pass over the tokens of many rows, through a pair of endpoints or through a plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dami_merge.interpolation.schedule import Schedule
from dami_merge.live.attention import ForwardStep
from dami_merge.live.blend import Blend, Lambdas, PairTensor, WeightSource
from dami_merge.live.pair_weights import Merger
from dami_merge.live.spread import Spread, Vector
from dami_merge.live.weights_mode import Mode, Policy

__all__ = ["Batch", "LanguageModel", "Logits", "PairModel", "PlainModel", "out_of_memory"]

Logits = Callable[[Sequence[int]], torch.Tensor]
"""The logits (places, vocabulary) of some of a pass's tokens, distinct and ascending; good until the next pass."""


@dataclass(frozen=True)
class Batch:
    """The tokens of a step, in order, and the rows they belong to.

    `owners`: λ and the number of tokens of each row. `ahead`: the most tokens that any row may still generate.
    """

    ids: Sequence[int]
    step: ForwardStep
    owners: tuple[tuple[Vector, int], ...]
    ahead: int


class LanguageModel(Protocol):
    """What the engine needs from a model."""

    @property
    def device(self) -> torch.device:
        """The device for tokens and caches."""
        ...

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        ...

    def vector(self, lambda_: float | Schedule | None) -> Vector:
        """Return λ as the model uses it; raises MisuseError for an invalid one."""
        ...

    def forward(self, batch: Batch) -> Logits:
        """Pass the tokens through all layers; the head runs later, for the requested places."""
        ...

    def hidden(self, place: int) -> torch.Tensor:
        """Return the last hidden state of one token of the last pass, (features,), after the final norm."""
        ...


class PlainModel:
    """An unchanged model of Transformers, loaded with this package's attention; λ has no effect.

    For comparisons: the same loop over one merged checkpoint.
    """

    def __init__(self, model: Any) -> None:
        self._body, self._head = model.get_decoder(), head_of(model)
        self.device = torch.device(model.device)
        self.config: dict[str, Any] = model.config.to_dict()
        self.vocabulary = int(model.config.get_text_config().vocab_size)

    def vector(self, lambda_: float | Schedule | None) -> Vector:  # noqa: ARG002
        """Return an empty vector: there is one set of weights."""
        return ()

    def forward(self, batch: Batch) -> Logits:
        """Pass the tokens through all layers."""
        hidden = self._hidden(batch)
        return lambda places: self._logits(_at(hidden, places))

    def _hidden(self, batch: Batch) -> torch.Tensor:
        # (tokens, features), after the final norm
        ids = torch.tensor([list(batch.ids)], device=self.device)
        out = self._body(input_ids=ids, position_ids=batch.step.positions()[None], use_cache=False, live=batch.step)
        state: torch.Tensor = out.last_hidden_state[0]
        self._last = state
        return state

    def hidden(self, place: int) -> torch.Tensor:
        """Return the last hidden state of one token of the last pass, (features,), after the final norm."""
        state: torch.Tensor = self._last[place]
        return state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits


class PairModel(PlainModel):
    """Both endpoints in one model, each row at its own λ."""

    def __init__(
        self, model: Any, blend: Blend, pairs: Sequence[PairTensor], spread: Spread, device: torch.device, mode: Mode
    ) -> None:
        self._body, self._head = model.get_decoder(), head_of(model)
        self.device = device
        self.config: dict[str, Any] = model.config.to_dict()
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.merger = Merger(pairs, device)
        self.policy = Policy(mode)
        self._blend = blend
        self.pairs = pairs
        self._spread = spread
        self._wide = torch.float64 if pairs[0].ends.dtype == torch.float64 else torch.float32
        self._known: tuple[tuple[tuple[Vector, int], ...], Lambdas] | None = None

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of weights: both `endpoints`, and the `merged` buffer if it exists."""
        merged = sum(pair.merged.nbytes for pair in self.pairs if pair.merged is not None)
        return {"endpoints": sum(pair.ends.nbytes for pair in self.pairs), "merged": merged}

    @property
    def source(self) -> WeightSource:
        """Which weights the last pass used."""
        return self._blend.source

    def vector(self, lambda_: float | Schedule | None) -> Vector:
        """Return λ for each group of parameters; raises MisuseError if it is out of range."""
        return self._spread.vector(lambda_)

    def forward(self, batch: Batch) -> Logits:
        """Pass the tokens through all layers with the weights that the policy chooses."""
        source = self._source(batch)
        if source is not WeightSource.MIXED:
            self._blend.set(source)
            return super().forward(batch)
        lambdas = self._lambdas(batch)
        self._blend.set(WeightSource.MIXED, lambdas)
        hidden = self._hidden(batch)

        def logits(places: Sequence[int]) -> torch.Tensor:
            self._blend.set(WeightSource.MIXED, lambdas if len(places) == len(hidden) else lambdas.of(places))
            return self._logits(_at(hidden, places))

        return logits

    def _source(self, batch: Batch) -> WeightSource:
        vectors = {vector for vector, _ in batch.owners}
        decision = self.policy.choose(vectors, self.merger.holds, tokens=len(batch.ids), ahead=batch.ahead)
        if decision.merge:
            try:
                self.merger.merge(next(iter(vectors)))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.policy.mode == "uniform":
                    raise
                # Both endpoints are still there. The memory that the buffer took so far goes back to the rows.
                self.merger.release()
                self.policy.mode = "mixed"
                return WeightSource.MIXED
        return decision.source

    def _lambdas(self, batch: Batch) -> Lambdas:
        # Nearly every pass has the same rows as the one before.
        if self._known is None or self._known[0] != batch.owners:
            rows = torch.tensor([vector for vector, _ in batch.owners], dtype=self._wide, device=self.device)
            counts = torch.tensor([count for _, count in batch.owners], device=self.device)
            self._known = (batch.owners, Lambdas(rows.repeat_interleave(counts, dim=0).T[:, :, None].contiguous()))
        return self._known[1]


def head_of(model: Any) -> Any:
    """Return the part of a model after its last hidden state: Transformers' own forward without the layers.

    So whatever a model does between its layers and its logits (a scale, a soft cap) is its own code. It takes the
    hidden state as `inputs_embeds`, (1, tokens, features), and returns logits, (1, tokens, vocabulary).
    """
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _NoLayers()}
    return head


class _NoLayers(nn.Module):
    """Replaces a model's layers: passes on the result that they gave earlier."""

    def forward(self, *, inputs_embeds: torch.Tensor, **_: object) -> _Passed:
        return _Passed(inputs_embeds)


@dataclass(slots=True)
class _Passed:
    """What a head reads of its layers' output. Transformers' own class takes 20 µs to construct."""

    last_hidden_state: torch.Tensor

    def __getitem__(self, index: int) -> torch.Tensor:
        assert index == 0
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        """Return None for what layers may tell beside it: a cache, attentions, the router's scores."""


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch means that memory ran out; on the CPU such errors have no class of their own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _at(hidden: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    return hidden if len(places) == len(hidden) else hidden[list(places)]
