// Elements without markup: text is always a text node, so nothing that a model wrote is ever parsed as HTML.

export const byId = (id) => document.getElementById(id);

/** Make an element: properties (or `on…` listeners, `data-…`, `aria-…` attributes), then children. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  set(made, props);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** The same for SVG, where everything is an attribute. */
export function s(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat());
  return made;
}

function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
}

/** Give an element the colour of λ, between Instruct's and Thinking's. */
export function tint(element, lambda) {
  element.style.setProperty("--at", `${Math.round(100 * lambda)}%`);
}

/** λ as text: at most three digits behind the point. */
export const lambdaText = (lambda) => String(Math.round(1000 * lambda) / 1000);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const NUMBERS = new Intl.NumberFormat("en");
export const count = (n) => NUMBERS.format(Math.round(n));

export const seconds = (s) => (s < 0.01 ? `${(1000 * s).toPrecision(2)} ms` : s < 1 ? `${Math.round(1000 * s)} ms` : `${s < 10 ? s.toFixed(1) : count(s)} s`);

/** A table: header cells, then rows of cells; a cell is text or an element. `left`: columns of text, by index. */
export function table(caption, header, rows, left = [0]) {
  const kind = (i) => (left.includes(i) ? "left" : "");
  return h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("thead", {}, h("tr", {}, header.map((cell, i) => h("th", { scope: "col", className: kind(i) }, cell)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
        i === 0 ? h("th", { scope: "row" }, cell) : h("td", { className: kind(i) }, cell)))))));
}
