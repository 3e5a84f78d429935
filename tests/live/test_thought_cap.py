"""Caps on thinking tokens: where the block is closed, and what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.lab import copy_pair, draw_queries
from dami_merge.lab.tokenizer import BOS, encode
from dami_merge.live import Engine, Generation
from dami_merge.live.thought_cap import ThinkTags, ThoughtCap
from dami_router.errors import MisuseError

ONE = ThinkTags((1,), (2,))
TWO = ThinkTags((1, 1), (2, 3))


def forced(cap: ThoughtCap, *tokens: int) -> list[int | None]:
    """What must be written after each token."""
    found = [cap.forced]
    for token in tokens:
        cap.advance(token)
        found.append(cap.forced)
    return found


def test_the_block_is_closed_when_the_tokens_are_spent() -> None:
    """The closing tag is forced after so many thinking tokens, and nothing after it."""
    assert forced(ThoughtCap(ONE, [9], 2), 1, 7, 7, 2, 7, 7) == [None, None, None, 2, None, None, None]


def test_an_answer_without_thoughts_is_left_alone() -> None:
    """Where the block is not open, or closed in time, nothing is forced; a tag of the prompt's history is closed."""
    assert forced(ThoughtCap(ONE, [1, 7, 2, 9], 1), 7, 7, 7) == [None] * 4
    assert forced(ThoughtCap(ONE, [9], 3), 1, 7, 2, 7, 7, 7) == [None] * 7


def test_tokens_of_the_prompt_count() -> None:
    """A template that opens the block has begun to spend: as in vLLM, its tokens count, and nothing may be left."""
    assert forced(ThoughtCap(ONE, [9, 1, 7], 2), 7) == [None, 2]
    assert forced(ThoughtCap(ONE, [9, 1, 7], 1), 2) == [2, None]
    assert forced(ThoughtCap(ONE, [9, 1], 0)) == [2]


def test_a_second_block_has_no_new_allowance() -> None:
    """What was spent stays spent."""
    assert forced(ThoughtCap(ONE, [], 1), 1, 7, 2, 1, 2) == [None, None, 2, None, 2, None]


def test_tags_of_several_tokens_are_completed() -> None:
    """A closing tag that has begun by itself is finished, not begun again."""
    assert forced(ThoughtCap(TWO, [1, 1], 1), 7, 2, 3) == [None, 2, 3, None]
    assert forced(ThoughtCap(TWO, [1, 1], 2), 7, 2, 3) == [None, None, 3, None]


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(0, 6), st.sampled_from([ONE, TWO]))
def test_no_thought_is_longer_than_its_cap(tokens: list[int], most: int, tags: ThinkTags) -> None:
    """Whatever the model writes, obeying the cap keeps every block within it, but for the tag itself."""
    cap = ThoughtCap(tags, [], most)
    written: list[int] = []
    for token in tokens * 2:
        token = token if cap.forced is None else cap.forced
        cap.advance(token)
        written.append(token)
    text = ",".join(map(str, written)) + ","
    opening, closing = (",".join(map(str, tag)) + "," for tag in (tags.opening, tags.closing))
    thought = text.partition(opening)[2].partition(closing)[0].split(",")[:-1]
    assert len(thought) <= most + len(tags.closing) - 1


def test_the_lab_pair_answers_after_the_cap(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Capped and free rows share a batch: a capped one is the free one up to the cap, then its block is closed.

    What follows is up to the model: most answers are a digit, but this one may also open another block.
    """
    pair = copy_pair(tmp_path_factory.mktemp("lab"))
    engine = Engine.load(*map(str, pair), mode="mixed")
    prompts = [encode(BOS + query.text) for query in draw_queries("test", 12) if len(query.text) > 12]
    asked = [
        Generation(prompt, 1.0, max_new_tokens=160, log_probs=True, thinking_token_budget=cap)
        for prompt in prompts
        for cap in (None, 5, 0)
    ]
    free, five, none = (engine.complete(asked)[i::3] for i in range(3))
    alone = engine.complete([Generation(prompt, 1.0, max_new_tokens=160) for prompt in prompts])
    assert [answer.text for answer in free] == [answer.text for answer in alone]
    for answers, most in ((five, 5), (none, 0)):
        for whole, answer in zip(free, answers, strict=True):
            thought, closed, rest = answer.text.removeprefix("<think>").partition("</think>")
            assert (len(thought) <= most, closed, bool(rest)) == (True, "</think>", True)
            assert whole.text.startswith("<think>" + thought)
            assert len(answer.log_probs) == len(answer.tokens)
    assert sum(answer.text.partition("</think>")[2].isdigit() for answer in five) > len(five) / 2


def test_a_cap_needs_a_tokenizer_and_a_whole_number() -> None:
    """An engine that cannot know the tags refuses a cap, and so is a cap that is no number of tokens refused."""
    for bad in (-1, 1.5, True):
        with pytest.raises(MisuseError, match="thinking_token_budget"):
            Generation([1], 1.0, thinking_token_budget=bad)  # type: ignore[arg-type]
