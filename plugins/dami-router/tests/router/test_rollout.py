"""`dami rollout` against real HTTP servers: what is asked, what is written, what happens when it is killed."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.upstream import Call, Script, Upstream, chat, hang, plain, send
from fakes.waiting import until
from fakes.world import World, router_yml

from dami_router.cli import main
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import read_rollouts

DAMI = [sys.executable, "-c", "from dami_router.cli import main; main()"]


def sums(count: int) -> list[dict[str, Any]]:
    """Questions: every third one is hard."""
    return [{"question": f"{i}+{i}?{' hard' if i % 3 == 0 else ''}", "answer": f"#### {2 * i}"} for i in range(count)]


def completion(text: str, tokens: int, finish: str = "stop", **message: Any) -> dict[str, Any]:
    reply = chat(text)
    reply["usage"]["completion_tokens"] = tokens
    reply["choices"][0]["finish_reason"] = finish
    reply["choices"][0]["message"].update(message)
    return reply


def arithmetic(*, thinks: bool, delay: float = 0.0) -> Script:
    """A model that adds. It fails at what is hard unless it thinks, and then it takes many more tokens."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        question = call.json["messages"][-1]["content"]
        number = int(question.split("+")[0])
        right = thinks or "hard" not in question
        text = f"The sum is {2 * number + (not right)}."
        await asyncio.sleep(delay * (number % 5))
        await send(
            writer, 200, completion(f"<think>17, no\n</think>\n\n{text}" if thinks else text, 40 if thinks else 5)
        )

    return script


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums(12)))
    return path


@pytest.fixture
def servers(world: World) -> tuple[Upstream, Upstream]:
    """`v-l000` answers at once, `v-l100` thinks."""
    return world.pair(arithmetic(thinks=False), arithmetic(thinks=True))


@pytest.fixture
def config(servers: tuple[Upstream, Upstream], tmp_path: Path) -> Path:
    return write_config(tmp_path, servers)


def write_config(folder: Path, servers: tuple[Upstream, Upstream], extra: str = "") -> Path:
    path = folder / "router.yml"
    path.write_text(router_yml(*zip(("v-l000", "v-l100"), servers, strict=True), extra=extra))
    return path


def command(config: Path, dataset: object, out: Path, *more: object) -> list[str]:
    return [*DAMI, "rollout", str(config), "--dataset", str(dataset), "--out", str(out), *map(str, more)]


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def dami(*arguments: object) -> Done:
    """Run a command in this process: most tests need no other one, and starting it takes longer than they do."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return Done(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def run(config: Path, dataset: object, out: Path, *more: object) -> Done:
    return dami("rollout", config, "--dataset", dataset, "--out", out, *more)


def content(out: Path) -> list[dict[str, Any]]:
    """The rows in an order that does not depend on who answered first, without the time that they took."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(0 < row.pop("latency_s") < 60 for row in rows)
    return sorted(rows, key=lambda row: (row["query"], row["lambda"], row["sample"]))


def test_every_question_is_asked_of_every_variant_and_graded(config: Path, dataset: Path, tmp_path: Path) -> None:
    """Rows are rollouts with all that is known; thoughts are neither graded nor kept; the summary is by λ."""
    out = tmp_path / "r.jsonl"
    done = run(config, dataset, out, "--json")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    rows = list(read_rollouts(out))
    assert len(rows) == 24
    thought = next(row for row in rows if row.lambda_ == 1.0 and row.query == "3+3? hard")
    assert (thought.correct, thought.answer, thought.expected, thought.tokens) == (1.0, "The sum is 6.", "6", 40)
    assert (thought.think, thought.finish_reason, thought.model, thought.sample) == (True, "stop", "v-l100", 0)
    said = json.loads(done.stdout)
    assert [(x["lambda"], x["model"], x["n"], x["mean_tokens"]) for x in said["lambdas"]] == [
        (0.0, "v-l000", 12, 5.0), (1.0, "v-l100", 12, 40.0),
    ]  # fmt: skip
    assert [round(x["accuracy"], 6) for x in said["lambdas"]] == [round(8 / 12, 6), 1.0]
    assert (said["grade"], said["written"], said["left"]) == ("numeric", 24, 0)


def test_rollouts_train_and_evaluate_an_estimator(config: Path, tmp_path: Path) -> None:
    """rollout → train → eval: what is collected is what the other commands read, and the estimator uses it."""
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(60)))
    out = tmp_path / "r.jsonl"
    assert run(config, tmp_path / "q.jsonl", out).returncode == 0
    for arguments in (["train", out, "--out", tmp_path / "est"], ["eval", out, "--folds", "3", "--json"]):
        done = dami(*arguments)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] > 0.95
    assert found["mean_tokens"] < 25


def test_the_request_is_what_was_asked_for(servers: tuple[Upstream, Upstream], config: Path, tmp_path: Path) -> None:
    """Template, system message, limits, seeds by sample and further fields reach the server; λ can be chosen."""
    (tmp_path / "q.csv").write_text("q,a\n2+2?,4\n3+3?,6\n")
    options = (
        "--query-column", "q", "--answer-column", "a", "--only", "1", "--samples", 2, "--temperature", "0.6",
        "--seed", 7, "--max-tokens", 99, "--system", "Be brief.", "--template", "{query} In \\boxed{}.",
        "--body", '{"top_p": 0.9}', "--limit", 1, "--keep-thoughts",
    )  # fmt: skip
    out = tmp_path / "r.jsonl"
    assert run(config, tmp_path / "q.csv", out, *options).returncode == 0
    assert servers[0].calls == []
    bodies = sorted((call.json for call in servers[1].calls), key=lambda body: body["seed"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2? In \\boxed{}."}]
    common = {"model": "v-l100", "messages": messages, "temperature": 0.6, "max_tokens": 99, "top_p": 0.9}
    assert bodies == [{**common, "seed": seed} for seed in (7, 8)]
    rows = content(out)
    assert [(row["query"], row["sample"]) for row in rows] == [("2+2?", 0), ("2+2?", 1)]
    assert rows[0]["answer"] == "<think>17, no\n</think>\n\nThe sum is 4."


def test_samples_are_averaged_by_who_reads_them(
    servers: tuple[Upstream, Upstream], config: Path, tmp_path: Path
) -> None:
    """Three answers to a question, one of them right, are one query of accuracy 1/3; more samples can be added."""

    async def third(call: Call, writer: asyncio.StreamWriter) -> None:
        seed, dearer = call.json["seed"], 50 * (call.json["model"] == "v-l100")
        await send(writer, 200, completion("1" if seed == 0 else "2", 10 + 3 * seed + dearer))

    for server in servers:
        server.script = third
    (tmp_path / "q.jsonl").write_text("".join(f'{{"question": "{i}?", "answer": 1}}\n' for i in range(12)))
    out, options = tmp_path / "r.jsonl", ("--temperature", "1", "--seed", 0, "--samples")
    assert run(config, tmp_path / "q.jsonl", out, *options, 1).returncode == 0
    again = run(config, tmp_path / "q.jsonl", out, *options, 3, "--json")
    assert json.loads(again.stdout)["written"] == 48
    grid = grid_of(read_rollouts(out))
    assert grid.correct.round(6).tolist() == [[round(1 / 3, 6)] * 2] * 12
    assert grid.tokens.tolist() == [[13.0, 63.0]] * 12
    evaluated = dami("eval", out, "--folds", 2, "--json")
    assert json.loads(evaluated.stdout)["queries"] == 12, evaluated.stderr


def test_greedy_samples_are_refused(config: Path, dataset: Path, tmp_path: Path) -> None:
    """Several greedy answers would be the same one several times."""
    done = run(config, dataset, tmp_path / "r.jsonl", "--samples", 2)
    assert (done.returncode, "--temperature" in done.stderr, (tmp_path / "r.jsonl").exists()) == (2, True, False)


def killed(given: list[str], when: Callable[[], bool]) -> None:
    """Run a command and kill it without warning as soon as something is so."""
    with subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: process.poll() is not None or when(), pause=0.001)
        process.send_signal(signal.SIGKILL)


def settled(servers: tuple[Upstream, ...]) -> int:
    """Return how many calls there were, once what a killed client sent has arrived."""
    for server in servers:
        # Connections are taken in the order in which they came: the killed client's before this one.
        with urllib.request.urlopen(f"{server.url}/health", timeout=60):
            pass
    until(lambda: not any(server.connections for server in servers))
    return sum(len(server.calls) for server in servers)


def lines(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(
    servers: tuple[Upstream, Upstream], config: Path, tmp_path: Path
) -> None:
    """SIGKILL at several moments: each run asks only for what is missing, and the end is the same content."""
    for server, thinks in zip(servers, (False, True), strict=True):
        server.script = arithmetic(thinks=thinks, delay=0.02)
    dataset = tmp_path / "q.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in sums(80)))
    straight, out = tmp_path / "straight.jsonl", tmp_path / "r.jsonl"
    assert run(config, dataset, straight, "--concurrency", 2).returncode == 0
    killed(command(config, dataset, out), out.exists)
    for count in (1, 25, 50):
        killed(command(config, dataset, out, "--concurrency", 2), lambda count=count: lines(out) >= count)
        complete = lines(out)
        assert complete < 160
    before = settled(servers)
    assert run(config, dataset, out, "--concurrency", 2).returncode == 0
    assert sum(len(server.calls) for server in servers) - before == 160 - complete
    assert content(out) == content(straight)
    third = run(config, dataset, out, "--json")
    assert (third.returncode, json.loads(third.stdout)["written"]) == (0, 0)
    assert sum(len(server.calls) for server in servers) - before == 160 - complete


@pytest.mark.parametrize("tail", [b'{"query_id":"a","que', b'{"tokens":5}', b"\0\0\0", b"\xff"])
def test_half_a_line_is_repaired(config: Path, dataset: Path, tmp_path: Path, tail: bytes) -> None:
    """A last line without its end is removed and asked for again; the lines before it stay as they are."""
    out, whole = tmp_path / "r.jsonl", tmp_path / "whole.jsonl"
    assert run(config, dataset, whole).returncode == 0
    assert run(config, dataset, out).returncode == 0
    kept = b"".join(out.read_bytes().splitlines(keepends=True)[:5])
    out.write_bytes(kept + tail)
    done = run(config, dataset, out)
    assert (done.returncode, "removed an incomplete last line" in done.stderr) == (0, True)
    assert out.read_bytes().startswith(kept)
    assert content(out) == content(whole)


def test_interrupted_it_keeps_what_came(servers: tuple[Upstream, Upstream], config: Path, tmp_path: Path) -> None:
    """Ctrl-C ends at once with 130; every answer that had come is in the file, and no half line."""
    servers[1].script = hang()
    out = tmp_path / "r.jsonl"
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(12)))
    with subprocess.Popen(command(config, tmp_path / "q.jsonl", out), stderr=subprocess.PIPE, text=True) as process:
        until(lambda: lines(out) >= 12)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert [row["lambda"] for row in content(out)] == [0.0] * 12


def test_two_runs_at_once_are_refused(
    servers: tuple[Upstream, Upstream], config: Path, dataset: Path, tmp_path: Path
) -> None:
    """A second run on the same file exits 1 at once while the first goes on."""
    servers[1].script = hang()
    out = tmp_path / "r.jsonl"
    with subprocess.Popen(command(config, dataset, out), stderr=subprocess.DEVNULL) as process:
        until(lambda: lines(out) >= 1)
        second = run(config, dataset, out)
        process.kill()
    assert (second.returncode, "another run is writing to it" in second.stderr) == (1, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--temperature", "0.5"), "another temperature"),
        (("--max-tokens", "5", "--system", "x"), "another system or max_tokens"),
        (("--grade", "exact"), "another grade"),
        (("--body", '{"top_k": 5}'), "another body"),
    ],
)
def test_other_settings_are_not_mixed_in(
    config: Path, dataset: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """What would make other rollouts is refused with its name, and nothing is written."""
    out = tmp_path / "r.jsonl"
    assert run(config, dataset, out, "--limit", 2).returncode == 0
    before = out.read_bytes()
    done = run(config, dataset, out, *options)
    assert (done.returncode, says in done.stderr, out.read_bytes() == before) == (2, True, True), done.stderr


def test_a_changed_dataset_is_noticed_and_a_longer_one_goes_on(config: Path, tmp_path: Path) -> None:
    """Changed questions or answers are refused; added ones, in whatever order, and a lower --limit are not."""
    dataset, out = tmp_path / "q.jsonl", tmp_path / "r.jsonl"

    def write(rows: list[dict[str, Any]]) -> None:
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(sums(3))
    assert run(config, dataset, out).returncode == 0
    write([{**row, "answer": "7"} if i == 1 else row for i, row in enumerate(sums(3))])
    assert "has another text" in run(config, dataset, out).stderr
    write(sums(2))
    assert run(config, dataset, out).returncode == 2
    write(sums(5)[::-1])
    assert run(config, dataset, out, "--limit", 1).returncode == 0
    assert lines(out) == 8
    assert run(config, dataset, out).returncode == 0
    assert lines(out) == 10


def test_another_model_at_the_same_lambda_is_not_mixed_in(
    world: World, config: Path, dataset: Path, tmp_path: Path
) -> None:
    """Rollouts of a variant of another family stay apart."""
    out = tmp_path / "r.jsonl"
    assert run(config, dataset, out).returncode == 0
    config.write_text(router_yml(("w-l000", world.upstream("w-l000", arithmetic(thinks=False)))))
    done = run(config, dataset, out)
    assert (done.returncode, "λ=0 was answered by v-l000, now by w-l000" in done.stderr) == (2, True)


def test_a_file_of_somebody_else_is_left_alone(config: Path, dataset: Path, tmp_path: Path) -> None:
    """Rollouts that no run wrote are not appended to; neither is a name that is no .jsonl."""
    out = tmp_path / "r.jsonl"
    out.write_text("mine\n")
    done = run(config, dataset, out)
    assert (done.returncode, "not from `dami rollout`" in done.stderr, out.read_text()) == (2, True, "mine\n")
    assert run(config, dataset, tmp_path / "r.jsonl.gz").returncode == 2
    assert run(config, dataset, tmp_path / "none" / "r.jsonl").returncode == 1


def test_failures_are_counted_and_left_for_the_next_run(
    servers: tuple[Upstream, Upstream], config: Path, dataset: Path, tmp_path: Path
) -> None:
    """A request that is refused, and a server that is down, are exit code 1 and no rows; the next run asks again."""

    async def picky(call: Call, writer: asyncio.StreamWriter) -> None:
        if "hard" in call.json["messages"][0]["content"]:
            await send(writer, 422, {"error": {"message": "too hard"}})
        else:
            await arithmetic(thinks=False)(call, writer)

    servers[0].script, servers[1].script = picky, plain(503, {})
    out = tmp_path / "r.jsonl"
    done = run(config, dataset, out, "--patience", "0.5", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert "4 × λ=0: status 422: too hard" in done.stderr
    assert (said["written"], said["left"], lines(out)) == (8, 16, 8)
    assert [x["accuracy"] for x in said["lambdas"]] == [1.0]
    servers[0].script, servers[1].script = arithmetic(thinks=False), arithmetic(thinks=True)
    assert json.loads(run(config, dataset, out, "--json").stdout)["written"] == 16


def test_a_server_that_comes_back_is_waited_for(
    servers: tuple[Upstream, Upstream], tmp_path: Path, dataset: Path
) -> None:
    """A server that fails for a second costs nothing but that second, whatever its breaker says."""
    begun: list[float] = []

    async def sick(call: Call, writer: asyncio.StreamWriter) -> None:
        begun.append(time.monotonic())
        healthy = begun[-1] - begun[0] > 1.0
        await (arithmetic(thinks=True)(call, writer) if healthy else send(writer, 500, {}))

    servers[1].script = sick
    config = write_config(tmp_path, servers, "breaker: {failures: 2, open_s: 0.3}")
    done = run(config, dataset, tmp_path / "r.jsonl", "--json")
    assert (done.returncode, json.loads(done.stdout)["written"]) == (0, 24), done.stderr


@pytest.mark.parametrize(
    ("reply", "opens", "answer", "think", "right"),
    [
        (completion("<think>6 or 7</think>\n\n4", 9), False, "4", True, True),
        (completion("6 or 7</think>4", 9), True, "4", True, True),
        (completion("6 or 7</think>4", 9), False, "4", True, True),
        (completion("4", 9), True, "4", False, True),
        (completion("it may be 4", 9, "length"), True, "", True, False),
        (completion("<think>it may be 4", 9, "length"), False, "", True, False),
        (completion("4", 9, reasoning_content="6 or 7"), True, "4", True, True),
        (completion("4", 9, reasoning="6 or 7"), False, "4", True, True),
        (completion("", 9, "length", content=None, reasoning_content="4"), False, "", True, False),
    ],
)
def test_thoughts_are_told_from_answers_in_all_their_shapes(
    world: World, tmp_path: Path, reply: dict[str, Any], opens: bool, answer: str, think: bool, right: bool
) -> None:
    """Opened by model or template, closed or cut off, in the text or beside it: only the answer is graded."""
    text = router_yml(("v-l050", world.upstream("v-l050", plain(200, reply))))
    (tmp_path / "router.yml").write_text(text.replace("lambda: 0.5", f"lambda: 0.5, opens_think: {str(opens).lower()}"))
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    assert run(tmp_path / "router.yml", tmp_path / "q.jsonl", tmp_path / "r.jsonl").returncode == 0
    (row,) = content(tmp_path / "r.jsonl")
    assert (row["answer"], row["think"], row["correct"]) == (answer, think, right)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"choices": []}, "not a chat completion"),
        (b"\xff{", "not a chat completion"),
        (b"[" * 100_000, "not a chat completion"),
        ({**chat("4"), "usage": None}, "has no token count"),
        ({"choices": [{"message": {"content": [1]}}], "usage": {"completion_tokens": 3}}, "its content is not text"),
    ],
)  # fmt: skip
def test_strange_replies_are_failures(world: World, tmp_path: Path, reply: Any, says: str) -> None:
    """What is no completion, or does not say its tokens, is a failure with its reason, and no row."""
    (tmp_path / "router.yml").write_text(router_yml(("v-l050", world.upstream("v-l050", plain(200, reply)))))
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    done = run(tmp_path / "router.yml", tmp_path / "q.jsonl", tmp_path / "r.jsonl", "--patience", "0")
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
    assert lines(tmp_path / "r.jsonl") == 0


def test_half_a_character_does_not_end_the_run(world: World, tmp_path: Path) -> None:
    """A lone surrogate in an answer is replaced, so that the row is JSON in UTF-8."""
    raw = json.dumps(completion("4 XX", 9)).replace("XX", "\\ud800").encode()
    (tmp_path / "router.yml").write_text(router_yml(("v-l050", world.upstream("v-l050", plain(200, raw)))))
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    assert run(tmp_path / "router.yml", tmp_path / "q.jsonl", tmp_path / "r.jsonl").returncode == 0
    assert content(tmp_path / "r.jsonl")[0]["answer"] == "4 ?"


def test_without_grading_the_rows_wait_for_a_grader(config: Path, tmp_path: Path) -> None:
    """Questions without answers give rows without `correct`, which training refuses, saying what they lack."""
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?"}\n{"question": "3+3?"}\n')
    out = tmp_path / "r.jsonl"
    for written in (4, 0):
        done = run(config, tmp_path / "q.jsonl", out, "--json")
        said = json.loads(done.stdout)
        assert (said["grade"], said["written"], said["lambdas"][0]["accuracy"]) == ("none", written, None)
    assert all("correct" not in row for row in content(out))
    trained = dami("train", out, "--out", tmp_path / "e")
    assert (trained.returncode, "are not graded: add `correct`" in trained.stderr) == (2, True)


def test_answers_that_were_cut_off_are_pointed_out(world: World, tmp_path: Path) -> None:
    """Many answers of finish_reason length are a warning that names the option."""
    server = world.upstream("v-l050", plain(200, completion("I think", 9, "length")))
    (tmp_path / "router.yml").write_text(router_yml(("v-l050", server)))
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    done = run(tmp_path / "router.yml", tmp_path / "q.jsonl", tmp_path / "r.jsonl")
    assert (done.returncode, "100% of the answers at λ=0.5 were cut off; raise --max-tokens" in done.stderr) == (
        0,
        True,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--template", "x"), "has no {query}"),
        (("--body", "[1]"), "expects a JSON object"),
        (("--body", '{"model": "x"}'), "must not set `model`"),
        (("--body", '{"temperature": 1}'), "use --temperature"),
        (("--only", "0.5"), "served: 0 or 1"),
        (("--only", "2"), "outside [0, 1]"),
        (("--lambdas", "0.5"), "router.yml has none"),
        (("--lambdas", "a"), "expected numbers"),
        (("--dataset", "nowhere.jsonl"), "no such file"),
        (("--answer-column", "ansewr"), "did you mean `answer`"),
    ],
)
def test_misuse_is_one_message(
    config: Path, dataset: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """Options without meaning exit 2 with one message, before anything is asked or written."""
    done = run(config, dataset, tmp_path / "r.jsonl", *options)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert not (tmp_path / "r.jsonl").exists()


def test_expected_answers_that_cannot_be_compared_are_named(config: Path, tmp_path: Path) -> None:
    """A missing answer, and one that is no number for --grade numeric, name their line before anything is asked."""
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": 4}\n{"question": "b", "answer": "four"}\n')
    done = run(config, tmp_path / "q.jsonl", tmp_path / "r.jsonl", "--grade", "numeric")
    assert (done.returncode, "q.jsonl:2: the expected answer 'four' is not a single number" in done.stderr) == (2, True)
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": 4}\n{"question": "b"}\n')
    done = run(config, tmp_path / "q.jsonl", tmp_path / "r.jsonl", "--grade", "exact")
    assert (done.returncode, "q.jsonl:2: `answer` is empty" in done.stderr) == (2, True)


def test_a_full_disk_ends_the_run(
    servers: tuple[Upstream, Upstream], config: Path, dataset: Path, tmp_path: Path
) -> None:
    """Where nothing can be written, the run ends with one message, and the file has whole lines only."""
    out = tmp_path / "r.jsonl"
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); from dami_router.cli import main; main()"
    given = [sys.executable, "-c", limited, *command(config, dataset, out)[3:]]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "cannot be written" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert not out.read_bytes() or out.read_bytes().endswith(b"\n")
    assert run(config, dataset, out).returncode == 0
    assert lines(out) == 24


def test_a_wrong_server_is_never_asked(world: World, dataset: Path, tmp_path: Path) -> None:
    """A server of another model is refused before anything is asked of it."""
    server = world.tgi("v-l050")
    (tmp_path / "router.yml").write_text(router_yml(("v-l100", server)))
    done = run(tmp_path / "router.yml", dataset, tmp_path / "r.jsonl")
    assert (done.returncode, "serves v-l050, expected v-l100" in done.stderr, server.calls) == (1, True, [])


def test_tgi_is_asked_in_its_own_way(world: World, tmp_path: Path) -> None:
    """A strict TGI takes what is sent, and its tokens are counted."""
    (tmp_path / "router.yml").write_text(router_yml(("v-l000", world.tgi("v-l000"))))
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    done = run(tmp_path / "router.yml", tmp_path / "q.jsonl", tmp_path / "r.jsonl", "--max-tokens", 50, "--seed", 1)
    assert done.returncode == 0, done.stderr
    (row,) = content(tmp_path / "r.jsonl")
    assert (row["answer"], row["tokens"], row["correct"]) == ("It is 4", 3, True)


def test_the_readable_summary_has_a_line_for_each_lambda(config: Path, dataset: Path, tmp_path: Path) -> None:
    """Without --json: a table on stdout; talk and the next command on stderr."""
    done = run(config, dataset, tmp_path / "r.jsonl")
    assert re.search(r"^0\s+v-l000\s+12\s+66\.7%\s+5\.0\s+0%\s+0%$", done.stdout, re.M)
    assert re.search(r"^1\s+v-l100\s+12\s+100\.0%\s+40\.0\s+100%\s+0%$", done.stdout, re.M)
    assert f"next: dami eval {tmp_path / 'r.jsonl'}" in done.stderr
    assert "questions" not in done.stdout


def test_system_messages_of_the_questions_are_sent_and_kept(
    config: Path, servers: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    """A row of messages is sent as it is; the rollout has both parts; a second system message is refused."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    dataset = tmp_path / "chats.jsonl"
    dataset.write_text(json.dumps({"messages": chat, "answer": "2"}) + "\n")
    out = tmp_path / "r.jsonl"
    assert run(config, dataset, out).returncode == 0
    assert [call.json["messages"] for server in servers for call in server.calls] == [chat, chat]
    assert {(row["query"], row["system"], row["correct"]) for row in content(out)} == {("1+1?", "Be brief.", True)}
    assert "0 rollouts to collect" in run(config, dataset, out).stderr
    refused = run(config, dataset, tmp_path / "s.jsonl", "--system", "Be long.")
    assert (refused.returncode, "system messages of their own" in refused.stderr) == (2, True)


def thinker(*, limit: bool | None) -> Script:
    """A model that thinks at length; it obeys a cap, ignores it, or refuses the field."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        cap = call.json.get("thinking_token_budget")
        if cap is not None and limit is None:
            await send(writer, 400, {"error": {"message": "thinking_token_budget needs --reasoning-config"}})
            return
        thought = "word " * (min(cap, 40) if cap is not None and limit else 40)
        await send(writer, 200, completion(f"<think>{thought}</think>The sum is 2.", len(thought) // 5 + 4))

    return script


def test_caps_are_sent_and_their_answers_kept_apart(world: World, dataset: Path, tmp_path: Path) -> None:
    """The field goes to the largest λ alone; rows have their cap; the first requests only see whether it is obeyed."""
    servers = world.pair(arithmetic(thinks=False), thinker(limit=True))
    out = tmp_path / "r.jsonl"
    done = run(write_config(tmp_path, servers), dataset, out, "--limit", 4, "--caps", "8,2", "--json")
    assert done.returncode == 0, done.stderr
    assert not [call for call in servers[0].calls if "thinking_token_budget" in call.json]
    rows = content(out)
    assert sorted((row.get("cap"), row["tokens"]) for row in rows if row["lambda"] == 1 and row.get("cap")) == sorted(
        [(8, 12), (2, 6)] * 4
    )
    found = grid_of(read_rollouts(out))
    assert found.capped is not None
    assert (found.lambdas, found.capped.settings) == ((0.0, 1.0), ((1.0, 2), (1.0, 8)))


@pytest.mark.parametrize(("limit", "says"), [(False, "ignores"), (None, "refuses")])
def test_a_server_that_does_not_cap_is_an_error(
    world: World, dataset: Path, tmp_path: Path, limit: bool | None, says: str
) -> None:
    """Answers of a server that thinks on are never recorded as capped ones; the message says which servers can."""
    servers = world.pair(arithmetic(thinks=False), thinker(limit=limit))
    done = run(write_config(tmp_path, servers), dataset, tmp_path / "r.jsonl", "--caps", "8")
    assert (done.returncode, f"v-l100: {says} `thinking_token_budget`" in done.stderr) == (1, True)
    assert "--reasoning-config" in done.stderr
    assert (tmp_path / "r.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--caps", "x"], "--caps: 'x': expected whole numbers"),
        (["--caps", "-1"], "expected whole numbers"),
        (["--caps-at", "1"], "--caps-at needs --caps"),
        (["--caps", "8", "--caps-at", "0.3"], "--caps-at: λ=0.3 is not run"),
        (["--body", '{"thinking_token_budget": 5}'], "use --caps"),
    ],
)
def test_bad_caps_are_one_message(config: Path, dataset: Path, tmp_path: Path, options: list[str], says: str) -> None:
    """A cap is a whole number, at a λ that is run."""
    done = run(config, dataset, tmp_path / "r.jsonl", *options)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
