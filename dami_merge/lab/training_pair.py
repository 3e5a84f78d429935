"""Training of a lab pair from scratch: one base, then two short fine-tunes of it, Instruct and Thinking.

Both endpoints descend from one base that has seen both ways of answering; this common ancestor makes the weights
between them useful. On one machine and one version of torch, a seed always gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from dami_merge.lab.splits import TRAINED_LENGTHS, draw_training_chain
from dami_merge.lab.task import AnswerFormat, format_answer, length
from dami_merge.lab.tiny_model import new_model, one_thread, save_endpoint
from dami_merge.lab.tokenizer import BOS, EOS, encode
from dami_router.errors import FailureError

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

__all__ = [
    "ALWAYS_DIRECT",
    "MOSTLY_CHECKS",
    "THINKS_BY_LENGTH",
    "THINKS_HALF_THE_TIME",
    "Progress",
    "Stage",
    "ThinkingPolicy",
    "train_pair",
]

Progress = Callable[[str, int, int, float], None]
"""Called after each step with the stage's name, steps done, total steps, and the loss in nats per token."""

_WAY_OUT = "choose another directory, or remove this one"
_IGNORE = -100  # torch's label for "no loss here"


@dataclass(frozen=True, slots=True)
class ThinkingPolicy:
    """The formats of a stage's training answers: P(think) from the shortest chain to the longest, linear in n,
    and the fraction of those that work the chain twice."""

    shortest: float
    longest: float
    check_share: float

    def draw(self, rng: Random, operations: int) -> AnswerFormat:
        """Draw the format of one training answer to a chain of n operations."""
        first, last = TRAINED_LENGTHS[0], TRAINED_LENGTHS[-1]
        probability = self.shortest + (self.longest - self.shortest) * (operations - first) / (last - first)
        if rng.random() >= probability:
            return "direct"
        return "check" if rng.random() < self.check_share else "think"


THINKS_BY_LENGTH = ThinkingPolicy(0.2, 0.9, check_share=0.2)
THINKS_HALF_THE_TIME = ThinkingPolicy(0.5, 0.5, check_share=0.2)
ALWAYS_DIRECT = ThinkingPolicy(0.0, 0.0, check_share=0.0)
# With a quarter of single working, double checking appears near λ = 1; with none, already at λ = 0.6.
MOSTLY_CHECKS = ThinkingPolicy(1.0, 1.0, check_share=0.75)


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the optimiser: answer formats, steps, peak learning rate, and final learning rate."""

    name: str
    policy: ThinkingPolicy
    steps: int
    peak: float
    warm_up: int
    cosine: bool = False

    def rate(self, step: int) -> float:
        """Return the rate at a step counted from 0: linear warm-up, then linear to 0 or cosine to 5 % of the peak."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.peak * ((0.525 + 0.475 * math.cos(math.pi * done)) if self.cosine else 1 - done)


def train_pair(
    seed: int,
    directory: Path,
    *,
    progress: Progress | None = None,
    base_policy: ThinkingPolicy = THINKS_BY_LENGTH,
    base_steps: int = 3200,
    tune_steps: int = 200,
) -> None:
    """Train a pair and write it as ``directory/instruct`` and ``directory/thinking``, bf16, one file of weights each.

    ``base_policy`` sets the answers of the common base; ``THINKS_HALF_THE_TIME`` gives the control pair, whose merged
    models route themselves. Takes about 5 minutes on one core. Uses one thread, for a fixed order of summation.
    Raises FailureError before any training if either endpoint exists.
    """
    for name in ("instruct", "thinking"):
        if (directory / name).exists():
            raise FailureError(f"{directory / name} already exists", hint=_WAY_OUT)
    with one_thread():
        model = new_model(seed)
        _run(model, Stage("base", base_policy, base_steps, 3e-3, 100, cosine=True), seed, progress)
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for stage in (
            Stage("instruct", ALWAYS_DIRECT, tune_steps, 1.2e-4, 10),
            Stage("thinking", MOSTLY_CHECKS, tune_steps, 1.4e-4, 10),
        ):
            model.load_state_dict(base)
            _run(model, stage, seed, progress)
            save_endpoint(model.state_dict(), directory / stage.name)


def _run(model: Qwen3ForCausalLM, stage: Stage, seed: int, progress: Progress | None) -> None:
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.peak, betas=(0.9, 0.98), weight_decay=0.01)
    batches = _batches(Random(f"{stage.name}-{seed}"), stage.policy)  # noqa: S311  (no secret)
    model.train()
    for step in range(stage.steps):
        for group in optimiser.param_groups:
            group["lr"] = stage.rate(step)
        inputs, labels = next(batches)
        logits = model(input_ids=inputs, use_cache=False).logits  # (rows, columns, 22)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORE
        )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if progress is not None:
            progress(stage.name, step + 1, stage.steps, loss.item())


def _batches(
    rng: Random, policy: ThinkingPolicy, tokens: int = 1024, pool: int = 1024
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless batches of about `tokens` tokens: (inputs, labels), (rows, columns) int64; no loss on prompts."""
    while True:
        examples = sorted((_example(rng, policy) for _ in range(pool)), key=lambda e: len(e[0]) + len(e[1]))
        batches, rows = list[list[tuple[list[int], list[int]]]](), list[tuple[list[int], list[int]]]()
        for example in examples:
            if (len(rows) + 1) * (len(example[0]) + len(example[1])) > tokens:
                batches.append(rows)
                rows = []
            rows.append(example)
        batches.append(rows)
        rng.shuffle(batches)
        yield from (_padded(rows) for rows in batches if rows)


def _example(rng: Random, policy: ThinkingPolicy) -> tuple[list[int], list[int]]:
    chain = draw_training_chain(rng)
    answer = format_answer(chain, policy.draw(rng, length(chain)))
    return encode(BOS + chain), encode(answer + EOS)


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    # Padding is on the right, where causal attention does not see it: no mask is needed.
    columns = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), columns), encode(EOS)[0])
    labels = torch.full((len(rows), columns), _IGNORE)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return inputs, labels
