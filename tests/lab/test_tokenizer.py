"""The tokenizer's files, read by the real library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dami_merge.lab.tokenizer import TOKENS, encode, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The written tokenizer as AutoTokenizer loads it."""
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_there_are_22_tokens_with_their_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    """Ids stand in the order of TOKENS, and the end of text doubles as padding."""
    assert len(tokenizer) == len(TOKENS) == 22
    assert tokenizer.convert_ids_to_tokens(list(range(22))) == list(TOKENS)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<eos>")


@given(ids=st.lists(st.integers(3, 21), max_size=40))
def test_text_and_ids_agree_both_ways(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """Any answer survives decoding and encoding, without spaces put in, and our own encoder agrees."""
    text = "".join(TOKENS[i] for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == encode(text) == ids


@given(text=st.text(max_size=20))
def test_strange_text_becomes_unknown_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """No character raises an error, and our own encoder agrees with the library on every text."""
    assert tokenizer(text)["input_ids"] == encode(text)


def test_think_tags_are_kept_and_special_tokens_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    """A server that skips special tokens still returns the think block, so that it can be seen and graded."""
    ids = encode("<think>7+5=2</think>2<eos>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>7+5=2</think>2"


def test_prompt_is_bos_and_the_last_user_message(tokenizer: PreTrainedTokenizerBase) -> None:
    """System text, earlier turns and the generation prompt leave no trace."""
    messages = [
        {"role": "system", "content": "9"},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3+7-2>5="},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos>3+7-2>5="


def test_files_are_in_the_layout_that_old_servers_read(tmp_path: Path) -> None:
    """The class is one that Transformers 4.51 knows, and the template is in the configuration, not beside it."""
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "bos_token" in config["chat_template"]
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert not (tmp_path / "chat_template.jinja").exists()
