// The router's state, read once a second while it is in view: which server is down, and what the router does about it.

import { byId, count, h, lambdaText, seconds, table, tint } from "./dom.js";

const SIGNS = { alive: "●", dead: "✕", wrong: "✕", unknown: "○" };
const WORDS = { alive: "up", dead: "down", wrong: "wrong model", unknown: "not checked yet" };
const SPAN_S = 60;

export class Now {
  constructor(family) {
    this.family = family;
    this.history = [];
    this.last = "";
  }

  show(data) {
    const metrics = new Metrics(data.metrics);
    this.#badge(data.servers);
    this.#remember(metrics);
    const text = `${JSON.stringify(data)}${this.#rate()}`;
    if (text === this.last || byId("view-now").hidden) return;  // unchanged: selections and focus stay
    this.last = text;
    this.#summary(data.servers);
    const kept = document.activeElement?.closest?.(".scroll")?.getAttribute("aria-label");
    const scrolled = new Map([...byId("state").querySelectorAll(".scroll")].map((box) => [box.getAttribute("aria-label"), box.scrollLeft]));
    byId("state").replaceChildren(...[
      card("Servers", servers(data.servers)),
      card("Requests", this.#tiles(metrics), kinds(metrics)),
      h("div", { className: "pair" }, card("λ of requests", lambdas(metrics)), card("Tokens", tokens(metrics))),
      h("div", { className: "pair" }, card("Fallbacks", fallbacks(metrics)), card("Failed calls to servers", failures(metrics))),
      shadows(metrics),
    ].filter(Boolean));
    for (const box of byId("state").querySelectorAll(".scroll")) {
      box.scrollLeft = scrolled.get(box.getAttribute("aria-label")) ?? 0;
      if (box.getAttribute("aria-label") === kept) box.focus({ preventScroll: true });
    }
  }

  #badge(all) {
    const bad = all.filter((server) => server.health !== "alive").length;
    const badge = byId("health");
    badge.hidden = bad === 0;
    badge.textContent = bad ? `${bad} of ${all.length} down` : "";
  }

  #summary(all) {
    const bad = all.filter((server) => server.health !== "alive");
    const lines = bad.length
      ? bad.map((server) => h("p", { className: "bad-text" }, `${SIGNS[server.health]} ${described(server)} ${remedy(server)}`))
      : [h("p", { className: "good-text" }, `● ${all.length === 1 ? "The server is up." : `All ${all.length} servers are up.`}`)];
    const said = lines.map((line) => line.textContent).join(" ");
    if (byId("summary").textContent !== said) byId("summary").replaceChildren(...lines);
  }

  #remember(metrics) {
    const at = performance.now() / 1000;
    this.history.push([at, metrics.sum("dami_requests_total")]);
    while (this.history.length > 2 && at - this.history[0][0] > SPAN_S) this.history.shift();
  }

  #rate() {
    const [[t0, n0], [t1, n1]] = [this.history[0], this.history.at(-1)];
    return t1 - t0 < 1 ? "–" : ((n1 - n0) / (t1 - t0)).toFixed(1);
  }

  #tiles(metrics) {
    const failed = metrics.sum("dami_requests_total", (labels) => Number(labels.status) >= 400 || labels.status === "other");
    const requests = metrics.sum("dami_requests_total");
    const mean = (name) => (metrics.sum(`${name}_count`) ? seconds(metrics.sum(`${name}_sum`) / metrics.sum(`${name}_count`)) : "–");
    const live = metrics.has("dami_live_rows")
      ? [["Answers in the batch", count(metrics.sum("dami_live_rows"))], ["Waiting for the batch", count(metrics.sum("dami_live_waiting"))]] : [];
    const tiles = [
      ["Requests", count(requests)], ["With an error", count(failed)], ["Per second, last minute", this.#rate()],
      ["In progress", count(metrics.sum("dami_inside"))], ["Waiting", count(metrics.sum("dami_waiting"))], ...live,
      ["Mean time to decide", mean("dami_route_seconds")], ["Mean time of a request", mean("dami_request_seconds")],
      ["Clients that left", count(metrics.sum("dami_clients_gone_total"))], ["Replies that broke off", count(metrics.sum("dami_broken_replies_total"))],
    ];
    return h("dl", { className: "tiles" }, tiles.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }
}

/** Metrics by name: lists of [labels, value]. */
class Metrics {
  constructor(found) {
    this.found = found;
  }

  has(name) {
    return name in this.found;
  }

  all(name) {
    return this.found[name] ?? [];
  }

  sum(name, which = () => true) {
    return this.all(name).reduce((sum, [labels, value]) => sum + (which(labels) ? value : 0), 0);
  }

  /** Sums by one label, largest first. */
  by(name, label, which = () => true) {
    const sums = new Map();
    for (const [labels, value] of this.all(name).filter(([of]) => which(of))) sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value);
    return [...sums].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  }

  names(prefix) {
    return Object.keys(this.found).filter((name) => name.startsWith(prefix));
  }
}

const card = (title, ...content) => h("section", { className: "card" }, h("h2", {}, title), ...content);

const named = (server) => (server.variant === "live" ? "The live server" : server.variant);

function described(server) {
  const why = server.trouble ? `: ${server.trouble}` : "";
  return server.url === "in-process" ? `The engine is ${WORDS[server.health]}${why}.` : `${named(server)} at ${server.url} is ${WORDS[server.health]}${why}.`;
}

function remedy(server) {
  const breaker = server.breaker === "open" ? " Its breaker is open: it gets no requests for now." : server.breaker === "half-open" ? " Its breaker lets one trial through." : "";
  if (server.instead === null) return `No other server can take its requests.${breaker}`;
  if (server.instead === server.variant) return `Another replica takes its requests.${breaker}`;
  if (server.instead === "nearest") return `The variant nearest to λ(q) takes its requests.${breaker}`;
  return `${server.instead === "live" ? "A live server" : server.instead} takes its requests.${breaker}`;
}

function servers(all) {
  const sorted = [...all].sort((a, b) => (a.lambda ?? -1) - (b.lambda ?? -1) || a.variant.localeCompare(b.variant));
  const rows = sorted.map((server) => {
    const bad = server.health !== "alive";
    return [
      server.variant === "live" ? "live, every λ" : server.variant,
      server.lambda === null ? "0–1" : lambdaText(server.lambda),
      h("span", { className: `state ${bad ? "bad-text" : "good-text"}` }, `${SIGNS[server.health]} ${WORDS[server.health]}`),
      h("span", { className: server.breaker === "closed" ? "" : "warn-text" }, server.breaker),
      count(server.outstanding), server.model ?? "–", server.protocol, server.url,
    ];
  });
  return table("Servers", ["variant", "λ", "health", "breaker", "calls", "identity", "protocol", "address"], rows, [0, 2, 3, 5, 6, 7]);
}

/** Requests by status and by route, in one line each. */
function kinds(metrics) {
  const line = (name, label) => {
    const found = metrics.by("dami_requests_total", label);
    return found.length ? h("p", { className: "hint" }, `By ${name}: ${found.map(([value, n]) => `${value} × ${count(n)}`).join(", ")}`) : null;
  };
  return h("div", { className: "kinds" }, line("status", "status"), line("route", "route"));
}

function lambdas(metrics) {
  const upTo = metrics.all("dami_lambda_bucket").map(([labels, value]) => [Number(labels.le), value]).filter(([edge]) => edge <= 1);
  const counts = upTo.map(([edge, value], i) => [edge, value - (i ? upTo[i - 1][1] : 0)]);
  const most = Math.max(...counts.map(([, n]) => n), 0);
  if (!most) return h("p", { className: "hint" }, "No request yet.");
  const columns = counts.map(([edge, n]) => {
    const name = edge === 0 ? "0" : `${lambdaText(edge - 0.1)}–${lambdaText(edge)}`;
    const column = h("li", { title: `λ ${name}: ${count(n)}` }, h("span", { className: "n" }, n ? count(n) : ""),
      h("span", { className: "column", "aria-hidden": "true" }), h("span", { className: "edge" }, h("span", { className: "unseen" }, `λ ${name}: ${count(n)}`), h("span", { "aria-hidden": "true" }, lambdaText(edge))));
    column.style.setProperty("--size", `${(100 * n) / most}%`);
    tint(column, Math.max(0, edge - 0.05));
    return column;
  });
  const mean = metrics.sum("dami_lambda_sum") / metrics.sum("dami_lambda_count");
  return h("div", {}, h("ol", { className: "columns" }, columns), h("p", { className: "hint" }, `Each column counts λ up to its number. Mean λ ${mean.toFixed(2)}.`));
}

function tokens(metrics) {
  const used = metrics.by("dami_tokens_total", "variant");
  if (!used.length) return h("p", { className: "hint" }, "No tokens yet.");
  const requests = new Map(metrics.by("dami_requests_total", "variant", (labels) => labels.status === "200"));
  return table("Tokens by variant", ["variant", "answers", "tokens", "mean"],
    used.map(([variant, n]) => [variant, count(requests.get(variant) ?? 0), count(n), count(n / Math.max(1, requests.get(variant) ?? 1))]));
}

function fallbacks(metrics) {
  const all = metrics.all("dami_fallbacks_total").filter(([, n]) => n > 0);
  if (!all.length) return h("p", { className: "hint" }, "None: every request was answered by the variant that was chosen.");
  return table("Fallbacks", ["chosen", "answered by", "requests"], all.map(([labels, n]) => [labels.chosen, labels.answered, count(n)]), [0, 1]);
}

function failures(metrics) {
  const all = metrics.all("dami_upstream_failures_total").filter(([, n]) => n > 0);
  if (!all.length) return h("p", { className: "hint" }, "None.");
  return table("Failed calls", ["variant", "reason", "calls"], all.map(([labels, n]) => [labels.variant, labels.reason.replaceAll("_", " "), count(n)]), [0, 1]);
}

/** Decisions of an estimator that only watches, where one is configured. */
function shadows(metrics) {
  const names = metrics.names("dami_shadow").filter((name) => !name.endsWith("_bucket"));
  if (!names.length) return null;
  const rows = names.flatMap((name) => metrics.all(name).map(([labels, n]) => [
    name.replace(/^dami_shadow_?/, "").replace(/_total$/, "").replaceAll("_", " ") || "decisions",
    Object.entries(labels).map(([label, value]) => `${label} ${value}`).join(", "), String(Math.round(1000 * n) / 1000),
  ]));
  return card("Shadow decisions", table("Shadow decisions", ["", "of", "value"], rows, [0, 1]));
}

