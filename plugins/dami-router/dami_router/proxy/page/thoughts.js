// Splits a streamed answer into thoughts and answer, as the router's `thinking: split` does: `<think>…</think>…`,
// `…</think>…` where the chat template opened the block, or no block at all.

const OPEN = "<think>";
const CLOSE = "</think>";

export class Splitter {
  /** `opened`: the prompt ended inside the block. */
  constructor(opened) {
    this.state = opened ? "inside" : "start";
    this.held = "";
    this.fresh = true;
    this.thought = opened;
  }

  /** Take a piece; return [thoughts, answer] that are certain by now. */
  feed(text) {
    this.held += text;
    if (this.state === "start" && !this.#begin()) return ["", ""];
    const thoughts = this.state === "inside" ? this.#think() : "";
    let answer = "";
    if (this.state === "answer") {
      answer = this.held;
      this.held = "";
      if (this.thought && this.fresh) {
        answer = answer.replace(/^\n+/, "");
        this.fresh = !answer;
      }
    }
    return [thoughts, answer];
  }

  /** Return what was held back. */
  end() {
    const held = this.held;
    this.held = "";
    return this.state === "inside" ? [held, ""] : ["", held];
  }

  #begin() {
    const bare = this.held.trimStart();
    if (bare.startsWith(OPEN)) {
      this.thought = true;
      this.state = "inside";
      this.held = bare.slice(OPEN.length);
    } else if (!OPEN.startsWith(bare)) {
      this.state = "answer";
    }
    return this.state !== "start";
  }

  #think() {
    if (this.fresh && (this.held.startsWith(OPEN) || OPEN.startsWith(this.held))) {
      if (this.held.length < OPEN.length) return "";
      this.held = this.held.slice(OPEN.length);
    }
    if (this.held) this.fresh = false;
    const at = this.held.indexOf(CLOSE);
    if (at >= 0) {
      const thoughts = this.held.slice(0, at);
      this.held = this.held.slice(at + CLOSE.length);
      this.state = "answer";
      this.fresh = true;
      return thoughts;
    }
    let keep = Math.min(CLOSE.length - 1, this.held.length);
    while (keep > 0 && !CLOSE.startsWith(this.held.slice(this.held.length - keep))) keep -= 1;
    const thoughts = this.held.slice(0, this.held.length - keep);
    this.held = this.held.slice(this.held.length - keep);
    return thoughts;
  }
}
