"""Any λ, per sequence, from two checkpoints in memory.

    engine = Engine.load("Qwen3-4B-Instruct", "Qwen3-4B-Thinking", device="cuda")
    row = engine.add(Generation(prompt=ids, lambda_=0.37, max_new_tokens=200))
    while engine.busy:
        for event in engine.step():          # every live row: one token on
            print(event.row.id, event.text, event.finish_reason)

- `Generation` is what is asked for one sequence; `Row` is that sequence while it is worked on.
- `Engine.add` checks a request and queues it: MisuseError in one sentence where it makes no sense.
- `Engine.step` takes waiting rows in, reads their prompts (a long one over several steps) and gives each
  row whose prompt is read one more token: continuous batching. A row that ends, or that there was
  no memory for (`finish_reason == "error"`, `error` says what happened), is gone after its last event.
- `Engine.remove` forgets a row whose client has gone.
- `Engine.generate` and `Engine.stream` do all that for a list of prompts.

What an engine is made of:

    Engine.load(instruct, thinking, *, path="uniform", dtype=None, chat_template="instruct", name=None,
                device="cpu", mode="auto", max_length=None, max_rows=32, prefill=512) -> Engine
    Engine.from_recipe(recipe, *, device, mode, max_length, max_rows, prefill) -> Engine
    name, max_length (prompt and answer together, in tokens), max_rows (live at once), warnings
    rows, waiting (how many), free (rows that could be taken in at once), busy (anything left to do)
    texts: tokenizer, eos, encode(text), encode_chat(messages, lambda_, **template arguments),
           template(lambda_), opens_think(lambda_), sampling(lambda_)

An engine belongs to one thread; nothing in it is thread safe. Importing this package imports torch.
"""

from dami_merge.live.engine import Engine
from dami_merge.live.generation import Choice, Completion, Event, Generation, PromptToken, Row

__all__ = ["Choice", "Completion", "Engine", "Event", "Generation", "PromptToken", "Row"]
