"""Any λ, per sequence, from two checkpoints in memory.

    engine = Engine.load("Qwen3-4B-Instruct", "Qwen3-4B-Thinking", device="cuda")
    row = engine.add(Generation(prompt=ids, lambda_=0.37, max_new_tokens=200))
    while engine.busy:
        for event in engine.step():          # every live row: one token on
            print(event.row.id, event.text, event.finish_reason)

- `Generation` is the request for one sequence; `Row` is that sequence while the engine works on it.
- `Engine.add` checks a request and queues it; it raises MisuseError for an invalid one.
- `Engine.step` admits waiting rows, reads their prompts (a long one over several steps) and gives each row
  whose prompt has been read one more token: continuous batching. A row is removed after its last event, when
  it ends or when memory runs out (`finish_reason == "error"`; `error` says what happened).
- `Engine.remove` drops a row whose client has disconnected.
- `Engine.generate` and `Engine.stream` do all of this for a list of prompts.

Overview of an engine:

    Engine.load(instruct, thinking, *, path="uniform", dtype=None, chat_template="instruct", name=None,
                device="cpu", mode="auto", max_length=None, max_rows=32, prefill=512) -> Engine
    Engine.from_recipe(recipe, *, device, mode, max_length, max_rows, prefill) -> Engine
    name, max_length (tokens of prompt and answer together), max_rows (live at the same time), warnings
    rows, waiting (how many), free (rows that could be admitted now), busy (whether any work is left)
    texts: tokenizer, eos, encode(text), encode_chat(messages, lambda_, **template arguments),
           template(lambda_), opens_think(lambda_), sampling(lambda_)

An engine is not thread-safe: use it from one thread. Importing this package imports torch.
"""

from dami_merge.live.engine import Engine
from dami_merge.live.generation import Choice, Completion, Event, Generation, PromptToken, Row

__all__ = ["Choice", "Completion", "Engine", "Event", "Generation", "PromptToken", "Row"]
