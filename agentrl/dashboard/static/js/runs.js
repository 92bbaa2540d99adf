// The list of runs: filter, sort, pick two to eight to compare.
import { get } from "./api.js";
import { copy, fill, h, svg } from "./dom.js";
import { ago, number } from "./format.js";
import { key } from "./keys.js";
import { address, change, onBack, param } from "./url.js";

const COLUMNS = [
  ["id", "Run"], ["status", "Status"], ["step", "Steps"], ["reward", "Reward"], ["spark", "Reward over time"],
  ["last", "Last alarm"], ["alarm", "Unseen"], ["updated", "Updated"], ["resume", "Resume"],
];
const SORTABLE = new Set(["id", "status", "step", "reward", "alarm", "updated"]);
const EVERY_MS = 3000;

export async function show(main, crumbs, live) {
  document.title = "Runs · agentrl";
  let runs = [], problems = [], root = "", timer = 0;
  let drawn = "";
  const rows = new Map();
  const picked = new Set((param("runs") ?? "").split(",").filter(Boolean));
  const search = h("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter runs by name", value: param("q", "") });
  const status = h("select", { "aria-label": "Filter by status" },
    ["all", "running", "finished", "stopped", "failed"].map((s) => h("option", { value: s }, s === "all" ? "any status" : s)));
  status.value = param("status", "all");
  const alarmed = h("input", { type: "checkbox" });
  alarmed.checked = param("alarms") === "1";
  const compare = h("a", { class: "button", href: "#" }, "Compare");
  const count = h("span", { class: "muted", role: "status" });
  const notices = h("div");
  const table = h("table", {}, h("caption", { class: "sr" }, "Runs"));
  fill(main,
    h("h1", { class: "sr" }, "Runs"),
    h("div", { class: "filters" }, search, status, h("label", {}, alarmed, "with unseen alarms"), compare, h("span", { class: "grow" }), count),
    notices, h("div", { class: "card scroll" }, table));

  const store = () => change({ q: search.value, status: status.value === "all" ? null : status.value, alarms: alarmed.checked ? "1" : null });
  for (const control of [search, status, alarmed]) control.addEventListener("input", () => { store(); draw(); });
  compare.addEventListener("click", (event) => { if (picked.size < 2 || picked.size > 8) event.preventDefault(); });
  key("c", "compare the picked runs", () => { if (picked.size > 1 && picked.size < 9) location.assign(compare.href); });

  function visible() {
    const text = search.value.toLowerCase();
    const [by, direction] = (param("sort", "updated-down")).split("-");
    const value = { id: (r) => r.id, status: (r) => r.status, step: (r) => r.step, reward: (r) => r.reward ?? -Infinity, updated: (r) => r.updated, alarm: (r) => worst(r) }[by] ?? ((r) => r.updated);
    const sign = direction === "up" ? 1 : -1;
    return runs
      .filter((r) => r.id.toLowerCase().includes(text) && (status.value === "all" || r.status === status.value) && (!alarmed.checked || worst(r) > 0))
      .sort((a, b) => { const x = value(a), y = value(b); return sign * (x < y ? -1 : x > y ? 1 : 0) || (a.id < b.id ? -1 : 1); });
  }

  function draw() {
    const shown = visible();
    count.textContent = `${shown.length} of ${runs.length} runs`;
    fill(notices, problems.length ? h("div", { class: "notice" }, "Could not be read:", h("ul", {}, problems.map((p) => h("li", {}, p)))) : null);
    updateCompare();
    const [by, direction] = param("sort", "updated-down").split("-");
    const now = shown.map(row), body = table.tBodies[0], before = body ? [...body.rows] : [];
    if (drawn === `${by}-${direction}` && now.length && now.length === before.length && now.every((tr, i) => tr === before[i])) return;
    const sorting = table.tHead?.contains(document.activeElement);
    drawn = `${by}-${direction}`;
    const head = h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "sr" }, "Pick")), COLUMNS.map(([name, label]) =>
      h("th", { class: ["step", "reward"].includes(name) ? "num" : "", "aria-sort": by === name ? (direction === "up" ? "ascending" : "descending") : null },
        SORTABLE.has(name) ? h("button", { type: "button", onclick: () => { change({ sort: `${name}-${by === name && direction === "down" ? "up" : "down"}` }); draw(); } },
          label, by === name ? (direction === "up" ? " ↑" : " ↓") : "") : label))));
    fill(table, h("caption", { class: "sr" }, "Runs"), head, h("tbody", {}, now));
    if (sorting) table.tHead.querySelector("[aria-sort] button")?.focus();
    if (!shown.length) table.append(h("tbody", {}, h("tr", {}, h("td", { class: "empty", colspan: 10 },
      runs.length ? "No run matches the filter." : `No runs in ${root} yet. Start one: agentrl train search_tiny`))));
  }

  // The row of a run: always the same element, of which only the cells that changed are replaced, so that the keyboard's
  // focus stays where it is.
  function row(run) {
    const text = JSON.stringify(run) + ago(run.updated), known = rows.get(run.id);
    if (known?.text === text) return known.tr;
    const fresh = line(run);
    if (!known) {
      fresh.run = run.id;
      rows.set(run.id, { text, tr: fresh });
      return fresh;
    }
    known.text = text;
    const cells = [...fresh.cells];
    for (let i = 1; i < cells.length; i++) if (!known.tr.cells[i].isEqualNode(cells[i])) known.tr.cells[i].replaceWith(cells[i]);
    return known.tr;
  }

  function updateCompare() {
    const fits = picked.size > 1 && picked.size < 9;
    compare.href = fits ? address("compare", { runs: [...picked].join(",") }) : "#";
    compare.setAttribute("aria-disabled", String(!fits));
    compare.textContent = picked.size ? `Compare ${picked.size}` : "Compare (pick 2 to 8)";
    change({ runs: [...picked].join(",") });
  }

  function line(run) {
    const box = h("input", { type: "checkbox", "aria-label": `Pick ${run.id}`, onchange: () => { box.checked ? picked.add(run.id) : picked.delete(run.id); updateCompare(); } });
    box.checked = picked.has(run.id);
    const a = run.last_alarm;
    return h("tr", {},
      h("td", {}, box),
      h("td", {}, h("a", { class: "name", href: address("run", { run: run.id }) }, run.id), run.message ? h("div", { class: "muted small" }, run.message) : null),
      h("td", {}, h("span", { class: "pill", data: { status: run.status } }, run.status)),
      h("td", { class: "num nowrap" }, `${number(run.step)}${run.steps ? ` / ${number(run.steps)}` : ""} `, progress(run)),
      h("td", { class: "num" }, number(run.reward, 3)),
      h("td", {}, spark(run.spark)),
      h("td", { class: "nowrap" }, a ? h("a", { href: address("run", { run: run.id, alarm: a.id }) }, h("span", { class: "level", data: { level: a.acknowledged ? "none" : a.level } }, a.rule.replaceAll("_", " ")), h("span", { class: "muted" }, ` at ${a.step}`),) : h("span", { class: "muted" }, "–")),
      h("td", { class: "nowrap" }, unseen(run)),
      h("td", { class: "nowrap" }, ago(run.updated)),
      h("td", {}, ["finished", "running"].includes(run.status) ? h("span", { class: "muted" }, "–") : h("button", { class: "quiet", type: "button", title: `${run.resume} (click to copy)`, onclick: () => copy(run.resume) }, h("code", { class: "copy" }, run.resume))));
  }

  async function load() {
    clearTimeout(timer);
    try {
      const answer = await get("runs");
      ({ runs, problems, root } = answer);
      fill(crumbs, root);
      live.dataset.state = "live";
      live.textContent = "live";
      draw();
    } catch (error) {
      live.dataset.state = "lost";
      live.textContent = "server does not answer";
      if (!runs.length) fill(notices, h("div", { class: "notice error" }, error.message));
    }
    timer = setTimeout(load, document.hidden ? 4 * EVERY_MS : EVERY_MS);
  }
  onBack(() => { search.value = param("q", ""); status.value = param("status", "all"); draw(); });
  await load();
}

function worst(run) {
  return run.open.critical ? 3 : run.open.warn ? 2 : run.open.info ? 1 : 0;
}

function unseen(run) {
  const there = ["critical", "warn", "info"].filter((level) => run.open[level]);
  return there.map((level) => h("span", { class: "level", data: { level }, title: `${run.open[level]} ${level} alarms not acknowledged` }, `${run.open[level]}\u00a0\u00a0`));
}

function progress(run) {
  if (!run.steps) return null;
  const bar = h("i");
  bar.style.width = `${Math.min(100, (100 * run.step) / run.steps)}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, bar);
}

function spark(values) {
  const box = svg("svg", { class: "spark", viewBox: "0 0 120 26", role: "img", "aria-label": values.length ? `reward from ${number(values[0], 2)} to ${number(values.at(-1), 2)}, highest ${number(Math.max(...values), 2)}` : "no reward yet" });
  if (values.length < 2) return box;
  const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
  const points = values.map((v, i) => `${((118 * i) / (values.length - 1) + 1).toFixed(1)},${(24 - (22 * (v - low)) / (high - low)).toFixed(1)}`);
  box.append(svg("path", { d: `M${points.join("L")}` }));
  return box;
}
