// The state of the page is its address: everything one sees can be sent to somebody else, or reloaded.

const listeners = new Set();

export function param(name, fallback = null) {
  return new URLSearchParams(location.search).get(name) ?? fallback;
}

export function address(path, params) {
  const query = new URLSearchParams(Object.entries(params).filter(([, v]) => v !== null && v !== undefined && v !== ""));
  return query.size ? `${path}?${query}` : path;
}

// Changes some parameters (null removes one). `push`: a step that "back" undoes.
export function change(values, push = false) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "" || value === false) query.delete(name);
    else query.set(name, String(value));
  }
  const next = query.size ? `${location.pathname}?${query}` : location.pathname;
  if (next !== location.pathname + location.search) history[push ? "pushState" : "replaceState"](null, "", next);
}

export function onBack(listener) {
  listeners.add(listener);
}

addEventListener("popstate", () => listeners.forEach((listener) => listener()));
