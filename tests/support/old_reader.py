"""Run by the Transformers 4.51 of an environment of its own: say what it makes of a checkpoint, as JSON."""

from __future__ import annotations

import json
import sys

import torch
import transformers

folder = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype="auto")
stored = str(model.dtype)
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "t5 t6 <think> t7"}], tokenize=False)
ids = tokenizer(prompt)["input_ids"]
with torch.no_grad():
    logits = model.float()(torch.tensor([ids])).logits[0]
sys.stdout.write(
    json.dumps(
        {
            "version": transformers.__version__,
            "rope_theta": model.config.rope_theta,
            "dtype": stored,
            "tokenizer": type(tokenizer).__name__,
            "special": sorted(tokenizer.all_special_tokens),
            "prompt": prompt,
            "ids": ids,
            "logits": logits.tolist(),
            "problems": [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]],
        }
    )
)
