"""The lab's model: Qwen3 with 215,000 parameters, and its files in a layout that both Transformers 4.51 and 5 read.

Transformers 5 writes ``rope_theta`` inside ``rope_parameters`` and ``dtype`` for ``torch_dtype``; 4.51 (which TGI
pins) ignores both silently. The files are therefore written here, in the old layout.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dami_merge.lab.tokenizer import BOS, EOS, TOKENS, write_tokenizer
from dami_router.errors import FailureError

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

__all__ = ["MODEL_CONFIG", "load_endpoint", "new_model", "one_thread", "save_endpoint"]

MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": TOKENS.index(BOS),
    "eos_token_id": TOKENS.index(EOS),
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.04,
    "intermediate_size": 192,
    "max_position_embeddings": 256,
    "max_window_layers": 4,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": TOKENS.index(EOS),
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": len(TOKENS),
}

_GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": MODEL_CONFIG["bos_token_id"],
    "do_sample": False,
    "eos_token_id": MODEL_CONFIG["eos_token_id"],
    "max_new_tokens": 160,
    "pad_token_id": MODEL_CONFIG["pad_token_id"],
    "transformers_version": "4.51.0",
}


def new_model(seed: int) -> Qwen3ForCausalLM:
    """Return a model with random fp32 weights, determined by the seed; the global random state is unchanged."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {k: v for k, v in MODEL_CONFIG.items() if k not in ("torch_dtype", "transformers_version")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(Qwen3Config.from_dict(settings)).float()


def load_endpoint(directory: Path) -> Qwen3ForCausalLM:
    """Load a checkpoint of the lab in evaluation mode, its weights widened to fp32.

    With fp32 arithmetic, an answer does not depend on the other queries in its batch.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    with _no_progress_bar():
        return Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def save_endpoint(weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a complete checkpoint: weights rounded once to bf16, config, generation config and tokenizer.

    Everything appears at once under ``directory``; raises FailureError if that exists.
    """
    import torch
    from safetensors.torch import save_file

    tied = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in weights.items() if k != "lm_head.weight"}
    with _appearing_at_once(directory) as partial:
        save_file(tied, partial / "model.safetensors", metadata={"format": "pt"})
        for name, content in (("config.json", MODEL_CONFIG), ("generation_config.json", _GENERATION_CONFIG)):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(partial)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: as fast as several at this size, and with a fixed order of summation."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _appearing_at_once(directory: Path) -> Iterator[Path]:
    if directory.exists():
        raise FailureError(f"{directory} already exists", hint="choose another directory, or remove this one")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        partial.chmod(0o755)
        yield partial
        for file in partial.iterdir():
            file.chmod(0o644)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
