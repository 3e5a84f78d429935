"""`dami rollout import`. The logs are made by hand after the formats that each tool writes; none is a recorded run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dami_router.cli import main
from dami_router.datasets import Question
from dami_router.errors import DamiError, MisuseError
from dami_router.imports.importing_logs import LogImport
from dami_router.imports.logged import ImportChoices
from dami_router.imports.token_counts import TokenCounter
from dami_router.imports.which_lambda import LambdaNames
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout, read_rollouts, write_rollouts

DATE = "2025-08-07T12-01-02.345678"


def dami(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of words, in a folder as of a checkpoint."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "checkpoint").mkdir()
    made.save(str(tmp_path / "checkpoint" / "tokenizer.json"))
    return tmp_path / "checkpoint"


def lm_eval(number: int, text: str, score: float, filter_: str = "flexible-extract", **more: Any) -> dict[str, Any]:
    """A line as `--log_samples` writes it for gsm8k."""
    return {
        "doc_id": number,
        "doc": {"question": f"What is {number}+{number}?", "answer": f"Add. #### {2 * number}"},
        "target": f"Add. #### {2 * number}",
        "arguments": {"gen_args_0": {"arg_0": f"Question: {number}\nAnswer:", "arg_1": {"until": ["Question:"]}}},
        "resps": [[text]],
        "filtered_resps": ["4"],
        "filter": filter_,
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": score,
        **more,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The output folder of two evaluations, as lm-evaluation-harness lays it out."""
    for model, text in (("family-l000", "4"), ("family-l050", "<think>2 and 2</think> 4")):
        rows = [
            lm_eval(i, text, float(i == 2), name) for name in ("strict-match", "flexible-extract") for i in range(3)
        ]
        jsonl(tmp_path / "results" / f"models__{model}" / f"samples_gsm8k_{DATE}.jsonl", rows)
        (tmp_path / "results" / f"models__{model}" / f"results_{DATE}.json").write_text('{"results": {}}')
    return tmp_path / "results"


def imported(out: Path) -> list[Rollout]:
    return sorted(read_rollouts(out), key=lambda row: (row.query_id, row.lambda_, row.sample or 0))


def test_samples_of_lm_eval_become_rollouts(results: Path, tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    """λ is in the folders' names, the score in the log, tokens come from the tokenizer; the command says all of it."""
    out = tmp_path / "r.jsonl"
    options = ["--filter", "flexible-extract", "--tokenizer", tokenizer, "--out", out]
    assert dami("rollout", "import", results, *options) == 0
    rows = imported(out)
    assert [(row.query_id, row.lambda_, row.correct, row.tokens) for row in rows] == [
        (f"gsm8k/{i}", x, float(i == 2), tokens) for i in range(3) for x, tokens in ((0.0, 1), (0.5, 4))
    ]
    assert [(rows[1].query, rows[1].answer, rows[1].expected, rows[1].think) for _ in (0,)] == [
        ("What is 0+0?", " 4", "0", True)
    ]
    grid_of(rows)
    said = capsys.readouterr()
    assert "filter `flexible-extract`, metric `exact_match`; queries: `doc.question`" in said.err
    assert f"tokens of 6 answers counted with {tokenizer}" in said.out
    assert "grade: the log's own score" in said.out


def test_several_filters_or_metrics_must_be_chosen(results: Path, tmp_path: Path, capsys: Any) -> None:
    """Nothing is guessed where a log has several scores of one answer; the message lists them."""
    out = tmp_path / "r.jsonl"
    assert dami("rollout", "import", results, "--out", out) == 2
    assert "several filters: `strict-match` or `flexible-extract`" in capsys.readouterr().err
    assert dami("rollout", "import", results, "--filter", "none", "--out", out) == 2
    assert "no filter `none`" in capsys.readouterr().err
    scores = {"prompt_level_strict_acc": True, "inst_level_strict_acc": [True, False], "prompt_level_loose_acc": True}
    row = lm_eval(0, "x", 1.0, metrics=list(scores), **scores)
    file = jsonl(tmp_path / "samples_ifeval_lambda-1.jsonl", [row])
    assert dami("rollout", "import", file, "--out", out) == 2
    assert "several metrics: `prompt_level_strict_acc` or `prompt_level_loose_acc`" in capsys.readouterr().err
    assert dami("rollout", "import", file, "--metric", "inst_level_strict_acc", "--out", out) == 2
    assert "no metric `inst_level_strict_acc` with a score from 0 to 1" in capsys.readouterr().err
    assert not out.exists()


def test_repeats_chats_and_older_logs_are_read(tokenizer: Path, tmp_path: Path) -> None:
    """Samples of one document share a score and have mean tokens; a prompt may be a chat; older logs have lists."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    arguments = {"gen_args_0": {"arg_0": [json.dumps(chat)], "arg_1": {}}}
    rows = [lm_eval(0, "", 0.5, "none", doc={"id": 7}, resps=[["a b", "c"]], arguments=arguments)]
    old = lm_eval(1, "d", 1.0, doc={"x": 1}, arguments=[["As a text:", {"until": []}]])
    rows.append({key: value for key, value in old.items() if key not in ("filter", "metrics")} | {"filter": "none"})
    file = jsonl(tmp_path / "lambda-0.25" / "samples_t.jsonl", rows)
    out = tmp_path / "r.jsonl"
    assert dami("rollout", "import", file, "--tokenizer", tokenizer, "--out", out) == 0
    first, second = imported(out)
    assert (first.query, first.system, first.tokens, first.correct) == ("How many?", "Be brief.", 1.5, 0.5)
    assert (second.query, second.system, second.tokens, second.lambda_) == ("As a text:", None, 1, 0.25)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"resps": [[["-1.2", "False"]], [["-3.4", "False"]]]}, [], "log-likelihoods"),
        ({"exact_match": 3}, ["--metric", "exact_match"], "no metric `exact_match`"),
        ({"doc": {"question": 5}, "arguments": {}}, [], "`arguments` expects text, found nothing"),
        ({"doc_id": None}, [], "`doc_id` expects"),
        ({}, ["--query-column", "frage"], "no field `frage`"),
        ({}, [], "no token counts"),
        ({}, ["--tokenizer", "./none"], "no such file"),
        ({}, ["--grade", "choice"], "the expected answer is not a single letter"),
        ({"target": ""}, ["--grade", "exact"], "the expected answer is missing"),
        ({}, ["--lambda", "2"], "expected a λ from 0 to 1"),
        ({}, ["--lambda", "0", "--lambda", "1"], "give it alone"),
        ({}, ["--split", "test"], "--split needs --dataset"),
    ],
)
def test_bad_logs_are_one_message(
    change: dict[str, Any], options: list[str], says: str, tmp_path: Path, capsys: Any
) -> None:
    """What cannot be imported names its line and the way out; nothing is written."""
    file = jsonl(tmp_path / "l050" / "samples_t.jsonl", [lm_eval(0, "0", 1.0) | change])
    out = tmp_path / "r.jsonl"
    assert dami("rollout", "import", file, *options, "--out", out) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not out.exists()


def batch(id: str, text: str, tokens: int, **message: Any) -> dict[str, Any]:
    """A line as `vllm run-batch` writes it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "dami:0.5", "choices": [choice], "usage": usage}
    response = {"status_code": 200, "request_id": "vllm-batch-1", "body": body}
    return {"id": "vllm-1", "custom_id": id, "response": response, "error": None}


def test_batch_files_meet_their_questions(tmp_path: Path, capsys: Any) -> None:
    """Queries and answers come from the dataset by `custom_id`, λ from the model; failed requests are counted."""
    questions = jsonl(tmp_path / "q.jsonl", [{"id": f"r{i}", "question": f"{i}?", "answer": i} for i in range(3)])
    failed = {"id": "vllm-9", "custom_id": "r2", "response": {"status_code": 500, "body": None}, "error": {"code": 500}}
    rows = [batch("r0", "It is 0.", 5), batch("r1", "7", 40, reasoning_content="long"), failed]
    two = batch("r2", "2", 10)
    two["response"]["body"]["choices"] *= 2
    other = jsonl(tmp_path / "other.jsonl", [two])
    file, out = jsonl(tmp_path / "out.jsonl", rows), tmp_path / "r.jsonl"
    assert dami("rollout", "import", file, other, "--lambda", "other=1", "--dataset", questions, "--out", out) == 0
    found = [(r.query_id, r.query, r.lambda_, r.correct, r.tokens, r.think, r.sample) for r in imported(out)]
    assert found == [
        ("r0", "0?", 0.5, 1.0, 5, False, None),
        ("r1", "1?", 0.5, 0.0, 40, True, None),
        ("r2", "2?", 1.0, 1.0, 5, False, 0),
        ("r2", "2?", 1.0, 1.0, 5, False, 1),
    ]
    said = capsys.readouterr()
    assert "1 requests failed, such as `r2`; skipped" in said.err
    assert "some queries lack an answer at some λ" in said.err
    assert "grade: numeric" in said.out
    assert dami("rollout", "import", file, "--out", tmp_path / "s.jsonl") == 2
    assert "give the questions with --dataset" in capsys.readouterr().err


def test_routerbench_tables_are_read_by_model(tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    """Each model with a λ is a variant; the others are named; queries of several turns are left out."""
    lines = [
        "sample_id,prompt,eval_name,small,big,other,small|model_response,big|model_response,other|model_response",
        """a.1,"['Say ""x""']",e,0.0,1.0,1.0,['no'],['yes it is'],['?']""",
        """a.2,"['one', 'two']",e,0.0,1.0,1.0,['no'],['yes'],['?']""",
        """a.3,plain,e,0.5,1.0,1.0,plain text,['yes'],['?']""",
    ]
    file, out = tmp_path / "rb.csv", tmp_path / "r.jsonl"
    file.write_text("\n".join(lines) + "\n")
    options = ["--lambda", "small=0", "--lambda", "big=1", "--tokenizer", tokenizer, "--out", out]
    assert dami("rollout", "import", file, *options) == 0
    found = [(r.query_id, r.query, r.lambda_, r.correct, r.tokens) for r in imported(out)]
    assert found == [
        ("a.1", 'Say "x"', 0.0, 0.0, 1), ("a.1", 'Say "x"', 1.0, 1.0, 3), ("a.3", "plain", 0.0, 0.5, 2),
        ("a.3", "plain", 1.0, 1.0, 1),
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "models without a λ are left out: other" in said
    assert "1 queries of several turns are left out" in said
    assert "no answer contains </think>" in said
    assert dami("rollout", "import", file, "--out", tmp_path / "s.jsonl") == 2
    assert "--lambda 'small=0'" in capsys.readouterr().err


def test_pickles_are_refused_with_the_way_out(tmp_path: Path, capsys: Any) -> None:
    """A pickle could run code: it is not opened, and the message has the line that converts it."""
    (tmp_path / "routerbench_0shot.pkl").write_bytes(b"\x80\x04.")
    assert dami("rollout", "import", tmp_path / "routerbench_0shot.pkl", "--out", tmp_path / "r.jsonl") == 2
    assert "to_parquet('routerbench_0shot.parquet')" in capsys.readouterr().err


def test_predictions_and_details_of_opencompass(tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    """Predictions are graded against their gold answers, details keep their grade; both are found in a work folder."""
    prompt = [{"role": "SYSTEM", "prompt": "Think."}, {"role": "HUMAN", "prompt": "Which? A) 1 B) 2"}]
    items = {
        "0": {"origin_prompt": prompt, "prediction": "<think>x</think>Answer: B", "gold": "B", "res_length": 12},
        "1": {"origin_prompt": "Plain?", "prediction": "A", "gold": ["C", "A"]},
    }
    work = tmp_path / "20250807_120102"
    for model in ("m-lambda-0", "m-lambda-1"):
        (work / "predictions" / model).mkdir(parents=True)
        (work / "predictions" / model / "arc.json").write_text("\ufeff" + json.dumps(items), encoding="utf-8")
    out = tmp_path / "r.jsonl"
    assert dami("rollout", "import", work, "--tokenizer", tokenizer, "--out", out) == 0
    found = [(r.query_id, r.system, r.query, r.lambda_, r.correct, r.tokens) for r in imported(out)]
    assert found == [
        ("arc/0", "Think.", "Which? A) 1 B) 2", 0.0, 1.0, 12), ("arc/0", "Think.", "Which? A) 1 B) 2", 1.0, 1.0, 12),
        ("arc/1", None, "Plain?", 0.0, 1.0, 1), ("arc/1", None, "Plain?", 1.0, 1.0, 1),
    ]  # fmt: skip
    assert "grade: choice" in capsys.readouterr().out
    details = {"type": "GEN", "0": {"prompt": "P", "origin_prediction": "a b", "references": "z", "correct": True}}
    file = tmp_path / "l100-math.json"
    file.write_text(json.dumps({"accuracy": 100.0, "details": details}))
    again = tmp_path / "s.jsonl"
    assert dami("rollout", "import", file, "--tokenizer", tokenizer, "--lambda", "1", "--out", again) == 0
    assert [(r.query, r.correct, r.tokens, r.expected) for r in imported(again)] == [("P", 1.0, 2, "z")]


def test_two_answers_to_one_query_at_one_lambda_are_refused(results: Path, tmp_path: Path, capsys: Any) -> None:
    """Two runs of one variant are no two variants: the message names both lines."""
    options = ["--filter", "strict-match", "--lambda", "0.5", "--tokenizer"]
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.save(str(tmp_path / "tokenizer.json"))
    assert dami("rollout", "import", results, *options, tmp_path, "--out", tmp_path / "r.jsonl") == 2
    assert "a second answer to `gsm8k/0` at λ=0.5; the first is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has no rows"),
        (b'{"a": 1}\n', "its first row has `a`"),
        (b"[1]\n", "not a JSON object"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_unknown_files_are_refused(content: bytes, says: str, tmp_path: Path, capsys: Any) -> None:
    """A file of another kind is one message; so are a missing file, an empty folder and an existing output."""
    (tmp_path / "log.jsonl").write_bytes(content)
    assert dami("rollout", "import", tmp_path / "log.jsonl", "--out", tmp_path / "r.jsonl") == 2
    assert says in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for place, message in (("none.jsonl", "no such file"), ("empty", "has no samples_")):
        assert dami("rollout", "import", tmp_path / place, "--out", tmp_path / "r.jsonl") == 2
        assert message in capsys.readouterr().err
    assert dami("rollout", "import", tmp_path / "log.jsonl", "--out", tmp_path / "log.jsonl") == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "model", "lambda_"),
    [
        ("runs/lambda-0.5/samples.jsonl", "", 0.5),
        ("runs/lambda_1.jsonl", "", 1.0),
        ("λ=0.25.json", "", 0.25),
        ("Qwen3-4B-DAMI-l040/samples.jsonl", "", 0.4),
        ("x.jsonl", "dami:0.37", 0.37),
        ("out/dami__0.375/samples_x.jsonl", "", 0.375),
        ("lambda-0/lambda-1.jsonl", "", 1.0),
        ("Qwen3-DAMI-1B.jsonl", "", None),
        ("lambda-2.jsonl", "", None),
        ("v-l0505.jsonl", "", 0.505),
        ("small100.jsonl", "qwen", None),
    ],
)
def test_lambda_is_read_from_names(path: str, model: str, lambda_: float | None) -> None:
    """The model's name counts before the file's, and that before its folders'; sizes and versions are no λ."""
    assert LambdaNames().find(Path(path), model) == lambda_


def test_options_say_lambda_before_names() -> None:
    """`NAME=λ` holds where the name is part of the path or the model; two that contradict each other are refused."""
    names = LambdaNames.parse(["v=0", "v-2=0.5", "other=1"])
    assert [names.find(Path(x), "") for x in ("v.jsonl", "v-2.jsonl", "lambda-0.3.jsonl")] == [0.0, 0.5, 0.3]
    assert LambdaNames.parse(["0.7"]).find(Path("lambda-0.3.jsonl"), "") == 0.7
    with pytest.raises(MisuseError, match="gives several values"):
        LambdaNames.parse(["aa=0", "bb=1"]).find(Path("aabb.jsonl"), "")
    with pytest.raises(MisuseError, match="its name gives several λ"):
        LambdaNames().find(Path("lambda-0-lambda-1.jsonl"), "")
    with pytest.raises(MisuseError, match="neither its name nor an option says its λ"):
        LambdaNames().of(Path("x.jsonl"), "m")


def test_names_of_endpoints_say_lambda() -> None:
    """Instruct is λ=0 and Thinking λ=1, unless a number or an option says otherwise, or a name has both words."""
    names = LambdaNames()
    assert names.of(Path("results/Qwen__Qwen3-4B-Instruct-2507/samples_t.jsonl"), "") == 0.0
    assert names.of(Path("x.jsonl"), "Qwen/Qwen3-4B-Thinking-2507") == 1.0
    assert names.of(Path("instruct/x.jsonl"), "N-Thinking-l050") == 0.5
    assert LambdaNames.parse(["thinking=0.9"]).of(Path("x.jsonl"), "Qwen3-4B-Thinking-2507") == 0.9
    for path in ("instruct/thinking.jsonl", "rethinking.jsonl", "thinking/more/x.jsonl"):
        with pytest.raises(MisuseError, match="neither its name nor an option"):
            names.of(Path(path), "")
    assert names.find(Path("x.parquet"), "mistral-7b-instruct") is None  # a table of many models names no endpoint


def test_options_match_names_in_any_case(tmp_path: Path, capsys: Any) -> None:
    """`instruct` is in `Qwen3-Instruct`; an option that is in no name at all is a mistake, with the names there are."""
    names = LambdaNames.parse(["INSTRUCT=0.2"])
    assert names.find(Path("x.jsonl"), "Qwen3-4B-Instruct-2507") == 0.2
    with pytest.raises(MisuseError, match=r"its λ \(`INSTRUCT` is not in it\)"):
        names.of(Path("x.jsonl"), "base")
    files = [
        jsonl(tmp_path / f"lambda-{x}" / "samples_t.jsonl", [lm_eval(0, "0", 1.0, exact_match=1.0)]) for x in (0, 1)
    ]
    assert dami("rollout", "import", *files, "--lambda", "thinkng=1", "--out", tmp_path / "r.jsonl") == 2
    said = capsys.readouterr().err
    assert "--lambda 'thinkng=…': no log and no model has that name" in said
    assert "there are `lambda-0` or `lambda-1`" in said


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, capsys: Any) -> None:
    """λ, filter, tokenizer and grade are one message, and what is wrong with many logs alike is said once."""
    for model in ("a", "b"):
        rows = [lm_eval(0, "4", 1.0, name, target="") for name in ("strict-match", "flexible-extract")]
        jsonl(tmp_path / "results" / model / f"samples_t_{DATE}.jsonl", rows)
    out = tmp_path / "r.jsonl"
    assert dami("rollout", "import", tmp_path / "results", "--grade", "exact", "--out", out) == 2
    said = capsys.readouterr().err
    assert said.count("several filters: ") == 1
    assert "(and 1 more like this)" in said
    for text in ("neither its name nor an option says its λ", "no token counts", "the expected answer is missing"):
        assert text in said
    assert not out.exists()


def test_a_damaged_tokenizer_is_one_message(tmp_path: Path) -> None:
    """A file that is no tokenizer says so."""
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MisuseError, match="not a tokenizer"):
        TokenCounter(str(tmp_path))


STRANGE: list[Any] = [None, True, -1, 1e400, 10**400, "\ud800", [], [["x"]], {}]


def altered(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value in which one part, at any depth, is strange or missing."""
    yield from STRANGE
    if isinstance(value, dict):
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in altered(part))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in altered(value[0]))


def test_no_log_causes_anything_but_a_clear_error(tokenizer: Path, tmp_path: Path) -> None:
    """Any part of a log may be missing or of another kind: it becomes sound rollouts, or is refused with a reason."""
    chat = [{"role": "SYSTEM", "prompt": "s"}, {"role": "HUMAN", "prompt": "q"}]
    item = {"0": {"origin_prompt": chat, "prediction": "B", "gold": "B", "res_length": 3}}
    cases = [("l.jsonl", lm_eval(0, "0", 1.0)), ("l.jsonl", batch("r0", "0", 5)), ("l.json", item)]
    question = Question("r0", "0?", "0", "q.jsonl:1")
    refused, counter = 0, TokenCounter(str(tokenizer))
    for name, whole in cases:
        for other in altered(whole):
            (tmp_path / name).write_text(json.dumps(other))
            run = LogImport(LambdaNames(0.5), ImportChoices(questions={"r0": question}), _counter=counter)
            try:
                made = run.rollouts([tmp_path / name])
            except DamiError as error:
                assert error.message
                refused += 1
                continue
            write_rollouts(made, tmp_path / "r.jsonl")
            assert list(read_rollouts(tmp_path / "r.jsonl")) == made
    assert refused > 100
