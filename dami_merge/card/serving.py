"""How to serve a variant: exact commands for TGI and vLLM, and what to do about its thinking."""

from __future__ import annotations

from dami_router.manifest.family import Variant

__all__ = ["serving"]

_TGI = "ghcr.io/huggingface/text-generation-inference:3.3.7"


def serving(variant: Variant, repo: str, branch: str | None) -> str:
    """Return the card's part on serving; `branch` is the variant's where a repository holds several."""
    revision = f" --revision {branch}" if branch else ""
    opens = variant.chat_template.opens_think
    parser = " --reasoning-parser deepseek_r1" if opens else ""
    name = repo.split("/")[1]
    python = f', revision="{branch}"' if branch else ""
    return f"""\
With [vLLM](https://docs.vllm.ai):

```
vllm serve {repo}{revision}{parser}
```

With [TGI](https://github.com/huggingface/text-generation-inference) (archived, but its files are readable for it):

```
docker run --gpus all --shm-size 1g -p 8080:80 -v "$PWD/{name}:/data" \\
  {_TGI} --model-id {repo}{revision}
```

With Transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}"{python}, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("{repo}"{python})
```

{_OPENS if opens else _PLAIN}{_sampling(variant)}"""


_OPENS = """\
**Thinking.** The chat template puts `<think>` into the prompt, so an answer holds only the closing `</think>`. vLLM's
parser `deepseek_r1` takes everything before it as the reasoning, with or without an opening tag. An answer that was
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
    values = ", ".join(f"`{name}` {value}" for name, value in variant.sampling.values.items())
    return f"\n**Sampling defaults**, from the {variant.sampling.source.capitalize()} endpoint: {values}.\n"
