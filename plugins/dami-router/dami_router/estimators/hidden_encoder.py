"""The encoder of evidence from inside: Instruct's last hidden state of the prompt, from a live server.

It costs one prefill of the prompt and no generated token. While serving, the state of each query is read from the
server; for training and evaluation, those of all queries are read before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dami_router.errors import MisuseError
from dami_router.estimators.log_probs import EstimationError, HiddenState, Servers
from dami_router.estimators.query import Query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["HiddenEncoder"]

_UNKNOWN = "the hidden state of a query is not known; a live server gives it (--hidden ROUTER.yml)"


@dataclass(frozen=True)
class HiddenEncoder:
    """Hidden states of `model`, as servers name it. `known`: states by text; `timeout`: seconds to read one."""

    dimensions: int
    model: str
    known: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    servers: Servers | None = field(default=None, repr=False)
    timeout: float = 2.0
    remote = False

    @classmethod
    def of(cls, states: Mapping[str, HiddenState]) -> HiddenEncoder:
        """Return the encoder of these states, by text; raises MisuseError if they come from different models."""
        models = sorted({state.model for state in states.values()})
        lengths = {len(state.vector) for state in states.values()}
        if len(models) != 1 or len(lengths) != 1:
            raise MisuseError(f"hidden states of several models: {', '.join(models) or 'none'}")
        return cls(lengths.pop(), models[0], {text: state.vector for text, state in states.items()})

    def describe(self) -> Mapping[str, Any]:
        """Return the kind, the model and the length."""
        return {"kind": "hidden", "model": self.model, "dimensions": self.dimensions}

    def bind(self, servers: Servers) -> HiddenEncoder:
        """Return the encoder with servers to read states from."""
        return replace(self, servers=servers)

    async def read(self, query: Query) -> HiddenEncoder:
        """Return the encoder with the state of one query; raises EstimationError if no server gives it."""
        if self.servers is None:
            raise EstimationError(_UNKNOWN)
        state = await self.servers.instruct.hidden(query, timeout=self.timeout)
        if state.model != self.model or len(state.vector) != self.dimensions:
            raise EstimationError(
                f"trained on {self.dimensions} numbers of `{self.model}`, found {len(state.vector)} of `{state.model}`"
            )
        return replace(self, known={query.text: state.vector})

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return the state of each text, (texts, dimensions); raises EstimationError for an unknown one."""
        import numpy as np

        missing = sum(text not in self.known for text in texts)
        if missing:
            raise EstimationError(f"{_UNKNOWN}: {missing} of {len(texts)} queries")
        return np.array([self.known[text] for text in texts], dtype=np.float64).reshape(len(texts), self.dimensions)
