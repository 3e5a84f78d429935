// One prompt, up to four λ at once, and the trail of what this prompt has cost so far.

import { byId, h, lambdaText, plural, tint } from "./dom.js";
import { Lane, announceStart } from "./lane.js";

const MOST = 4;
const WORDS = { 2: "Two", 3: "Three", 4: "Four" };

export class Playground {
  constructor(family, denied) {
    this.family = family;
    this.denied = denied;
    this.lanes = [];
    this.trail = new Map();
    this.asked = null;
    byId("any-lambda").textContent = family.any_lambda
      ? "A live server answers at every λ: drag the slider."
      : `This router has ${plural(new Set(family.variants.filter((v) => v.served).map((v) => v.lambda)).size, "variant")}: the slider snaps to their λ.`;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("add").addEventListener("click", () => this.#add(this.#free()));
    byId("four").addEventListener("click", () => this.#four());
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.ask();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    this.#add(family.any_lambda ? 0.5 : 0);
    const n = this.#spread().length;
    byId("four").hidden = n < 2;
    byId("four").textContent = `${WORDS[n]} side by side`;
  }

  /** Show another λ in the first lane. */
  show(lambda) {
    this.lanes[0].move(lambda);
    this.#again(this.lanes[0]);
  }

  ask() {
    const prompt = byId("prompt").value;
    if (!prompt.trim()) {
      byId("prompt").focus();
      return;
    }
    this.asked = prompt;
    announceStart(this.lanes);
    this.lanes.forEach((lane) => lane.ask(prompt, this.#settings()));
    this.#buttons();
  }

  stop() {
    this.lanes.forEach((lane) => lane.stop());
    this.#buttons();
  }

  #settings() {
    const found = {};
    const most = byId("most").valueAsNumber;
    const temperature = byId("temperature").valueAsNumber;
    if (most >= 1) found.max_tokens = Math.round(most);
    if (temperature >= 0) found.temperature = temperature;
    return found;
  }

  /** After a change of λ: answer again once the slider rests. */
  #again(lane) {
    if (this.asked === null || !byId("again").checked) return;
    lane.soon(this.asked, this.#settings());
    this.#buttons();
  }

  #add(lambda) {
    if (this.lanes.length >= MOST) return null;
    const lane = new Lane(this.family, lambda, {
      changed: (changed) => this.#again(changed),
      removed: (removed) => this.#remove(removed),
      ended: (ended, run) => this.#ended(run),
      denied: this.denied,
    });
    this.lanes.push(lane);
    byId("lanes").append(lane.element);
    this.#number();
    return lane;
  }

  #remove(lane) {
    lane.stop();
    this.lanes = this.lanes.filter((other) => other !== lane);
    lane.element.remove();
    this.#number();
    this.lanes[0].slider.focus();
  }

  /** Up to four λ from the smallest to the largest that is served. */
  #spread() {
    const { places } = this.lanes[0];
    const from = this.family.any_lambda ? [0, 0.33, 0.67, 1] : places;
    const n = Math.min(MOST, from.length);
    return Array.from({ length: n }, (_, i) => from[Math.round((i * (from.length - 1)) / Math.max(n - 1, 1))]);
  }

  /** Set one answer for each λ of the spread, and ask where a prompt is there. */
  #four() {
    const spread = this.#spread();
    this.stop();
    this.lanes.slice(spread.length).forEach((lane) => this.#remove(lane));
    spread.forEach((lambda, i) => {
      const lane = this.lanes[i] ?? this.#add(lambda);
      if (lane.auto) lane.autoBox.click();
      lane.move(lambda);
    });
    if (byId("prompt").value.trim()) this.ask();
  }

  /** The λ that is farthest from those in use. */
  #free() {
    const used = this.lanes.map((lane) => lane.lambda);
    const candidates = this.family.any_lambda ? [0, 0.25, 0.5, 0.75, 1] : this.lanes[0].places;
    const distance = (at) => Math.min(...used.map((other) => Math.abs(other - at)));
    return candidates.reduce((best, at) => (distance(at) > distance(best) ? at : best), candidates[0] ?? 0);
  }

  #number() {
    this.lanes.forEach((lane, i) => lane.name(i + 1, this.lanes.length === 1));
    byId("lanes").dataset.count = this.lanes.length;
    byId("add").disabled = this.lanes.length >= MOST;
    this.#buttons();
  }

  #buttons() {
    byId("stop").disabled = !this.lanes.some((lane) => lane.running);
  }

  #ended(run) {
    this.#buttons();
    if (!run.done) return;
    if (run.prompt !== this.trailOf) {
      this.trail.clear();
      this.trailOf = run.prompt;
    }
    this.trail.set(lambdaText(run.lambda), { lambda: run.lambda, tokens: run.tokens, thought: run.thoughtTokens, answer: run.answerNode.data.trim() });
    this.#drawTrail();
  }

  #drawTrail() {
    const found = [...this.trail.values()].sort((a, b) => a.lambda - b.lambda);
    const most = Math.max(...found.map((one) => one.tokens), 1);
    byId("trail").hidden = found.length < 2;
    byId("trail-bars").replaceChildren(...found.map((one) => {
      const bar = h("span", { className: "bar-fill", "aria-hidden": "true" }, h("span", { className: "bar-thought" }));
      bar.style.setProperty("--size", `${(100 * one.tokens) / most}%`);
      bar.firstChild.style.setProperty("--size", `${(100 * one.thought) / Math.max(one.tokens, 1)}%`);
      const made = h("button", { type: "button", onclick: () => this.show(one.lambda) },
        h("span", { className: "trail-lambda" }, `λ ${lambdaText(one.lambda)}`),
        h("span", { className: "trail-bar" }, bar),
        h("span", { className: "trail-tokens" }, plural(one.tokens, "token")),
        h("span", { className: "trail-answer" }, one.answer.slice(0, 120)));
      tint(made, one.lambda);
      return h("li", {}, made);
    }));
  }
}
