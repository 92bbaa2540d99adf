// Keyboard: one table, which is also what the help shows.
import { fill, h } from "./dom.js";

const bindings = new Map();

export function key(name, what, action) {
  bindings.set(name, { what, action });
}

function typing(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName));
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && typing(event.target)) event.target.blur();
  if (typing(event.target) || document.querySelector("dialog[open]") || event.defaultPrevented) return;
  const found = bindings.get(event.shiftKey && event.key.length > 1 ? `Shift+${event.key}` : event.key);
  if (found && found.action(event) !== false) event.preventDefault();
});

const LABELS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", "Shift+ArrowLeft": "Shift ←", "Shift+ArrowRight": "Shift →" };

export function showHelp() {
  const dialog = h("dialog", { "aria-labelledby": "help-title", onclose: () => dialog.remove() });
  fill(dialog,
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", {}, [...bindings].map(([name, { what }]) => [h("dt", {}, h("kbd", {}, LABELS[name] ?? name)), h("dd", {}, what)])),
    h("p", { class: "muted small" }, "Drag in a chart to zoom in, double-click to zoom out, click to pin a step."),
    h("form", { method: "dialog" }, h("button", { class: "primary" }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
}
