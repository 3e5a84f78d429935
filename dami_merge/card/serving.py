"""How to use a variant: commands for vLLM, TGI and Transformers, and how to read its thinking."""

from __future__ import annotations

import json
from pathlib import Path

from dami_router.manifest.family import Variant

__all__ = ["longest_prompt", "serving"]

_TGI = "ghcr.io/huggingface/text-generation-inference:3.3.7"
_MODEST = 32768  # tokens; the key/value cache of a full context often does not fit beside the weights


def longest_prompt(folder: Path) -> int | None:
    """Return the context length in tokens that a checkpoint's config names; None where it names none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    length = inner.get("max_position_embeddings")
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None


def serving(variant: Variant, repo: str, branch: str | None, longest: int | None) -> str:
    """Return the card's part on using the variant.

    `branch` is the variant's where a repository holds several; `longest` the context length in
    tokens, None where it is unknown.
    """
    revision = f" --revision {branch}" if branch else ""
    python = f', revision="{branch}"' if branch else ""
    opens = variant.chat_template.opens_think
    parser = " --reasoning-parser deepseek_r1" if opens else ""
    length = min(longest or _MODEST, _MODEST)
    return f"""\
With Transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}"{python}, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("{repo}"{python})

messages = [{{"role": "user", "content": "How many primes are there below 30?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
output = model.generate(**inputs, max_new_tokens={max(1, min(4096, length // 2))})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

With [vLLM](https://docs.vllm.ai):

```
vllm serve {repo}{revision}{parser} --max-model-len {length}
```

With [TGI](https://github.com/huggingface/text-generation-inference) (archived, but it still serves this model):

```
docker run --gpus all --shm-size 1g -p 8080:80 -v "$PWD/hf-cache:/data" -e HF_TOKEN \\
  {_TGI} \\
  --model-id {repo}{revision} --max-total-tokens {length}
```

{_length_note(longest, length)}While the repository is private, set `HF_TOKEN` to a token that may read it; all three \
take it from the environment.

{_OPENS if opens else _PLAIN}{_sampling(variant)}"""


def _length_note(longest: int | None, length: int) -> str:
    if longest is None or longest <= length:
        return ""
    return (
        f"The model's context is {longest:,} tokens; {length:,} keep the key/value cache small. Raise it as far as "
        "memory allows. "
    )


_OPENS = """\
**Thinking.** The chat template puts `<think>` into the prompt, so an answer holds only the closing `</think>`. vLLM's
parser `deepseek_r1` takes everything before it as the reasoning, with or without an opening tag. An answer that is
cut before `</think>` counts as reasoning alone: allow enough new tokens. TGI separates nothing; split at the last
`</think>`.
"""
_PLAIN = """\
**Thinking.** The chat template opens no `<think>` block; whether an answer has one depends on λ and on the question.
No reasoning parser is set on purpose: vLLM's `deepseek_r1` takes an answer *without* `</think>` for reasoning alone,
and its content would be empty. Expect all shapes: `<think>…</think>` and an answer, only a closing `</think>`, or none.
If every answer of this variant thinks on your questions, add `--reasoning-parser deepseek_r1`.
"""


def _sampling(variant: Variant) -> str:
    if variant.sampling.source is None or not variant.sampling.values:
        return ""
    values = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in variant.sampling.values.items())
    return f"\n**Sampling defaults**, from the {variant.sampling.source.capitalize()} endpoint: {values}.\n"
