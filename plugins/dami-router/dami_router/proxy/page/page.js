// The page: which view is shown, the theme, the key, and the state that is read once a second.

import { ApiError, json, useKey } from "./api.js";
import { byId } from "./dom.js";
import { Frontier } from "./frontier.js";
import { Now } from "./now.js";
import { Playground } from "./playground.js";

const VIEWS = ["playground", "frontier", "now"];
const EVERY_MS = { now: 1000, other: 5000 };
let playground = null;
let now = null;
let timer = 0;
let locked = false;

// `#now`, or `#playground?prompt=…&lambda=…`: the part behind `#` never leaves the browser.
function asked() {
  const [view, query] = location.hash.slice(1).split("?");
  return [VIEWS.includes(view) ? view : "playground", new URLSearchParams(query ?? "")];
}

function show(focus) {
  const [view, query] = asked();
  for (const name of VIEWS) {
    byId(`view-${name}`).hidden = name !== view;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${{ playground: "Playground", frontier: "Frontier", now: "Now" }[view]} · DAMI`;
  if (query.has("prompt")) byId("prompt").value = query.get("prompt");
  const lambda = Number(query.get("lambda"));
  if (query.has("lambda") && lambda >= 0 && lambda <= 1) playground?.show(lambda);
  if (focus) byId("main").focus({ preventScroll: true });
  if (now) poll();
}

async function start() {
  let family;
  try {
    family = await json("ui/data");
  } catch (error) {
    if (error.status === 401) login("");
    else offline(error);
    return;
  }
  offline(null);
  byId("family").textContent = family.name;
  now = new Now(family);
  playground = new Playground(family, () => login("The key is no longer accepted."));
  new Frontier(family, (lambda) => {
    location.hash = "#playground";
    playground.show(lambda);
  });
  show(false);
}

/** Read the state once a second while it is in view, and rarely otherwise; not at all in a hidden tab. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    now.show(await json("ui/now"));
    offline(null);
  } catch (error) {
    if (error.status === 401) {
      login("The key is no longer accepted.");
      return;
    }
    offline(error);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, asked()[0] === "now" ? EVERY_MS.now : EVERY_MS.other);
}

function offline(error) {
  byId("offline").hidden = error === null;
  const said = error === null ? "" : error instanceof ApiError ? error.message : "This page could not start.";
  if (byId("offline").textContent !== said) byId("offline").textContent = said;
  if (error && !now) setTimeout(start, 2000);
}

function login(why) {
  locked = true;
  byId("login-why").textContent = why;
  if (!byId("login").open) byId("login").showModal();
  byId("key").focus();
}

// Without a key there is nothing behind the dialog: Escape does not leave it.
byId("login").addEventListener("close", () => locked && byId("login").showModal());
byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  // A header holds nothing else; the browser would refuse it without saying why.
  useKey(/^[\x21-\x7e]+$/.test(given) ? given : "-");
  try {
    await json("ui/now");
  } catch (error) {
    byId("login-why").textContent = error.status === 401 ? "The router does not accept this key." : error.message;
    byId("key").select();
    return;
  }
  locked = false;
  byId("key").value = "";
  byId("login").close();
  if (now) poll();
  else start();
});

const THEMES = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "○", dark: "●" };

function themed(next) {
  const root = document.documentElement;
  const current = root.dataset.theme ?? "system";
  const theme = next ? THEMES[(THEMES.indexOf(current) + 1) % THEMES.length] : current;
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    localStorage.setItem("dami-theme", theme);
  } catch {
    // No storage: the choice lasts until the page is closed.
  }
  byId("theme-sign").textContent = SIGNS[theme];
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  byId("theme").title = `Theme: ${theme}`;
}

byId("theme").addEventListener("click", () => themed(true));
themed(false);
window.addEventListener("hashchange", () => show(true));
document.addEventListener("visibilitychange", () => !document.hidden && now && poll());
show(false);
start();
