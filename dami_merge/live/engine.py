"""The engine: rows join, receive one token per step together, and leave."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from dami_merge.checkpoints.endpoints import Pair
from dami_merge.checkpoints.pair_templates import PairTemplates
from dami_merge.interpolation.schedule import Schedule
from dami_merge.live.attention import ForwardStep, KeyValues, RowSpan
from dami_merge.live.generation import Completion, CompletionBuilder, Event, Generation, PromptToken, Row, check_whole
from dami_merge.live.loading import load
from dami_merge.live.pair_model import Batch, LanguageModel, Logits, out_of_memory
from dami_merge.live.rows import LiveRow, Share
from dami_merge.live.sampling import pick, score
from dami_merge.live.tokenizing import Tokenizing
from dami_merge.live.weights_mode import Mode
from dami_merge.recipes.order import Order, order_of_endpoints, order_of_recipe
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import MisuseError

__all__ = ["Engine"]

DEFAULT_ROWS = 32
DEFAULT_PREFILL = 512
_SCORED_AT_ONCE = 64


class Engine:
    """Works on up to `max_rows` sequences at once, each with its own λ; further ones wait.

    Use it from one thread. `max_length` limits the tokens of a prompt and its answer together. `prefill` limits
    the prompt tokens that one step reads, so that a long prompt does not delay the others. With `one_lambda` a
    row is admitted only when all live rows have its λ.
    """

    def __init__(
        self,
        model: LanguageModel,
        texts: Tokenizing | None = None,
        *,
        name: str = "live",
        max_length: int = 4096,
        max_rows: int = DEFAULT_ROWS,
        prefill: int = DEFAULT_PREFILL,
        one_lambda: bool = False,
    ) -> None:
        check_whole("max_length", max_length, 2)
        check_whole("max_rows", max_rows, 1)
        check_whole("prefill", prefill, 1)
        self.model = model
        self.texts = texts
        self.name = name
        self.max_length = max_length
        self.max_rows = max_rows
        self.warnings: tuple[str, ...] = ()
        """What loading found: differences of the endpoints, and settings that are left out."""
        self.endpoints: Pair | None = None
        """The checkpoints that the weights came from."""
        self._eos = texts.eos if texts else frozenset()
        self._prefill = prefill
        self._one_lambda = one_lambda
        self._waiting: deque[LiveRow] = deque()
        self._live: list[LiveRow] = []
        self._cache = KeyValues(model.device)
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        instruct: str,
        thinking: str,
        *,
        path: str | Sequence[Mapping[str, Any]] = "uniform",
        dtype: str | None = None,
        chat_template: str = "instruct",
        name: str | None = None,
        device: str = "cpu",
        mode: Mode = "auto",
        max_length: int | None = None,
        max_rows: int = DEFAULT_ROWS,
        prefill: int = DEFAULT_PREFILL,
    ) -> Engine:
        """Load two endpoints: local folders, or Hub ids (`id@revision` for one commit).

        `path`, `dtype` (bfloat16, float16, float32, float64; default: the files' own) and `chat_template`
        (instruct, thinking, from(λ)) have the same meaning as in a recipe. `mode`: `mixed` uses both endpoints for
        every token; `uniform` merges for each λ and works on one λ at a time; `auto` chooses the cheaper one.
        `max_length` defaults to the model's own limit. Raises CheckpointError if the endpoints do not fit together
        or the model is not supported, before any weights are read.
        """
        order = order_of_endpoints(
            instruct, thinking, path=path, dtype=dtype, chat_template=chat_template, name=name
        )  # fmt: skip
        return cls.of(order, device=device, mode=mode, max_length=max_length, max_rows=max_rows, prefill=prefill)

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        *,
        device: str = "cpu",
        mode: Mode = "auto",
        max_length: int | None = None,
        max_rows: int = DEFAULT_ROWS,
        prefill: int = DEFAULT_PREFILL,
    ) -> Engine:
        """Load a recipe's endpoints, with its dtype and its family's name, path and chat template.

        A request without λ uses the recipe's own `parameters: lambda`, tensor by tensor.
        """
        order = order_of_recipe(recipe)
        return cls.of(order, device=device, mode=mode, max_length=max_length, max_rows=max_rows, prefill=prefill)

    @classmethod
    def of(
        cls, order: Order, *, device: str = "cpu", mode: Mode = "auto", max_length: int | None = None,
        max_rows: int = DEFAULT_ROWS, prefill: int = DEFAULT_PREFILL,
    ) -> Engine:  # fmt: skip
        """Load what an order says."""
        if max_length is not None:
            check_whole("max_length", max_length, 2)
        loaded = load(order, device=device, mode=mode)
        if max_length is not None and max_length > loaded.positions > 0:
            raise MisuseError(
                f"max_length: the model was made for {loaded.positions} tokens, found {max_length}",
                hint=f"at most {loaded.positions}",
            )
        made = cls(
            loaded.model, loaded.texts, name=loaded.name, max_length=max_length or loaded.positions or 4096,
            max_rows=max_rows, prefill=prefill, one_lambda=mode == "uniform",
        )  # fmt: skip
        made.warnings, made.endpoints = loaded.warnings, loaded.endpoints
        return made

    @property
    def tokenizer(self) -> Any:
        """The Instruct endpoint's tokenizer, or None if it has none."""
        return self.texts.tokenizer if self.texts else None

    @property
    def rows(self) -> int:
        """The number of live rows."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """The number of rows that wait to be admitted."""
        return len(self._waiting)

    @property
    def templates(self) -> PairTemplates | None:
        """Both endpoints' chat templates; None without texts."""
        return self.texts.templates if self.texts else None

    @property
    def free(self) -> int:
        """How many more rows could be admitted now."""
        return max(self.max_rows - len(self._live) - len(self._waiting), 0)

    @property
    def busy(self) -> bool:
        """Whether any row is live or waiting."""
        return bool(self._live or self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Bytes that hold the keys and values of live rows."""
        return self._cache.nbytes

    def add(self, generation: Generation) -> Row:
        """Queue a sequence. Raises MisuseError if its λ, its prompt or a token id is invalid for this model."""
        count = len(generation.prompt)
        if count >= self.max_length:
            raise MisuseError(
                f"the prompt has {count} tokens; at most {self.max_length - 1} leave room for an answer here"
            )
        if min(generation.prompt) < 0 or max(generation.prompt) >= self.model.vocabulary:
            raise MisuseError(f"the prompt holds token ids outside 0 to {self.model.vocabulary - 1}")
        tags = None
        if generation.thinking_token_budget is not None:
            tags = self.texts.think_tags if self.texts else None
            if tags is None:
                raise MisuseError("a thinking_token_budget needs a tokenizer; this engine has none")
        row = Row(next(self._ids), generation)
        limit = min(generation.max_new_tokens, self.max_length - count)
        self._waiting.append(LiveRow(row, self.model.vector(generation.lambda_), limit, self.tokenizer, tags))
        return row

    def remove(self, row: Row) -> None:
        """Drop a row; does nothing if it has ended already."""
        self._waiting = deque(live for live in self._waiting if live.row is not row)
        for slot, live in enumerate(self._live):
            if live.row is row:
                self._drop(slot)
                return

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit waiting rows, read prompts, and give each row whose prompt has been read one more token.

        If memory runs out, the newest row ends with an `error` and the others continue.
        """
        failed: list[Event] = []
        while True:
            self._admit()
            if not self._live:
                return failed
            try:
                return failed + self._advance()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            failed.append(self._give_up_newest())

    def stream(self, generations: Sequence[Generation]) -> Iterator[Event]:
        """Yield the events of these sequences as they happen; other live rows continue unseen."""
        mine = {self.add(generation) for generation in generations}
        try:
            while mine:
                for event in self.step():
                    if event.row in mine:
                        if event.finish_reason:
                            mine.remove(event.row)
                        yield event
        finally:
            for row in mine:
                self.remove(row)

    def complete(self, generations: Sequence[Generation]) -> list[Completion]:
        """Return the complete answers, in the order of the requests."""
        builders: dict[int, CompletionBuilder] = {}
        for event in self.stream(generations):
            builders.setdefault(event.row.id, CompletionBuilder()).events.append(event)
        return [builders[number].finished() for number in sorted(builders)]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        lambdas: Sequence[float | Schedule | None],
        **options: Any,
    ) -> list[Completion]:
        """Return the answers to `prompts` (text, or token ids), each at its own λ; `options` are Generation's."""
        if len(prompts) != len(lambdas):
            raise MisuseError(f"expected one λ per prompt, found {len(lambdas)} for {len(prompts)}")
        return self.complete(
            [
                Generation(self._tokens(prompt), lambda_, **options)
                for prompt, lambda_ in zip(prompts, lambdas, strict=True)
            ]
        )

    def _tokens(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.texts is None:
            raise MisuseError("this engine has no tokenizer; pass token ids")
        return self.texts.encode(prompt)

    def _admit(self) -> None:
        while self._waiting and len(self._live) < self.max_rows:
            if self._one_lambda and self._live and self._waiting[0].vector != self._live[0].vector:
                return
            self._live.append(self._waiting.popleft())

    def _advance(self) -> list[Event]:
        shares = self._shares()
        self._cache.reserve(len(self._live), max(share.end for share in shares))
        logits = self.model.forward(self._batch(shares))
        for share in shares:
            share.live.take_scores(share.past, _score_prompt(share, logits))
        ready = [share for share in shares if share.whole]
        picked = pick(logits([share.last for share in ready]), [share.live.sampler for share in ready]) if ready else []
        states = [_state(self.model, share) for share in ready]
        # No row has changed up to here, so a step that ran out of memory can be repeated without the newest row.
        for share in shares:
            share.live.length = share.end
        events = [
            share.live.write(choice, self._eos, state)
            for share, choice, state in zip(ready, picked, states, strict=True)
        ]
        for event in events:
            if event.finish_reason:
                self.remove(event.row)
        return events

    def _shares(self) -> list[Share]:
        shares, room, start = [], self._prefill, 0
        for slot, live in enumerate(self._live):
            count = 1 if live.read else min(len(live.tokens) - live.length, room)
            if count == 0:
                break
            shares.append(Share(live, slot, live.length, count, start))
            start += count
            room -= 0 if live.read else count
        return shares

    def _batch(self, shares: Sequence[Share]) -> Batch:
        # Prompts are read in the order of their slots, so generating rows always come first.
        writing = [share.past for share in shares if share.live.read]
        runs = [RowSpan(share.slot, share.past, share.count) for share in shares if not share.live.read]
        return Batch(
            ids=[token for share in shares for token in share.tokens],
            step=ForwardStep(writing, runs, self._cache),
            owners=tuple((share.live.vector, share.count) for share in shares),
            ahead=max(live.left for live in self._live),
        )

    @torch.inference_mode()
    def _drop(self, slot: int) -> None:
        self._cache.drop(slot, len(self._live))
        del self._live[slot]

    def _give_up_newest(self) -> Event:
        live = self._live[-1]
        longest = max(row.length for row in self._live)
        message = f"out of memory with {len(self._live)} rows of up to {longest} tokens; the newest row was dropped"
        self._drop(len(self._live) - 1)
        return Event(live.row, None, live.text.finish(), finish_reason="error", error=message)


def _state(model: LanguageModel, share: Share) -> tuple[float, ...] | None:
    """Return the hidden state of a prompt that has just been read whole, if it was requested."""
    if not share.live.row.generation.hidden_state or share.live.written:
        return None
    return tuple(model.hidden(share.last).float().tolist())


def _score_prompt(share: Share, logits: Logits) -> list[PromptToken]:
    """Return the scores of the prompt tokens that follow those of a share; a few at a time, since logits are wide."""
    live = share.live
    if live.scores is None or live.read:
        return []
    following = live.tokens[share.past + 1 : share.end + 1]
    top = live.row.generation.prompt_log_probs or 0
    found: list[PromptToken] = []
    for at in range(0, len(following), _SCORED_AT_ONCE):
        tokens = following[at : at + _SCORED_AT_ONCE]
        first = share.start + at
        picked = score(logits(range(first, first + len(tokens))), tokens, top)
        found += [PromptToken(p.token, p.log_prob, p.top) for p in picked]
    return found
