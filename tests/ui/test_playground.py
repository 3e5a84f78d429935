"""The playground of the page at /ui in a real browser: real answers of the lab pair, and scripted servers that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.upstream import chunk, plain, stream
from fakes.waiting import until
from fakes.world import Client, World, router_yml
from support.browser import Open, Visit, routed
from support.live_servers import section, served

from dami_merge.live import Engine
from dami_router.proxy.page_data import PageData

CHAIN = "4<5<3<7<5<4<0<5<3<7<2="
END = (chunk("", "stop"), b"data: [DONE]\n\n")


def drag(visit: Visit, to: float) -> None:
    """Drag the thumb of the first slider with the mouse."""
    box = visit.page.locator("input.lambda").first.bounding_box()
    value = float(visit.page.locator("input.lambda").first.input_value())
    thumb = 22  # its width: half of it stays free at either end of the track

    def at(lambda_: float) -> tuple[float, float]:
        return box["x"] + thumb / 2 + lambda_ * (box["width"] - thumb), box["y"] + box["height"] / 2

    visit.page.mouse.move(*at(value))
    visit.page.mouse.down()
    for step in range(1, 11):
        visit.page.mouse.move(*at(value + (to - value) * step / 10))
    visit.page.mouse.up()


def answers(pair: tuple[str, str], *lambdas: float) -> list[str]:
    """What the pair answers at each λ, asked without a server."""
    alone = Engine.load(*pair, mode="mixed")
    assert alone.texts is not None
    ids = alone.texts.encode_chat([{"role": "user", "content": CHAIN}], 0.5)
    return [done.text for done in alone.generate([ids] * len(lambdas), list(lambdas), max_new_tokens=160)]


def test_dragging_lambda_turns_a_guess_into_worked_steps(live: Client, pair: tuple[str, str], visit: Open) -> None:
    """At λ=0 the answer is a digit without thoughts; dragged to λ=1 the same prompt is thought through and checked."""
    direct, worked = answers(pair, 0.0, 1.0)
    page = visit(f"{live.url}/ui")
    page.page.wait_for_selector("input.lambda")
    drag(page, 0.0)
    page.ask(CHAIN)
    page.done()
    assert page.text(".lambda-value") == "0"
    guess = page.text(".answer-text")
    assert guess == direct
    assert not page.page.locator(".thoughts").is_visible()
    assert page.texts(".stats dd")[0] == "2"
    drag(page, 1.0)
    page.shows(".thought-name", "Thoughts")
    page.done()
    assert page.text(".lambda-value") == "1"
    page.page.click(".thoughts summary")
    thoughts, _, result = worked.removeprefix("<think>").partition("</think>")
    assert (page.text(".thought-text"), page.text(".answer-text")) == (thoughts, result)
    assert result != guess
    assert page.texts(".stats dd")[0] == "87"
    # All but the end of the answer: the closing tag is the last token of the thoughts.
    assert page.text(".thoughts .count") == "85 tokens"


def test_the_keyboard_alone_is_enough(live: Client, visit: Open) -> None:
    """Tab leads from the prompt to λ; arrows, Home and End move it; Ctrl+Enter answers."""
    page = visit(f"{live.url}/ui")
    page.page.wait_for_selector("input.lambda")
    page.page.focus("#prompt")
    page.page.keyboard.type("8+3=")
    page.page.keyboard.press("Control+Enter")
    page.done()
    for _ in range(20):
        page.page.keyboard.press("Tab")
        if page.page.evaluate("document.activeElement.matches('input.lambda')"):
            break
    page.page.keyboard.press("End")
    page.page.keyboard.press("ArrowLeft")
    assert page.page.locator("input.lambda").get_attribute("aria-valuetext") == "0.99"
    page.shows(".thoughts", "Thoughts")
    page.done()
    assert page.text(".answer-text") == "1"


def test_four_side_by_side_share_one_batch(loop: Loop, pair: tuple[str, str], visit: Open, tmp_path: Path) -> None:
    """One press asks at four λ at once; the engine answers them in the same steps, and each shows its own."""
    engine = Engine.load(*pair, mode="mixed")
    added, together = 0, 0
    add, step = engine.add, engine.step

    def added_one(*arguments: Any) -> Any:
        nonlocal added
        added += 1
        return add(*arguments)

    def step_of_four() -> Any:
        nonlocal together
        if added < 4:
            return []  # wait for the browser's other requests
        events = step()
        together = max(together, len({event.row.id for event in events}))
        return events

    engine.add, engine.step = added_one, step_of_four  # type: ignore[method-assign]
    with served(loop, engine, section(tmp_path, "{}", engine), hashed=False, page=PageData()) as client:
        page = visit(f"{client.url}/ui")
        page.page.wait_for_selector("input.lambda")
        page.page.fill("#prompt", CHAIN)
        assert page.text("#four") == "Four side by side"
        page.page.click("#four")
        page.done(4)
        assert together == 4
        assert page.texts(".lambda-value") == ["0", "0.33", "0.67", "1"]
        assert page.texts(".lane .answer-text") == ["2", "0", "0", "0"]
        tokens = [int(text) for text in page.texts(".lane .stats .tokens dd")]
        assert tokens[0] < tokens[1] <= tokens[2] < tokens[3]
        assert [page.text("#trail h2"), *page.texts(".trail-tokens")] == [
            "This prompt so far", *(f"{n} tokens" for n in tokens),
        ]  # fmt: skip
        page.page.get_by_role("button", name="Remove answer 2").click()
        assert page.texts(".lambda-value") == ["0", "0.67", "1"]


def test_options_go_with_the_request(world: World, visit: Open) -> None:
    """The most tokens and the temperature are sent where they are set; an answer cut off there says so."""
    up = world.upstream("v-l000", stream(chunk("cut"), chunk("", "length"), b"data: [DONE]\n\n"))
    page = visit(f"{routed(world, router_yml(('v-l000', up))).url}/ui")
    page.ask("x")
    page.done()
    page.page.click(".options summary")
    page.page.fill("#most", "7")
    page.page.fill("#temperature", "0.5")
    page.ask("x")
    page.shows(".trouble", "reached the limit of tokens")
    page.done()
    first, second = (call.json for call in up.calls)
    assert not first.keys() & {"max_tokens", "temperature"}
    assert (second["max_tokens"], second["temperature"]) == (7, 0.5)


def test_lambda_can_be_moved_without_another_answer(world: World, visit: Open) -> None:
    """With the checkbox off, the slider only sets λ for the next answer."""
    ups = [(name, world.upstream(name, stream(chunk(name), *END))) for name in ("v-l000", "v-l100")]
    page = visit(f"{routed(world, router_yml(*ups)).url}/ui")
    page.ask("x")
    page.done()
    page.page.uncheck("#again")
    page.page.focus("input.lambda")
    page.page.keyboard.press("End")
    assert page.text(".lambda-value") == "1"
    assert page.page.locator(".lane").get_attribute("aria-busy") is None
    assert ups[1][1].calls == []
    page.page.click("#answer")
    page.shows(".answer-text", "v-l100")


def test_stop_ends_the_answer_at_the_server(world: World, visit: Open) -> None:
    """The call to the server is closed, what came so far stays, and the next answer works."""
    up = world.upstream("v-l000", stream(chunk("One moment"), hang=True))
    client = routed(world, router_yml(("v-l000", up)))
    page = visit(f"{client.url}/ui")
    page.ask("Tell me everything.")
    page.shows(".answer-text", "One moment")
    page.page.click("#stop")
    until(lambda: up.cancelled == 1)
    page.shows(".trouble", "Stopped.")
    assert page.text(".answer-text") == "One moment"
    assert page.page.locator("#stop").is_disabled()
    up.script = stream(chunk("Here it is."), *END)
    page.ask("Again.")
    page.shows(".answer-text", "Here it is.")
    page.page.keyboard.press("Escape")
    assert not page.page.locator(".trouble").is_visible()


def test_a_script_in_an_answer_is_text(world: World, visit: Open) -> None:
    """Markup in thoughts, answers, errors and names of models is shown as written; nothing of it runs or loads."""
    evil = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
    up = world.upstream("v-l000", stream(chunk(f"<think>{evil}</think>"), chunk(evil), *END))
    client = routed(world, router_yml(("v-l000", up)))
    page = visit(f"{client.url}/ui")
    before = page.page.evaluate("[document.scripts.length, document.images.length]")
    page.ask(evil)
    page.done()
    page.page.click(".thoughts summary")
    assert page.text(".thought-text") == page.text(".answer-text") == evil
    up.script = plain(400, {"error": {"message": evil}})
    page.expected = ("400",)
    page.ask("again")
    page.shows(".trouble", evil)
    assert page.page.evaluate("[document.scripts.length, document.images.length]") == before
    assert page.page.evaluate("window.owned") is None


def test_thoughts_that_the_template_opened_are_found(world: World, visit: Open) -> None:
    """`…</think>` without an opening tag, tags cut in two, and thoughts that the server sends apart: all are folded."""
    up = world.upstream("v-l100", stream(chunk("first</th"), chunk("ink>\n\nthen"), *END))
    text = "variants: [{id: v-l100, lambda: 1, opens_think: true}]\n"
    text += f'backends: [{{variant: v-l100, url: "{up.url}", protocol: openai}}]\nthinking: '
    for thinking in ("pass", "split"):
        page = visit(f"{routed(world, text + thinking).url}/ui")
        page.ask("x")
        page.done()
        page.page.click(".thoughts summary")
        assert (page.text(".thought-text"), page.text(".answer-text")) == ("first", "then")


def test_auto_shows_the_estimate_and_its_evidence(loop: Loop, engine: Engine, visit: Open, tmp_path: Path) -> None:
    """With auto, the page shows λ(q), the estimator and the numbers that it rests on, and moves the slider there."""
    config = section(tmp_path, "estimator: {chain: [{confidence: {tokens: 1}}]}\n", engine)
    with served(loop, engine, config, hashed=False, page=PageData()) as client:
        page = visit(f"{client.url}/ui")
        page.page.check(".auto input")
        page.ask(CHAIN)
        page.done()
        decision = client.post("/v1/route", {"messages": [{"role": "user", "content": CHAIN}]}).json
        facts = dict(zip(page.texts(".decision dt"), page.texts(".decision dd"), strict=True))
        assert float(facts["λ(q)"]) == pytest.approx(decision["lambda"], abs=1e-3)
        assert facts["Estimator"].startswith("confidence, ")
        assert float(facts["confidence"]) == pytest.approx(decision["evidence"]["confidence"], rel=0.01)
        assert facts["Answered by"] == f"dami:{decision['lambda']:g}"
        assert facts["Fallback"] == "none"
        assert page.text(".lambda-value") == facts["λ(q)"]


def test_a_fallback_is_said(world: World, visit: Open) -> None:
    """Where the chosen variant fails, the page says which one answered instead, and after how many failed calls."""
    first, second = world.pair(plain(500), stream(chunk("from the other"), *END))
    client = routed(
        world, router_yml(("v-l000", first), ("v-l100", second), extra="estimator: {chain: [effort], fixed: 0}")
    )
    page = visit(f"{client.url}/ui")
    page.page.check(".auto input")
    page.ask("x")
    page.shows(".answer-text", "from the other")
    facts = dict(zip(page.texts(".decision dt"), page.texts(".decision dd"), strict=True))
    assert facts["Answered by"] == "v-l100"
    assert facts["Fallback"] == "from v-l000 after 1 failed call"
    assert facts["Because"] == "no result from effort"


def test_with_variants_the_slider_stops_at_their_lambda(world: World, visit: Open) -> None:
    """Arrow keys go from one variant to the next, a drag ends at the nearest, and that variant is asked."""
    ups = [(name, world.upstream(name, stream(chunk(name), *END))) for name in ("v-l000", "v-l030", "v-l100")]
    page = visit(f"{routed(world, router_yml(*ups)).url}/ui")
    page.ask("x")
    page.shows(".answer-text", "v-l000")
    page.page.focus("input.lambda")
    page.page.keyboard.press("ArrowRight")
    page.shows(".answer-text", "v-l030")
    assert page.page.locator("input.lambda").get_attribute("aria-valuetext") == "0.3, v-l030"
    drag(page, 0.8)
    page.shows(".answer-text", "v-l100")
    assert page.text(".lambda-value") == "1"
    assert page.text("#four") == "Three side by side"


@pytest.mark.parametrize("cut", ["cut", "refused"])
def test_a_server_that_is_killed_is_an_error_in_words(world: World, visit: Open, cut: str) -> None:
    """An answer that breaks off keeps its text and says so; without any server left, the page says that."""
    script = stream(chunk("Half of"), cut=True) if cut == "cut" else plain()
    up = world.upstream("v-l000", script)
    client = routed(world, router_yml(("v-l000", up)))
    page = visit(f"{client.url}/ui")
    page.page.wait_for_selector("input.lambda")
    if cut == "refused":
        world.loop.run(up.stop())
        page.expected = ("502", "503")
    page.ask("x")
    page.done()
    said = page.text(".trouble")
    assert ("the stream broke off" in said or "broke off" in said) if cut == "cut" else "no server" in said
    assert page.text(".answer-text") == ("Half of" if cut == "cut" else "")


def test_a_screen_reader_hears_sentences_not_tokens(world: World, visit: Open) -> None:
    """A stream of 300 pieces is a handful of polite messages, which together hold the whole answer."""
    words = [f"word{i}{'.' if i % 10 == 9 else ''} " for i in range(300)]
    up = world.upstream("v-l000", stream(*map(chunk, words), *END))
    page = visit(f"{routed(world, router_yml(('v-l000', up))).url}/ui")
    page.page.evaluate(
        "() => { window.heard = []; new MutationObserver((all) => { for (const one of all) for (const node of"
        " one.addedNodes) window.heard.push(node.textContent); }).observe(document.getElementById('spoken'),"
        " {childList: true}); }"
    )
    page.ask("x")
    page.until("() => window.heard.some((text) => text.includes('Done:'))")
    heard = page.page.evaluate("window.heard")
    assert page.page.locator("#spoken").get_attribute("aria-live") == "polite"
    assert 2 <= len(heard) < 20
    assert all(word.strip() in " ".join(heard) for word in words)
    assert "300 tokens" in heard[-1]
