// Measured accuracy against tokens, by λ: from the manifest, or from a report.

import { byId, count, h, lambdaText, s, table, tint } from "./dom.js";

const MARK = 6;
const KINDS = {
  variant: { sign: "●", name: "variant", note: "" },
  capped: { sign: "□", name: "thinking capped", note: "thinking capped" },
  routed: { sign: "★", name: "routed", note: "" },
  oracle: { sign: "◇", name: "oracle", note: "chosen in hindsight" },
};
const EDGE = { left: 52, right: 18, top: 14, bottom: 44 };

export class Frontier {
  /** `tried` is called with a λ to try in the playground. */
  constructor(family, tried) {
    this.family = family;
    this.tried = tried;
    this.index = 0;
    this.place = byId("frontier");
    new ResizeObserver(() => this.#draw()).observe(this.place);
    this.#build();
  }

  get shown() {
    return this.family.frontiers[this.index];
  }

  #build() {
    const { frontiers } = this.family;
    if (!frontiers.length) {
      this.place.replaceChildren(h("div", { className: "card" }, ...howTo()));
      return;
    }
    this.chart = h("div", { className: "chart" });
    this.legend = h("ul", { className: "legend" });
    this.below = h("div", {});
    const pick = frontiers.length < 2 ? [] : [h("label", { className: "pick" }, "Measured on ",
      h("select", { onchange: (event) => this.#choose(Number(event.target.value)) },
        frontiers.map((one, i) => h("option", { value: i }, one.title))))];
    this.place.replaceChildren(...pick, h("div", { className: "card" }, this.chart, this.legend), this.below);
    this.#choose(0);
  }

  #choose(index) {
    this.index = index;
    this.#draw();
    const { points, queries, title } = this.shown;
    this.legend.replaceChildren(...legend(points));
    const routed = points.some((point) => point.kind === "routed");
    this.below.replaceChildren(
      h("div", { className: "card" }, h("h2", {}, title),
        h("p", { className: "hint" }, `${queries ? `${count(queries)} queries. ` : ""}Brackets: 95 % intervals. Dominated: another variant is at least as accurate and no more expensive.`),
        table("Accuracy and tokens", ["choice", "λ", "accuracy %", "tokens", "note", "playground"], points.map((point) => this.#row(point)), [0, 4])),
      ...(routed ? [] : [h("div", { className: "card" }, h("h2", {}, "Where routing lands"), ...howToRoute())]));
  }

  #row(point) {
    const { sign, note } = KINDS[point.kind];
    const name = point.kind === "variant" ? point.name : `${sign} ${point.name}`;
    const go = point.kind === "variant" && point.lambda !== null
      ? h("button", { type: "button", className: "small", "aria-label": `Try it: λ = ${lambdaText(point.lambda)}`, onclick: () => this.tried(point.lambda) }, "Try it")
      : "";
    return [name, point.lambda === null ? "" : Number(point.lambda).toFixed(2), interval(point.accuracy, 100), interval(point.tokens, 1), point.dominated ? "dominated" : note, go];
  }

  #draw() {
    if (!this.chart || !this.place.clientWidth) return;
    const width = this.chart.clientWidth;
    const height = Math.round(Math.min(460, Math.max(280, width * 0.5)));
    this.chart.replaceChildren(picture(this.shown, width, height));
  }
}

function legend(points) {
  const used = Object.entries(KINDS).filter(([kind]) => points.some((point) => point.kind === kind)).map(([, { sign, name }]) => [sign, name]);
  const hollow = points.some((point) => point.dominated) ? [["○", "dominated"]] : [];
  return [...used, ...hollow, ["- -", "best random mixture of variants"]]
    .map(([sign, text]) => h("li", {}, h("span", { "aria-hidden": "true" }, sign), text));
}

function interval({ mean, low, high }, scale) {
  const text = (x) => (scale * x).toFixed(1);
  const range = low === null || high === null ? "" : ` [${text(low)}, ${text(high)}]`;
  return h("span", { className: "whole" }, h("strong", {}, text(mean)), range);
}

function picture({ points, title }, width, height) {
  const ends = (values) => [Math.min(...values), Math.max(...values)];
  const x = scale(ends(points.flatMap((p) => [p.tokens.low ?? p.tokens.mean, p.tokens.high ?? p.tokens.mean])), EDGE.left, width - EDGE.right, Math.min(8, width / 72), 0);
  const y = scale(ends(points.flatMap((p) => [p.accuracy.low ?? p.accuracy.mean, p.accuracy.high ?? p.accuracy.mean].map((v) => 100 * v))), height - EDGE.bottom, EDGE.top, 5, 0, 100);
  const at = (p) => [x.at(p.tokens.mean), y.at(100 * p.accuracy.mean)];
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: accuracy against mean tokens; the table below has the numbers.` });
  for (const tick of x.ticks) svg.append(s("line", { x1: x.at(tick), x2: x.at(tick), y1: EDGE.top, y2: height - EDGE.bottom, class: "grid" }),
    s("text", { x: x.at(tick), y: height - EDGE.bottom + 18, class: "tick", "text-anchor": "middle" }, count(tick)));
  for (const tick of y.ticks) svg.append(s("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y.at(tick), y2: y.at(tick), class: "grid" }),
    s("text", { x: EDGE.left - 8, y: y.at(tick) + 4, class: "tick", "text-anchor": "end" }, tick));
  svg.append(s("text", { x: (EDGE.left + width - EDGE.right) / 2, y: height - 6, class: "axis", "text-anchor": "middle" }, "mean tokens per answer"),
    s("text", { transform: `translate(14 ${(height - EDGE.bottom + EDGE.top) / 2}) rotate(-90)`, class: "axis", "text-anchor": "middle" }, "accuracy, %"));
  const variants = points.filter((p) => p.kind === "variant");
  const hull = best(variants.map(at));
  svg.append(s("polyline", { points: hull.map((p) => p.join(",")).join(" "), class: "hull" }));
  const taken = points.map((p) => around(...at(p), MARK + 2));
  const lines = hull.slice(1).flatMap((end, i) => along(hull[i], end));
  for (const point of points) svg.append(bars(point, x, y));
  points.forEach((point, i) => svg.append(...beside(point, ...at(point), taken, i)));
  points.forEach((point, i) => {
    const box = taken[i];
    svg.append(label(point, (box.left + box.right) / 2, (box.top + box.bottom) / 2, taken, lines, width, height));
  });
  return svg;
}

/** A linear scale with round ticks, a little wider than the values. */
function scale([low, high], from, to, wanted, floor, ceiling = Infinity) {
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const [a, b] = [Math.max(floor, low - room), Math.min(ceiling, high + room)];
  const rough = (b - a) / Math.max(2, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
  const ticks = [];
  for (let tick = Math.ceil(a / step) * step; tick <= b + 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return { at: (value) => from + ((value - a) / (b - a)) * (to - from), ticks };
}

/** The upper left hull: what the variants, and random mixtures of them, reach at best. In pixels, y grows downwards. */
function best(places) {
  const sorted = [...places].sort((p, q) => p[0] - q[0] || p[1] - q[1]);
  const hull = [];
  for (const place of sorted) {
    if (hull.length && place[1] >= hull.at(-1)[1]) continue;
    while (hull.length > 1 && turn(hull.at(-2), hull.at(-1), place) <= 0) hull.pop();
    hull.push(place);
  }
  return hull;
}

const turn = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);

function bars({ accuracy, tokens }, x, y) {
  const group = s("g", { class: "bars" });
  const [cx, cy] = [x.at(tokens.mean), y.at(100 * accuracy.mean)];
  if (accuracy.low !== null && accuracy.high !== null) group.append(s("line", { x1: cx, x2: cx, y1: y.at(100 * accuracy.low), y2: y.at(100 * accuracy.high) }));
  if (tokens.low !== null && tokens.high !== null) group.append(s("line", { x1: x.at(tokens.low), x2: x.at(tokens.high), y1: cy, y2: cy }));
  return group;
}

function mark(point, cx, cy) {
  const shapes = {
    variant: () => s("circle", { cx, cy, r: MARK }),
    routed: () => s("path", { d: star(cx, cy, MARK + 4) }),
    capped: () => s("rect", { x: cx - MARK + 1, y: cy - MARK + 1, width: 2 * MARK - 2, height: 2 * MARK - 2 }),
    oracle: () => s("path", { d: `M${cx} ${cy - MARK - 2}l${MARK + 2} ${MARK + 2}l${-MARK - 2} ${MARK + 2}l${-MARK - 2} ${-MARK - 2}z` }),
  };
  const made = shapes[point.kind]();
  made.setAttribute("class", `mark ${point.kind}${point.dominated ? " dominated" : ""}`);
  if (point.lambda !== null) tint(made, point.lambda);
  made.append(s("title", {}, `${point.name}: ${(100 * point.accuracy.mean).toFixed(1)} % at ${count(point.tokens.mean)} tokens${point.dominated ? ", dominated" : ""}`));
  return made;
}

function star(cx, cy, r) {
  const corner = (i) => {
    const [size, angle] = [i % 2 ? r * 0.45 : r, (Math.PI * i) / 5 - Math.PI / 2];
    return `${(cx + size * Math.cos(angle)).toFixed(1)} ${(cy + size * Math.sin(angle)).toFixed(1)}`;
  };
  return `M${Array.from({ length: 10 }, (_, i) => corner(i)).join("L")}Z`;
}

/** A mark, or a star beside its point with a line to it where it would hide another mark. `taken` holds all marks. */
function beside(point, cx, cy, taken, index) {
  if (point.kind !== "routed") return [mark(point, cx, cy)];
  const others = taken.filter((_, i) => i !== index);
  const shift = [0, 14, -14, 28, -28, 42, -42, 56].find((d) => !others.slice(0, index).some((o) => meets(o, around(cx + d, cy, MARK)))) ?? 0;
  taken[index] = around(cx + shift, cy, MARK + 2);
  const line = shift ? [s("line", { x1: cx, x2: cx + shift, y1: cy, y2: cy, class: "leader" })] : [];
  return [...line, mark(point, cx + shift, cy)];
}

const around = (x, y, r) => ({ left: x - r, right: x + r, top: y - r, bottom: y + r });
const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

/** Small boxes along a line. */
const along = ([x0, y0], [x1, y1]) => Array.from({ length: 41 }, (_, i) => around(x0 + ((x1 - x0) * i) / 40, y0 + ((y1 - y0) * i) / 40, 2));

/** A label at the first place beside its mark that is free of marks and labels, at first also of lines; far ones get a line. */
function label(point, cx, cy, taken, lines, width, height) {
  const text = point.kind === "variant" ? `λ ${point.lambda === null ? "" : lambdaText(point.lambda)}` : point.name;
  const [w, high] = [text.length * 6.9 + 2, 15];
  for (const [far, free] of [[10, lines], [10, []], [18, []], [30, []], [44, []], [60, []], [80, []]]) {
    for (const [dx, dy] of [[1, -0.8], [1, 0.8], [-1, -0.8], [-1, 0.8], [0, -1.4], [0, 1.4], [1, 0], [-1, 0]]) {
      const left = cx + dx * far + (dx < 0 ? -w : dx === 0 ? -w / 2 : 0);
      const top = cy + dy * far - high / 2;
      const box = { left, right: left + w, top, bottom: top + high };
      const inside = box.left > EDGE.left && box.right < width - 4 && box.top > 2 && box.bottom < height - EDGE.bottom;
      if (!inside || [...taken, ...free].some((other) => meets(other, box))) continue;
      taken.push(box);
      const group = s("g", {});
      if (far > 10) group.append(s("line", { x1: cx, y1: cy, x2: dx < 0 ? box.right : dx > 0 ? box.left : cx, y2: dy < 0 && dx === 0 ? box.bottom : dy > 0 && dx === 0 ? box.top : top + high / 2, class: "leader" }));
      group.append(s("text", { x: left + 1, y: top + 12, class: "label" }, text));
      return group;
    }
  }
  return s("g", {});
}

const step = (text, ...commands) => [h("p", {}, text), h("pre", {}, commands.join("\n"))];

function howTo() {
  return [
    h("h2", {}, "Nothing is measured yet"),
    h("p", {}, "The frontier shows how accurate the family is at each λ, and how many tokens that costs. Three commands measure it:"),
    h("ol", { className: "steps" },
      h("li", {}, ...step("Run every question of a dataset at every variant. A stopped run continues.", "dami rollout router.yml --dataset questions.jsonl --out rollouts.jsonl")),
      h("li", {}, ...step("Write the figures into the family’s manifest, and a report with the routed point:", "dami eval rollouts.jsonl --report report --write-manifest FAMILY/dami_family.json")),
      h("li", {}, ...step("Serve with the report. A router.yml that names the family reads the manifest by itself.", "dami serve router.yml --report report", "dami live INSTRUCT THINKING --report report"))),
  ];
}

function howToRoute() {
  return step("These are figures of single variants. The report of an estimator also has the point that it reaches:",
    "dami eval rollouts.jsonl --report report", "dami serve router.yml --report report");
}
