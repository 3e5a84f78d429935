"""Questions from files: every kind, every usual column, and what is said to files that cannot be used."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.datasets import load_dataset, tables
from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.grading.answers import boxed, final_answer

ROWS: list[dict[str, Any]] = [
    {"question": "2+2?", "answer": "two and two\n#### 4"},
    {"question": "20·50,\nsay", "answer": 1000},
    {"question": "½ of \"1\"?", "answer": "so $\\boxed{\\frac{1}{2}}$."},
]  # fmt: skip
EXPECTED = ["4", "1000", "\\frac{1}{2}"]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(path: Path) -> None:
    """Write ROWS in the kind that the name asks for."""
    rows = [{**row, "answer": str(row["answer"])} for row in ROWS]
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
        pyarrow = pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, ["question", "answer"], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        jsonl(path, ROWS)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_every_kind_of_file_gives_the_same_questions(suffix: str, tmp_path: Path) -> None:
    """Texts, expected answers and ids do not depend on the kind of file; messages name the row's place."""
    write(tmp_path / f"q{suffix}")
    found = load_dataset(str(tmp_path / f"q{suffix}"))
    assert (found.query_column, found.answer_column) == ("question", "answer")
    assert [q.text for q in found.questions] == [row["question"] for row in ROWS]
    assert [q.expected for q in found.questions] == EXPECTED
    jsonl(tmp_path / "same.jsonl", ROWS)
    assert [q.id for q in found.questions] == [q.id for q in load_dataset(str(tmp_path / "same.jsonl")).questions]
    assert all(q.where.startswith(str(tmp_path)) for q in found.questions)


@pytest.mark.parametrize(
    ("row", "query", "answer"),
    [
        ({"problem": "p", "solution": "\\boxed{3}", "answer": "3", "level": 5}, "problem", "answer"),
        ({"problem": "p", "solution": "so \\boxed{3}"}, "problem", "solution"),
        ({"Question": "p", "Answer": "3"}, "Question", "Answer"),
        ({"query": "p", "expected": "3", "answer": "model's own"}, "query", "expected"),
        ({"prompt": "p", "target": 3}, "prompt", "target"),
        ({"text": "p"}, "text", None),
    ],
)
def test_usual_columns_are_found(row: dict[str, Any], query: str, answer: str | None, tmp_path: Path) -> None:
    """The columns of public question sets are found whatever their case, the final answer before the solution."""
    found = load_dataset(str(jsonl(tmp_path / "q.jsonl", [row])))
    assert (found.query_column, found.answer_column) == (query, answer)
    assert found.questions[0].expected == (None if answer is None else "3")


def test_columns_can_be_given_and_rows_limited(tmp_path: Path) -> None:
    """Given columns are taken; a name that is not there gets the nearest one as advice."""
    file = str(jsonl(tmp_path / "q.jsonl", [{"frage": f"{i}?", "antwort": i} for i in range(9)]))
    found = load_dataset(file, query_column="frage", answer_column="antwort", limit=2)
    assert [(q.text, q.expected) for q in found.questions] == [("0?", "0"), ("1?", "1")]
    with pytest.raises(MisuseError, match="no column of queries in `frage` or `antwort`"):
        load_dataset(file)
    with pytest.raises(MisuseError, match="did you mean `frage`"):
        load_dataset(file, query_column="fragen")


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_single_turn_chats_are_questions(column: str, tmp_path: Path) -> None:
    """A system and a user message, of text or text parts, are a question; its id depends on both."""
    user = {"role": "user", "content": [{"type": "text", "text": "2+2?"}]}
    rows = [[user], [{"role": "system", "content": "In German."}, user], [{"role": "user", "content": "2+2?"}]]
    found = load_dataset(str(jsonl(tmp_path / "q.jsonl", [{column: row, "answer": "4"} for row in rows]))).questions
    assert [(q.system, q.text) for q in found] == [(None, "2+2?"), ("In German.", "2+2?"), (None, "2+2?")]
    assert found[2].id == f"{found[0].id}-2"
    assert found[1].id != found[0].id


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "found no message"),
        ([{"role": "system", "content": "x"}], "found system"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "found user, assistant"),
        ([{"role": "user", "content": "x"}] * 9, "user, …"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "found user, system"),
        (["x"], "messages with `role` and `content`"),
        ([{"from": "human", "value": "x"}], "messages with `role` and `content`"),
        ([{"role": "user", "content": " "}], "expects text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "expects text"),
        ([{"role": "system", "content": [1]}, {"role": "user", "content": "x"}], "system message of text"),
    ],
)
def test_other_conversations_are_refused(messages: list[Any], says: str, tmp_path: Path) -> None:
    """Several turns, pictures and other shapes are one message with the row, never half a question."""
    file = str(jsonl(tmp_path / "q.jsonl", [{"messages": messages}]))
    with pytest.raises(MisuseError, match=re.escape(says)) as refused:
        load_dataset(file)
    assert refused.value.message.startswith(f"{file}:1: `messages` expects ")


def test_ids_are_the_rows_own_or_come_from_the_text(tmp_path: Path) -> None:
    """A column of ids names the questions, once each; without one, a text keeps its id wherever it stands."""
    own = load_dataset(str(jsonl(tmp_path / "a.jsonl", [{"id": i, "query": "x"} for i in range(2)])))
    assert [q.id for q in own.questions] == ["0", "1"]
    answers = [{"query_id": q, "query": q * 2, "lambda": x} for x in (0, 1) for q in "ab"]
    found = load_dataset(str(jsonl(tmp_path / "r.jsonl", answers))).questions
    assert [(q.id, q.text) for q in found] == [("a", "aa"), ("b", "bb")]
    rows = [{"id": 1, "query": t} for t in "xyx"]
    x, y, again = (q.id for q in load_dataset(str(jsonl(tmp_path / "b.jsonl", rows))).questions)
    assert again == f"{x}-2"
    moved = load_dataset(str(jsonl(tmp_path / "c.jsonl", [{"query": "new"}, *rows[1:]]))).questions
    assert [q.id for q in moved[1:]] == [y, x]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.jsonl", b"", "no column of queries"),
        ("q.jsonl", b'{"query": "x"}\n{"query": 5}\n', "q.jsonl:2: `query` expects text, found 5"),
        ("q.jsonl", b'{"query": "x"}\n\n{"query": " "}\n', "q.jsonl:3: `query` expects text"),
        ("q.jsonl", b'{"query": "x"}\n{"answer": "y"}\n', "q.jsonl:2: `query` expects text, found nothing"),
        ("q.jsonl", b'{"query": "x", "answer": [1]}\n', "q.jsonl:1: `answer` expects text or a number, found [1]"),
        ("q.jsonl", b'{"query": "x", "answer": NaN}\n', "expects text or a number, found nan"),
        ("q.jsonl", b'{"query": "x", "answer": 1' + b"0" * 400 + b"}\n", "a number that is too large"),
        ("q.jsonl", b'{"query": "\\ud800"}\n', "lone surrogate"),
        ("q.jsonl", b'{"query": "x"}\n[1]\n', "q.jsonl:2: not a JSON object"),
        ("q.json", b'[\n  {"query": "x"}\n]\n', "convert the JSON array to one object per line"),
        ("q.jsonl", b'{"query": "x"}\n{"que', "q.jsonl:2: not a JSON object"),
        ("q.jsonl", b"[" * 100_000, "not a JSON object"),
        ("q.jsonl", b'{"query": "\xff"}\n', "q.jsonl:1: not UTF-8"),
        ("q.jsonl", b'{"query": "' + b"x" * (1 << 20) + b'x"}\n', "1,048,577 characters"),
        ("q.jsonl", b"x" * (16 << 20) + b"x", "line is longer than 16 MiB"),
        ("q.csv", b"query,answer\nx,y,z\n", "q.csv:2: more cells than columns in the header"),
        ("q.csv", b'query\n"x"y\n', "not CSV"),
        ("q.csv", b"query\n" + b"x" * 200_000 + b"\n", "q.csv:2: not CSV: field larger"),
        ("q.csv", b"query\n", "no rows"),
        ("q.jsonl.gz", b"not gzip", "cannot be read"),
        ("q.jsonl.gz", gzip.compress(b'{"query": "x"}\n' * 99, mtime=0)[:-12], "cannot be read"),
        ("q.parquet", b"PAR1 no parquet PAR1", "not a parquet file"),
        ("q.parquet", b"", "not a parquet file"),
        ("q.xlsx", b"PK", "unsupported file type"),
    ],
)  # fmt: skip
def test_bad_files_are_one_message(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """Broken, oversized and strange files are a DamiError that names the file, and the line where there is one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamiError) as caught:
        load_dataset(str(tmp_path / name))
    assert says in str(caught.value)
    assert name in str(caught.value)


def test_what_unpacks_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed file is read no further than the bound on its unpacked size."""
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(b'{"query": "x"}\n' * 200_000))
    monkeypatch.setattr(tables, "MAX_BYTES", 1 << 20)
    with pytest.raises(MisuseError, match=r"q.jsonl.gz: more than"):
        load_dataset(str(tmp_path / "q.jsonl.gz"))


def test_a_place_that_is_no_file_is_misuse(tmp_path: Path) -> None:
    """A missing file is not looked for on the Hub, a folder is no file, and a file has no splits."""
    for place, says in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(MisuseError, match=says):
            load_dataset(str(place))
    with pytest.raises(MisuseError, match="dataset on the Hub"):
        load_dataset(str(jsonl(tmp_path / "q.jsonl", ROWS)), split="test")


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet needs an extra, and says which."""
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(FailureError, match=r"dami-router\[parquet\]"):
        load_dataset(str(tmp_path / "q.parquet"))


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz"]))
def test_no_file_causes_anything_but_a_clear_error(tmp_path_factory: Any, content: bytes, suffix: str) -> None:
    """Whatever a file holds, it is questions or a DamiError."""
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert load_dataset(str(path)).questions
    except DamiError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is\n#### 1,234\n", "1,234"),
        ("\\boxed{a} and \\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{7} then \\boxed{never closed", "7"),
        ("\\fbox{7}", "7"),
        ("####", "####"),
        (" plain ", "plain"),
    ],
)
def test_final_answers_are_found(text: str, answer: str) -> None:
    """`####` and boxes mark the final answer, the last whole one counts; otherwise it is the text."""
    assert final_answer(text) == answer


def test_a_text_of_opened_boxes_takes_no_time() -> None:
    """Two hundred thousand unclosed boxes are given up on at once."""
    assert boxed("\\boxed{" * 200_000) is None
