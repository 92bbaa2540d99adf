// Picks the view from the last part of the path: whatever stands before it is a proxy's prefix, so every address is relative.
import { fill, h } from "./dom.js";
import { key, showHelp } from "./keys.js";

const views = { "": () => import("./runs.js"), run: () => import("./run.js"), compare: () => import("./compare.js") };
const main = document.getElementById("main");

function toggleTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("agentrl-theme", root.dataset.theme); } catch { /* storage may be switched off */ }
  dispatchEvent(new Event("theme"));
}

document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("help").addEventListener("click", showHelp);
key("/", "search", () => {
  const box = document.querySelector("main input[type=search]:not([hidden])");
  if (!box) return false;
  box.focus();
  box.select();
});
key("?", "this help", showHelp);
key("t", "light or dark", toggleTheme);
key("h", "list of runs", () => location.assign("./"));

try {
  const view = await (views[location.pathname.split("/").at(-1)] ?? views[""])();
  await view.show(main, document.getElementById("crumbs"), document.getElementById("live"));
} catch (error) {
  fill(main, h("div", { class: "notice error", role: "alert" }, h("b", {}, "This cannot be shown. "), error.message),
    h("p", {}, h("a", { href: "./" }, "To the list of runs")));
}
