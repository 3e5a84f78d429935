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

    Engine.load(instruct, thinking, *, path="uniform", dtype=None, device="cpu", chat_template="instruct",
                mode="auto", max_length=None, max_rows=32, name=None) -> Engine
    Engine.from_recipe(recipe, *, device, mode, max_length, max_rows) -> Engine
    name, tokenizer, max_length (prompt and answer together, in tokens), max_rows (live at once), mode
    rows, waiting (how many), free (rows that could be taken in at once), busy (anything left to do)
    sampling(lambda_) -> the generation_config.json of the side that λ belongs to
    encode(text) -> ids · encode_chat(messages, lambda_, **template arguments) -> ids · opens_think(lambda_)

An engine belongs to one thread; nothing in it is thread safe. Importing this package imports torch.
"""

from dami_merge.live.generation import Choice, Completion, Event, Generation, Row

__all__ = ["Choice", "Completion", "Event", "Generation", "Row"]
