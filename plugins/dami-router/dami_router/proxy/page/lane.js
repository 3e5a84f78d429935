// One λ and its answer: the slider, what streams in, and what it cost.

import { ApiError, chat, json } from "./api.js";
import { count, h, lambdaText, plural, seconds, tint } from "./dom.js";
import { Reading, say } from "./spoken.js";
import { Splitter } from "./thoughts.js";

const PAUSE_MS = 250;

/** `family` is the reply of ui/data; `changed` is called when λ has changed, `removed` by the button, `ended` with a finished answer. */
export class Lane {
  constructor(family, lambda, { changed, removed, ended, denied }) {
    this.family = family;
    this.on = { changed, removed, ended, denied };
    this.auto = false;
    this.control = null;
    this.timer = null;
    this.places = [...new Set(family.variants.filter((v) => v.served).map((v) => v.lambda))].sort((a, b) => a - b);
    this.#build();
    this.move(lambda);
  }

  get running() {
    return this.control !== null || this.timer !== null;
  }

  /** The name of the model to ask for: `dami`, `dami:0.4`, or a variant's id. */
  get model() {
    if (this.auto) return "dami";
    if (this.family.any_lambda) return `dami:${this.lambda}`;
    return this.family.variants.find((v) => v.served && v.lambda === this.lambda)?.id ?? `dami:${this.lambda}`;
  }

  /** Number the lanes, for the eye and for a screen reader. */
  name(number, alone) {
    this.title = alone ? "Answer" : `Answer ${number}`;
    this.element.setAttribute("aria-label", this.title);
    this.slider.setAttribute("aria-label", alone ? "λ" : `λ of answer ${number}`);
    this.remove.setAttribute("aria-label", `Remove answer ${number}`);
    this.remove.hidden = alone;
  }

  /** Set λ: any value on a live server, else the nearest variant's. */
  move(lambda) {
    const nearest = (best, place) => (Math.abs(place - lambda) < Math.abs(best - lambda) ? place : best);
    this.lambda = this.family.any_lambda || !this.places.length ? Math.round(100 * lambda) / 100 : this.places.reduce(nearest);
    this.#show(this.lambda);
  }

  #show(lambda) {
    this.slider.value = lambda;
    this.value.textContent = lambdaText(lambda);
    const variant = this.family.any_lambda ? null : this.family.variants.find((v) => v.lambda === lambda);
    this.which.textContent = variant?.id ?? "";
    this.slider.setAttribute("aria-valuetext", `${lambdaText(lambda)}${variant ? `, ${variant.id}` : ""}${this.auto ? ", chosen by the router" : ""}`);
    tint(this.element, lambda);
  }

  #build() {
    const ticks = this.family.any_lambda ? [0, 0.25, 0.5, 0.75, 1] : this.places;
    this.value = h("output", { className: "lambda-value" });
    this.which = h("span", { className: "which" });
    this.slider = h("input", {
      type: "range", min: 0, max: 1, step: this.family.any_lambda ? 0.01 : 0.001, className: "lambda",
      oninput: () => this.#chosen(Number(this.slider.value)), onkeydown: (event) => this.#key(event),
    });
    this.autoBox = h("input", { type: "checkbox", onchange: () => this.#toggle() });
    this.remove = h("button", { type: "button", className: "quiet", onclick: () => this.on.removed(this) }, "×");
    this.thoughtText = h("div", { className: "thought-text", tabIndex: 0, role: "region", "aria-label": "Thoughts" });
    this.thoughtCount = h("span", { className: "count" });
    this.peek = h("span", { className: "peek", "aria-hidden": "true" });
    this.thoughts = h("details", { className: "thoughts", hidden: true },
      h("summary", {}, h("span", { className: "thought-name" }, "Thoughts"), this.thoughtCount, this.peek), this.thoughtText);
    this.text = h("div", { className: "answer-text" });
    this.empty = h("p", { className: "empty" }, "No answer yet.");
    this.trouble = h("p", { className: "trouble", role: "alert", hidden: true });
    this.decision = h("div", { className: "decision", hidden: true });
    this.stats = h("dl", { className: "stats" });
    this.element = h("article", { className: "card lane" },
      h("header", {},
        h("div", { className: "lane-top" },
          h("span", { className: "lambda-name" }, "λ ", this.value), this.which,
          h("label", { className: "check auto", title: "The router estimates λ(q) for this prompt" }, this.autoBox, " auto"), this.remove),
        h("div", { className: "slide" }, this.slider,
          h("div", { className: "ticks", "aria-hidden": "true" }, ticks.map((at) => this.#tick(at)))),
        h("div", { className: "ends", "aria-hidden": "true" }, h("span", {}, "Instruct · fast"), h("span", {}, "Thinking · deliberate"))),
      this.decision, this.thoughts, this.empty, this.text, this.trouble, this.stats);
  }

  #tick(at) {
    const made = h("i", {});
    made.style.setProperty("--x", at);
    return made;
  }

  #chosen(lambda) {
    if (this.auto) {
      this.autoBox.checked = false;
      this.#toggle();
    }
    const before = this.lambda;
    this.move(lambda);
    if (this.lambda !== before || this.family.any_lambda) this.on.changed(this);
  }

  /** With variants, the arrow keys go from one to the next. */
  #key(event) {
    if (this.family.any_lambda || !this.places.length) return;
    const at = this.places.indexOf(this.lambda);
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, PageDown: at - 1, Home: 0, End: this.places.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (this.places[to] !== undefined) this.#chosen(this.places[to]);
  }

  #toggle() {
    this.auto = this.autoBox.checked;
    this.element.classList.toggle("is-auto", this.auto);
    this.#show(this.lambda);
    if (!this.auto) this.decision.hidden = true;
    else this.on.changed(this);
  }

  /** Ask once the slider rests. */
  soon(prompt, settings) {
    clearTimeout(this.timer);
    this.element.setAttribute("aria-busy", "true");
    this.timer = setTimeout(() => this.ask(prompt, settings), PAUSE_MS);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.control?.abort();
    if (!this.control) this.element.removeAttribute("aria-busy");
  }

  /** Ask, and show what comes; an answer that still runs is stopped first. */
  async ask(prompt, settings) {
    this.stop();
    const control = (this.control = new AbortController());
    const run = new Run(this, prompt);
    this.element.setAttribute("aria-busy", "true");
    try {
      const body = { model: this.model, messages: [{ role: "user", content: prompt }], ...settings };
      if (this.auto) run.decided(await json("v1/route", body, control.signal));
      for await (const part of chat(body, control.signal, (headers) => run.begun(headers))) {
        if (control.signal.aborted) break;
        run.take(part);
      }
      run.end(control.signal.aborted ? "stopped" : null);
    } catch (error) {
      if (this.control !== control && error.name === "AbortError") return;  // another one runs
      if (error.name === "AbortError") run.end("stopped");
      else run.failed(error);
    } finally {
      run.close();
      if (this.control === control) {
        this.control = null;
        if (!this.timer) this.element.removeAttribute("aria-busy");
        this.on.ended(this, run);
      }
    }
  }
}

/** One answer in progress. */
class Run {
  constructor(lane, prompt) {
    this.lane = lane;
    this.prompt = prompt;
    this.auto = lane.auto;
    this.lambda = lane.lambda;
    this.began = performance.now();
    this.first = null;
    this.pieces = { thought: 0, answer: 0 };
    this.splitter = null;
    this.total = null;
    this.finish = null;
    this.apart = false;
    this.route = null;
    this.headers = null;
    this.thoughtNode = new Text();
    this.answerNode = new Text();
    this.reading = new Reading(lane.title);
    lane.empty.hidden = true;
    lane.trouble.hidden = true;
    lane.decision.hidden = true;
    lane.thoughts.hidden = true;
    lane.thoughtText.replaceChildren(this.thoughtNode);
    lane.text.replaceChildren(this.answerNode);
    lane.stats.replaceChildren();
    this.timer = setInterval(() => this.#stats(), 100);
    this.#stats();
  }

  decided(route) {
    this.route = route;
    this.#decision(route.lambda);
  }

  begun(headers) {
    const lambda = Number(headers.get("x-dami-lambda"));
    this.headers = { variant: headers.get("x-dami-variant") ?? "", attempts: Number(headers.get("x-dami-attempts") ?? 1), lambda };
    this.splitter = new Splitter(this.#opensThink(this.headers.variant, lambda));
    if (this.auto) {
      this.lambda = lambda;
      this.#decision(lambda);
    } else if (this.headers.attempts > 1 || !this.#asAsked()) {
      this.#decision(lambda);
    }
  }

  #asAsked() {
    const { variant } = this.headers;
    return variant.startsWith("dami:") || this.lane.family.variants.find((v) => v.id === variant)?.lambda === this.lane.lambda;
  }

  #opensThink(variant, lambda) {
    const family = this.lane.family;
    if (variant.startsWith("dami:")) return family.opens_think_from !== null && lambda >= family.opens_think_from;
    return family.variants.find((v) => v.id === variant)?.opens_think ?? false;
  }

  take({ text, thought, tokens, finish }) {
    if (thought && !this.apart) {
      this.apart = true;  // the server separates thoughts itself
      this.splitter = new Splitter(false);
    }
    const [more, answer] = this.splitter.feed(text);
    if (text || thought) this.first ??= performance.now();
    if (thought || more || (text && this.splitter.state === "inside")) this.pieces.thought += 1;
    else if (text) this.pieces.answer += 1;
    this.#add(thought + more, answer);
    if (tokens !== null) this.total = tokens;
    if (finish) this.finish = finish;
  }

  #add(thought, answer) {
    const { lane } = this;
    if (thought) {
      this.thoughtNode.appendData(thought);
      lane.thoughts.hidden = false;
      lane.peek.textContent = this.thoughtNode.data.slice(-120);
      lane.thoughts.classList.toggle("now", !answer);
    }
    if (answer) {
      this.answerNode.appendData(answer);
      this.reading.add(answer);
      lane.thoughts.classList.remove("now");
    }
  }

  get thoughtTokens() {
    const all = this.pieces.thought + this.pieces.answer;
    return this.total === null || !all ? this.pieces.thought : Math.round((this.total * this.pieces.thought) / all);
  }

  get tokens() {
    return this.total ?? this.pieces.thought + this.pieces.answer;
  }

  get took() {
    return ((this.ended ?? performance.now()) - this.began) / 1000;
  }

  #stats() {
    const { lane } = this;
    const about = this.total === null ? "≈ " : "";
    const rows = [["Tokens", `${about}${count(this.tokens)}`], ["Time", seconds(this.took)]];
    if (this.first) {
      rows.push(["First token", seconds((this.first - this.began) / 1000)]);
      const span = ((this.ended ?? performance.now()) - this.first) / 1000;
      if (this.tokens > 1 && span > 0.2) rows.push(["Rate", `${count((this.tokens - 1) / span)} /s`]);
    }
    lane.stats.replaceChildren(...rows.map(([name, value]) => h("div", { className: name.toLowerCase() }, h("dt", {}, name), h("dd", {}, value))));
    lane.thoughtCount.textContent = plural(this.thoughtTokens, "token");
  }

  #decision(lambda) {
    const { lane, route } = this;
    if (this.auto) {
      const variant = this.headers?.variant ?? "";
      lane.slider.value = lambda;
      lane.value.textContent = lambdaText(lambda);
      lane.which.textContent = variant.startsWith("dami:") ? "" : variant;
      tint(lane.element, lambda);
    }
    const facts = [];
    if (this.auto && route) {
      facts.push(["λ(q)", lambdaText(lambda)], ["Estimator", `${route.estimator}, ${seconds(route.route_ms / 1000)}`]);
      if (route.estimator === "fixed") {
        const { estimators } = lane.family;
        facts.push(["Because", estimators.length ? `no result from ${estimators.join(", ")}` : "no estimator is configured"]);
      }
      for (const [name, value] of Object.entries(route.evidence)) {
        facts.push([name.replaceAll("_", " "), typeof value === "number" ? String(Number(value.toPrecision(3))) : String(value)]);
      }
    }
    if (this.headers) {
      const { variant, attempts } = this.headers;
      facts.push(["Answered by", variant]);
      const wanted = route?.variant;
      if (attempts > 1 || (wanted && wanted !== variant)) {
        const from = wanted && wanted !== variant ? `from ${wanted} ` : "";
        facts.push(["Fallback", `${from}after ${plural(attempts - 1, "failed call")}`]);
      } else if (this.auto) facts.push(["Fallback", "none"]);
    } else if (route) facts.push(["Variant", route.variant]);
    lane.decision.replaceChildren(h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
    lane.decision.hidden = false;
  }

  end(how) {
    const rest = this.splitter?.end() ?? ["", ""];
    this.#add(...rest);
    this.#close();
    if (how === "stopped") this.#trouble("Stopped.", "note");
    else if (this.finish === "length") this.#trouble("The answer reached the limit of tokens before its end.", "note");
    else if (!this.answerNode.data && !this.thoughtNode.data) this.#trouble("The answer is empty.", "note");
    this.done = how !== "stopped";
    this.reading.end(`${how === "stopped" ? "Stopped" : "Done"}: ${plural(this.tokens, "token")}, ${seconds(this.took)}.`);
  }

  failed(error) {
    this.#close();
    const status = error instanceof ApiError ? error.status : 0;
    if (status === 401) this.lane.on.denied();
    const what = { 429: "Too many requests at once. Try again in a moment." }[status];
    this.#trouble(what ?? (error instanceof ApiError ? error.message : "The answer broke off: the connection ended."), "");
    if (!(error instanceof ApiError)) console.warn(error.name);
  }

  #trouble(text, kind) {
    const { trouble } = this.lane;
    trouble.textContent = text;
    trouble.className = `trouble ${kind}`;
    trouble.hidden = false;
  }

  close() {
    clearInterval(this.timer);
  }

  #close() {
    this.ended = performance.now();
    this.close();
    this.lane.thoughts.classList.remove("now");
    this.lane.peek.textContent = this.thoughtNode.data.slice(0, 300);
    this.#stats();
  }
}

export const announceStart = (lanes) => say(lanes.length === 1 ? `Answering at λ ${lambdaText(lanes[0].lambda)}.` : `Answering at ${lanes.length} values of λ.`);
