// Elements from plain values. Text goes in as text: nothing here parses markup, whatever a rollout contains.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  put(element, children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function toast(text) {
  const box = h("div", { class: "toast", role: "status" }, text);
  document.body.append(box);
  setTimeout(() => box.remove(), 2500);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast(text);
  }
}

export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name.replace(/[^\w.=-]+/g, "-") });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Buttons of which one is pressed. `options`: [value, label].
export function segmented(label, options, current, onpick) {
  const box = h("div", { class: "segmented", role: "group", "aria-label": label });
  const buttons = options.map(([value, text, title]) =>
    h("button", { type: "button", title, "aria-pressed": String(value === current), onclick: () => { pick(value); onpick(value); } }, text));
  const pick = (value) => options.forEach(([v], i) => buttons[i].setAttribute("aria-pressed", String(v === value)));
  box.append(...buttons);
  box.pick = pick;
  return box;
}

// Text of any length: in pieces that the browser lays out only when they are near the window.
const PIECE = 4000;

export function longText(element, text) {
  if (text.length <= 2 * PIECE) {
    element.append(text);
    return element;
  }
  for (let start = 0; start < text.length;) {
    let end = Math.min(text.length, start + PIECE);
    const gap = Math.max(text.lastIndexOf("\n", end), text.lastIndexOf(" ", end));
    if (end < text.length && gap > start + PIECE / 2) end = gap + 1;
    else if (end < text.length && /[\ud800-\udbff]/.test(text[end - 1])) end--;  // not between the halves of a character
    element.append(h("div", { class: "piece" }, text.slice(start, end)));
    start = end;
  }
  return element;
}
