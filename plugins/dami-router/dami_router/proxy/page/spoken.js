// What a screen reader hears of the answers: whole sentences, every few seconds, never token by token.

import { byId, h } from "./dom.js";

const PAUSE_MS = 3000;
const KEPT = 6;
const LONGEST = 4000;
let waiting = [];
let timer = 0;

/** Say this soon, after what waits already. */
export function say(text) {
  waiting.push(text);
  if (!timer) timer = setTimeout(flush, 150);
}

function flush() {
  const region = byId("spoken");
  region.append(...waiting.map((text) => h("p", {}, text)));
  waiting = [];
  while (region.children.length > KEPT) region.firstChild.remove();
  timer = 0;
}

/** Collects an answer and says its whole sentences, at most one time in three seconds. */
export class Reading {
  constructor(name) {
    this.name = name;
    this.text = "";
    this.last = performance.now();
  }

  add(text) {
    this.text += text;
    const end = Math.max(this.text.lastIndexOf(". "), this.text.lastIndexOf("\n")) + 1;
    if (end > 0 && performance.now() - this.last > PAUSE_MS) {
      say(`${this.name}: ${this.text.slice(0, end).trim()}`);
      this.text = this.text.slice(end);
      this.last = performance.now();
    }
  }

  end(summary) {
    const text = this.text.trim();
    const rest = text.length > LONGEST ? "… The rest is on the page." : "";
    say(`${this.name}: ${text.slice(0, LONGEST)}${rest} ${summary}`);
  }
}
