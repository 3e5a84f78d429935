"""Text that can be shown at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.lab import SHIPPED_PAIR
from dami_merge.live import Engine, Generation
from dami_merge.live.text_stream import VisibleText
from dami_router.errors import MisuseError

texts = st.text(st.sampled_from("aab <>STOP/é漢🙂"), max_size=30)


def decode_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes, as those of byte-level BPE may be."""
    return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What is shown after each byte of a text, until a stop text is found."""
    stream = VisibleText(decode_bytes, stop)
    shown = []
    for byte in text.encode():
        shown.append(stream.push(byte))
        if stream.stopped:
            break
    shown.append(stream.finish())
    return shown, stream.stopped


@given(texts)
def test_characters_come_whole(text: str) -> None:
    """Byte by byte, nothing half is ever shown, and all of it is in the end."""
    shown, _ = streamed(text)
    assert "".join(shown) == text
    assert not any("\ufffd" in part for part in shown)


@given(texts, st.lists(st.text(st.sampled_from("aab<>STOP漢"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_text_is_shown(text: str, stops: list[str]) -> None:
    """The text ends where the first stop text to be complete begins, and never shows a part of it before."""
    shown, stopped = streamed(text, tuple(stops))
    grown = [text[:i] for i in range(len(text) + 1)]
    first = next((part for part in grown if any(stop in part for stop in stops)), None)
    expected = text if first is None else first[: min(first.find(s) for s in stops if s in first)]
    assert stopped == (first is not None)
    assert "".join(shown) == expected
    for i in range(len(shown)):
        assert expected.startswith("".join(shown[:i]))


def test_broken_bytes_are_shown_in_the_end() -> None:
    """Bytes that never become a character do not hold back the rest for ever."""
    stream = VisibleText(decode_bytes)
    parts = [stream.push(0xC3) for _ in range(12)]
    assert any(parts)
    stream = VisibleText(decode_bytes)
    assert stream.push(0xE6) == ""
    assert stream.finish() == "\ufffd"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped pair."""
    return Engine.load(str(SHIPPED_PAIR / "instruct"), str(SHIPPED_PAIR / "thinking"), dtype="float32")


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(engine: Engine) -> None:
    """The row ends with `stop` as soon as the text is there, and the text before it is whole."""
    prompt = "<bos>1+2+3="
    (whole, cut) = engine.complete(
        [Generation(engine._tokens(prompt), 1.0, stop=stop) for stop in ((), ("|1", "nowhere"))]
    )
    assert whole.text == "<think>1+2=3;3+3=6|1+2=3;3+3=6</think>6"
    assert cut.text == "<think>1+2=3;3+3=6"
    assert (cut.finish_reason, len(cut.tokens)) == ("stop", 14)


def test_special_tokens_are_shown_only_on_request(engine: Engine) -> None:
    """The end-of-text token is never text; written on after, it is shown only where special tokens are."""
    ids = engine._tokens("<bos>8-1=")
    asked = [
        Generation(ids, 0.0, max_new_tokens=3, ignore_eos=ignore, skip_special_tokens=skip)
        for ignore, skip in ((False, False), (True, True), (True, False))
    ]
    plain, skipped, shown = engine.complete(asked)
    assert (plain.text, plain.finish_reason, len(plain.tokens)) == ("7", "stop", 2)
    assert skipped.tokens == shown.tokens
    assert shown.text.startswith("7<eos>")
    assert "<eos>" not in skipped.text


def test_conversations_become_prompts(engine: Engine) -> None:
    """encode_chat renders the template that the variants would carry; a refusal is one clear sentence."""
    assert engine.texts is not None
    ids = engine.texts.encode_chat([{"role": "user", "content": "8-1="}], 0.0)
    assert ids == engine._tokens("<bos>8-1=")
    assert engine.generate([ids], [0.0])[0].text == "7"
    assert engine.texts.opens_think(1.0) is False
    assert engine.texts.sampling(1.0)["temperature"] == 0.0


def test_each_lambda_has_its_sides_template_and_sampling(tmp_path: Path) -> None:
    """The template changes where it is told to, sampling above 0; what a template refuses is a clear sentence."""
    from dami_merge.lab import copy_pair

    copy_pair(tmp_path)
    thinking = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}<bos>9<think>"
    (tmp_path / "thinking/chat_template.jinja").write_text(thinking)
    (tmp_path / "thinking/generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "eos_token_id": [2, 5]}'
    )
    engine = Engine.load(str(tmp_path / "instruct"), str(tmp_path / "thinking"), chat_template="from(0.5)")
    assert engine.texts is not None
    asked = [{"role": "user", "content": "8-1="}]
    assert engine.texts.encode_chat(asked, 0.49) == engine._tokens("<bos>8-1=")
    assert engine.texts.encode_chat(asked, 0.5) == engine._tokens("<bos>9<think>")
    assert engine.texts.sampling(0.0)["temperature"] == 0.0
    assert engine.texts.sampling(0.01) == {"temperature": 0.6}
    assert engine.texts.eos == {2, 5}
    with pytest.raises(MisuseError, match="the chat template refuses this conversation: user first"):
        engine.texts.encode_chat([{"role": "system", "content": "no"}], 1.0)
