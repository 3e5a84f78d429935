"""Compute the table of docs/deploy.md from the pairs' configs and write it; --check says whether it is up to date.

    python docs/deploy_table.py [--check]

The sums are those of `dami deploy` (dami_router.deploying.sizing); nothing is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dami_router.deploying.model_shape import ModelShape, cached_numbers
from dami_router.deploying.sizing import GIB, USABLE, Fit, fit

TARGET = Path(__file__).parent / "deploy.md"
START, END = "<!-- table:", "<!-- end -->"
CONTEXT = 32768
FAMILIES = (3, 6)


@dataclass(frozen=True)
class PublicPair:
    """A pair's config.json, as far as its sizes go, and the GPUs that the table has rows for, in GiB."""

    name: str
    config: dict[str, Any]
    gpus: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Parameters of a Qwen3 or Qwen3-MoE model: embeddings, attention, MLP or experts, norms."""
        c = self.config
        hidden, heads, width = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
        experts = c.get("num_experts", 1)
        inner = c["moe_intermediate_size"] if experts > 1 else c["intermediate_size"]
        attention = 2 * hidden * heads * width + 2 * hidden * c["num_key_value_heads"] * width + 2 * width
        mlp = experts * 3 * hidden * inner + (hidden * experts if experts > 1 else 0)
        embeddings = c["vocab_size"] * hidden * (1 if c["tie_word_embeddings"] else 2)
        return c["num_hidden_layers"] * (attention + mlp + 2 * hidden) + embeddings + hidden

    @property
    def shape(self) -> ModelShape:
        """One variant in bf16."""
        c = self.config
        kv_heads, heads = c["num_key_value_heads"], c["num_attention_heads"]
        return ModelShape(2 * self.parameters, 2 * cached_numbers(c), 262144, heads, kv_heads)


def _qwen3(layers: int, hidden: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False, **more,
    }  # fmt: skip


# From config.json of the Instruct-2507 checkpoints; the Thinking ones have the same sizes.
PAIRS = (
    PublicPair("Qwen3-4B-2507", _qwen3(36, 2560, 32, 8, intermediate_size=9728, tie_word_embeddings=True), (24, 80)),
    PublicPair("Qwen3-30B-A3B-2507", _qwen3(48, 2048, 32, 4, num_experts=128, moe_intermediate_size=768), (80, 140)),
    PublicPair("Qwen3-235B-A22B-2507", _qwen3(94, 4096, 64, 4, num_experts=128, moe_intermediate_size=1536), (80, 140)),
)


def table() -> str:
    """Return the table as Markdown."""
    head = ("pair, GPU", "set-up", "λ values", "GPUs", "cost", "weights", "room for", "weights read for a token")
    rows = [row for pair in PAIRS for gpu in pair.gpus for row in _rows(pair, gpu)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _rows(pair: PublicPair, gpu: int) -> Iterator[list[str]]:
    where = f"{pair.name}, {gpu} GiB"
    one = _need(pair.shape, gpu)
    both = _need(replace(pair.shape, weights=2 * pair.shape.weights), gpu)
    set_ups = [("one Thinking server", "1", one, 1, 1), *((f"{n} variants", str(n), one, n, 1) for n in FAMILIES)]
    for name, values, need, servers, models in [*set_ups, ("`dami live --engine vllm`", "all", both, 1, 2)]:
        sizes = ["more than 8", "-"]
        room = "-"
        if need is not None and one is not None:
            fewest = -(-servers // _on_one(need, gpu)) * need.gpus
            gpus = servers * need.gpus
            sizes = [str(gpus), f"{gpus / one.gpus:g} ×"]
            if fewest < gpus:
                sizes = [f"{gpus}, or {fewest} shared", f"{gpus / one.gpus:g} ×, or {fewest / one.gpus:g} ×"]
            room = f"{servers * need.cache_tokens // CONTEXT} × 32k tokens"
        weights = f"{servers * models * pair.shape.weights / GIB:.0f} GiB"
        read = "once" if models == 1 else "twice; once while all requests have one λ"
        yield [where, name, values, *sizes, weights, room, read]


def _need(shape: ModelShape, gpu: int) -> Fit | None:
    return fit(shape, CONTEXT, gpu * GIB)


def _on_one(need: Fit, gpu: int) -> int:
    """Return how many servers fit on one GPU; a server that is split has its GPUs to itself."""
    return int(gpu * GIB * USABLE // need.needed) if need.gpus == 1 else 1


def main() -> int:
    """Write the table, or compare it with --check."""
    old = TARGET.read_text(encoding="utf-8")
    start = old.index("\n", old.index(START)) + 1
    new = f"{old[:start]}\n{table()}\n\n{old[old.index(END) :]}"
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.stderr.write("docs/deploy.md is out of date; run `make docs` and commit it\n")
        return int(new != old)
    TARGET.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
