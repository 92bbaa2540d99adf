// Two to eight runs on the same charts, aligned by step, tokens or time, and what differs in their configurations.
import { get } from "./api.js";
import { Chart } from "./chart.js";
import { fill, h, segmented } from "./dom.js";
import { number, words } from "./format.js";
import { key } from "./keys.js";
import { Store, View } from "./store.js";
import { address, change, onBack, param } from "./url.js";

const CHARTS = ["reward", "held_out", "logprob_correct", "logprob_incorrect", "delta_correct", "entropy", "grad_norm", "clip_fraction", "kl", "response_length", "valid_search_ratio"];
const MOST = 8;
const EVERY_MS = 1500;

export async function show(main, crumbs, live) {
  document.title = "Compare · agentrl";
  fill(crumbs, h("a", { href: "./" }, "runs"), " / compare");
  const asked = [...new Set((param("runs") ?? "").split(",").filter(Boolean))], ids = asked.slice(0, MOST);
  if (ids.length < 2) {
    fill(main, h("p", { class: "empty" }, "Pick two to eight runs in the ", h("a", { href: "./" }, "list of runs"), "."));
    return;
  }
  const [signals, ...answers] = await Promise.all([get("signals"), ...ids.map((run) => get("metrics", { run }).then((a) => ({ run, ...a }), (error) => ({ run, error })))]);
  const failed = answers.filter((a) => a.error);
  const runs = answers.filter((a) => !a.error).map((a, i) => ({ id: a.run, store: new Store(a), state: a.state, cursor: a.cursor, color: `s${i + 1}`, dash: i > 3 }));
  const zoom = (param("zoom") ?? "").split("~").map(Number);
  const view = new View({ x: ["tokens", "time"].includes(param("x")) ? param("x") : "step", smooth: Number(param("smooth", 0.6)) || 0, zoom: zoom.length === 2 && zoom.every(Number.isFinite) ? zoom : null });
  view.listeners.add((changed) => { if (changed.includes("zoom")) { change({ zoom: view.zoom ? view.zoom.map((v) => Number(v.toPrecision(8))).join("~") : null }); unzoom.hidden = !view.zoom; } });
  addEventListener("theme", () => view.set({ theme: true }));

  const smooth = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: view.smooth, "aria-label": "Smoothing", oninput: () => { change({ smooth: smooth.value }); view.set({ smooth: Number(smooth.value) }); } });
  const unzoom = h("button", { type: "button", hidden: !view.zoom, onclick: () => view.set({ zoom: null }) }, "Zoom out");
  const grid = h("div", { class: "charts" }), legend = h("div", { class: "card legend-runs" }), diff = h("div");
  const measured = (name) => runs.some((r) => r.store.has(name));
  const shown = new Set((param("signals") ?? "").split(",").filter(measured));
  if (!shown.size) CHARTS.filter(measured).forEach((name) => shown.add(name));
  const more = h("select", { "aria-label": "Add a chart", onchange: () => { shown.add(more.value); change({ signals: [...shown].join(",") }); draw(); } });
  let charts = [];

  function draw() {
    charts.forEach((chart) => chart.destroy());
    charts = [...shown].map((name) => new Chart({
      title: words(name), unit: signals[name]?.unit ?? "", description: signals[name]?.description, view, zero: name.startsWith("delta"), file: "compare",
      lines: runs.filter((r) => r.store.has(name)).map((r) => ({ store: r.store, column: name, label: r.id, color: r.color, dash: r.dash })),
    }));
    fill(grid, charts.map((chart) => chart.el));
    const left = [...new Set(runs.flatMap((r) => Object.keys(r.store.columns)))].filter((n) => !shown.has(n) && !["step", "tokens", "time"].includes(n) && measured(n)).sort();
    fill(more, h("option", { value: "" }, "Add a chart …"), left.map((n) => h("option", { value: n }, words(n))));
  }

  function drawLegend() {
    fill(legend, runs.map((r) => {
      const swatch = h("i", { class: r.dash ? "swatch dash" : "swatch" });
      swatch.style.borderTopColor = `var(--${r.color})`;
      return h("span", {}, swatch, h("a", { href: address("run", { run: r.id }) }, r.id), h("span", { class: "muted small" }, ` ${r.state.status}, step ${number(r.state.step)}, reward ${number(r.state.reward, 3)}`));
    }));
  }

  fill(main, h("h1", {}, `${runs.length} runs`),
    failed.length ? h("div", { class: "notice error" }, h("ul", {}, failed.map((f) => h("li", {}, `${f.run}: ${f.error.message}`)))) : null,
    asked.length > MOST ? h("div", { class: "notice" }, `Only the first ${MOST} of ${asked.length} runs are compared.`) : null,
    legend,
    h("div", { class: "toolbar" }, segmented("Align by", [["step", "Steps"], ["tokens", "Tokens"], ["time", "Time"]], view.x, (x) => { change({ x: x === "step" ? null : x }); view.set({ zoom: null }); view.set({ x }); }),
      h("label", {}, "Smoothing", smooth), more, unzoom),
    grid, diff);
  drawLegend();
  draw();
  key("z", "zoom out", () => view.set({ zoom: null }));
  key("ArrowLeft", "cursor back", () => step(-1));
  key("ArrowRight", "cursor on", () => step(1));
  onBack(() => location.reload());
  function step(by) {
    const xs = charts.find((c) => c.plot)?.plot.data[0] ?? [];
    if (!xs.length) return false;
    const index = Math.min(xs.length - 1, Math.max(0, (view.index ?? -1) + by));
    view.set({ index, at: xs[index] });
    return true;
  }
  drawDiff(diff, runs.map((r) => r.id));
  follow(runs, () => { charts.forEach((chart) => chart.refresh()); drawLegend(); }, live);
}

// Running runs are asked for new rows again and again; eight streams would use up the browser's connections.
function follow(runs, grown, live) {
  live.dataset.state = "";
  setInterval(async () => {
    if (document.hidden) return;
    let any = false;
    await Promise.all(runs.filter((r) => r.state.status === "running").map(async (r) => {
      try {
        const answer = await get("metrics", { run: r.id, after: r.cursor });
        Object.assign(r, { state: answer.state });
        if (answer.whole) r.store.load(answer);
        else if (answer.columns.step?.length) r.store.append(answer.columns.step.map((_, i) => Object.fromEntries(Object.entries(answer.columns).filter(([n, v]) => v[i] !== null || answer.nonfinite[n]?.includes(answer.columns.step[i])).map(([n, v]) => [n, v[i]]))));
        any ||= answer.cursor !== r.cursor || answer.evals.length !== r.store.evals.length;
        r.store.setEvals(answer.evals);
        r.cursor = answer.cursor;
      } catch { /* the run may have gone; what was read of it stays */ }
    }));
    if (any) grown();
  }, EVERY_MS);
}

async function drawDiff(box, ids) {
  const configs = await Promise.all(ids.map((run) => get("config", { run }).catch((error) => ({ flat: {}, problems: [error.message] }))));
  const keys = [...new Set(configs.flatMap((c) => Object.keys(c.flat)))].sort();
  const text = (c, k) => (k in c.flat ? (c.flat[k] === null ? "null" : String(c.flat[k])) : "–");
  const differs = (k) => new Set(configs.map((c) => text(c, k))).size > 1;
  const all = h("input", { type: "checkbox", onchange: () => draw() });
  const table = h("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Configuration table" });
  const draw = () => {
    const rows = keys.filter((k) => all.checked || differs(k));
    fill(table, rows.length ? h("table", {}, h("caption", { class: "sr" }, "Configuration of the runs"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Key"), ids.map((id) => h("th", { scope: "col" }, id)))),
      h("tbody", {}, rows.map((k) => h("tr", {}, h("td", {}, h("code", {}, k)), configs.map((c) => h("td", { class: differs(k) ? "differs" : "muted" }, text(c, k))))))) : h("p", { class: "empty" }, "The configurations are equal."));
  };
  fill(box, h("div", { class: "row", style: { margin: "1.2rem 0 .5rem" } }, h("h2", {}, "Configuration"), h("label", { class: "muted" }, all, " also what is equal")),
    configs.some((c) => c.problems.length) ? h("div", { class: "notice" }, h("ul", {}, configs.flatMap((c, i) => c.problems.map((p) => h("li", {}, `${ids[i]}: ${p}`))))) : null, table);
  draw();
}
