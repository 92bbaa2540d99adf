// One card with a chart: raw and smoothed lines, phase bands, alarm marks, values at the shared cursor, a text summary,
// a table, PNG and CSV. Built when it scrolls into view.
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { color, download, fill, h } from "./dom.js";
import { number, PHASES, says } from "./format.js";
import { smoothed } from "./store.js";

const HEIGHT = 190;
const TABLE_ROWS = 400;
const AXIS = { step: "step", tokens: "tokens", time: "minutes" };
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.chart.visible(entry.isIntersecting);
}, { rootMargin: "300px" });

export class Chart {
  // `lines`: {store, column, label, color (name of a CSS colour), dash}; with one store per line for comparisons.
  constructor({ title, unit, description, lines, view, marks = () => [], bands = false, zero = false, onpick = null, file = "chart" }) {
    Object.assign(this, { title, unit, lines, view, marks, bands, zero, onpick, file, plot: null, inView: false, stale: true });
    this.keys = h("div", { class: "keys" });
    this.box = h("div", { class: "plot", role: "img" });
    this.says = h("p", { class: "says" });
    this.table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}, table`, hidden: true });
    this.tableButton = h("button", { class: "quiet", type: "button", "aria-pressed": "false", onclick: () => this.toggleTable() }, "Table");
    this.el = h("section", { class: "card chart", "aria-label": title },
      h("header", {}, h("h3", { title: description }, title), unit === title.toLowerCase() ? null : h("span", { class: "unit" }, unit),
        h("span", { class: "tools" }, this.tableButton,
          h("button", { class: "quiet", type: "button", "aria-label": `${title} as PNG`, onclick: () => this.png() }, "PNG"),
          h("button", { class: "quiet", type: "button", "aria-label": `${title} as CSV`, onclick: () => this.csv() }, "CSV"))),
      this.keys, this.box, this.table, this.says);
    this.el.chart = this;
    this.values = lines.map((line) => {
      const value = h("b", {}, "–");
      const swatch = h("i", { class: line.dash ? "swatch dash" : "swatch" });
      swatch.style.borderTopColor = `var(--${line.color})`;
      this.keys.append(h("span", {}, swatch, line.label, " ", value));
      return value;
    });
    seen.observe(this.el);
    this.onview = (changed, from) => this.viewChanged(changed, from);
    view.listeners.add(this.onview);
    this.resize = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height: HEIGHT }));
    this.resize.observe(this.box);
  }

  destroy() {
    seen.unobserve(this.el);
    this.resize.disconnect();
    this.view.listeners.delete(this.onview);
    this.plot?.destroy();
  }

  visible(now) {
    this.inView = now;
    if (now && this.stale) this.refresh();
  }

  // New rows, another axis, another smoothing: drawn now if somebody can see it.
  refresh() {
    if (!this.inView) {
      this.stale = true;
      return;
    }
    this.stale = false;
    const data = this.data();
    if (!this.plot) this.build(data);
    else {
      this.quietly(() => { this.plot.setData(data, !this.view.zoom); if (this.view.zoom) this.applyZoom(); });
    }
    this.describe();
    this.readout();
    if (!this.table.hidden) this.drawTable();
  }

  // All lines on one x axis: [x, raw..., smooth...].
  data() {
    const stores = [...new Set(this.lines.map((l) => l.store))], { x: mode, smooth } = this.view;
    let xs, pick;
    if (stores.length === 1) {
      xs = stores[0].x(mode);
      pick = (line) => line.store.columns[line.column] ?? new Array(xs.length).fill(null);
    } else {
      const own = new Map(stores.map((s) => [s, s.x(mode)]));
      xs = [...new Set([...own.values()].flat())].sort((a, b) => a - b);
      const place = new Map(xs.map((v, i) => [v, i]));
      pick = (line) => {
        const out = new Array(xs.length).fill(undefined);  // undefined: no point here, the line goes on
        (line.store.columns[line.column] ?? []).forEach((v, i) => { out[place.get(own.get(line.store)[i])] = v; });
        return out;
      };
    }
    const raw = this.lines.map(pick);
    Object.assign(this, { raw, xs });
    const soft = raw.map((v, i) => (smooth && !rare(this.lines[i]) ? smoothed(v, smooth) : v.map(() => null)));
    if (smooth && stores.length > 1) raw.forEach((v, i) => v.forEach((y, j) => { if (y === undefined) soft[i][j] = undefined; }));
    return [xs, ...raw, ...soft];
  }

  build(data) {
    const { view } = this, line = (l, i, soft) => ({
      label: l.label,
      stroke: () => color(l.color) + (!soft && view.smooth && !rare(l) ? "70" : ""),
      width: soft ? 2.2 : 1.4,
      dash: l.dash ? [6, 4] : undefined,
      points: soft ? { show: false } : { show: (u, s, from, to) => sparse(u, s, from, to), size: 5, fill: () => color("card") },
      spanGaps: true,
    });
    const axis = { stroke: () => color("axis"), grid: { stroke: () => color("grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    this.plot = new uPlot({
      width: this.box.clientWidth || 360, height: HEIGHT, legend: { show: false }, padding: [this.bands ? 16 : 8, 8, 0, 0],
      scales: { x: { time: false }, y: { range: (u, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 24, gap: 3, values: (u, ticks) => ticks.map((v) => (view.x === "time" ? clock(v, u.scales.x.max) : tick(v))) },
        { ...axis, size: 52, values: (u, ticks) => ticks.map((v) => number(v, 3)) },
      ],
      series: [{ label: AXIS[view.x] }, ...this.lines.map((l, i) => line(l, i, false)), ...this.lines.map((l, i) => line(l, i, true))],
      cursor: { y: false, drag: { x: true, y: false, setScale: false, dist: 8 }, points: { size: 7 },
        bind: { dblclick: () => () => { view.set({ zoom: null }); return null; } } },
      hooks: {
        drawClear: [(u) => this.drawBands(u)],
        draw: [(u) => this.drawMarks(u)],
        setCursor: [(u) => { if (!this.quiet) this.pointed(u); }],
        setSelect: [(u) => {
          if (u.select.width < 8) return;
          view.set({ zoom: [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")] });
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
      },
    }, data, this.box);
    let down = 0;
    this.plot.over.addEventListener("pointerdown", (e) => { down = e.clientX; });
    this.plot.over.addEventListener("click", (e) => {
      if (Math.abs(e.clientX - down) < 4 && this.plot.cursor.idx !== null) this.onpick?.(this.plot.cursor.idx);
    });
    this.applyZoom();
  }

  range(low, high) {
    if (low === null || high === null) return [0, 1];
    if (this.zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
    const size = Math.max(Math.abs(low), Math.abs(high));
    const pad = (high - low > 1e-9 * size ? high - low : size || 1) * 0.07;  // rounding errors of a constant are no signal
    return [low === 0 ? 0 : low - pad, high + pad];
  }

  // --------------------------------------------------------------------------------------------------- the shared view

  viewChanged(changed, from) {
    if (changed.includes("index") && from !== this) {
      if (this.plot && this.inView) this.moveCursor();
      this.readout();
    } else if (changed.includes("index")) this.readout();
    if (changed.includes("zoom")) {
      this.applyZoom();
      if (!this.table.hidden) this.drawTable();
    }
    if (changed.includes("pinned") && this.plot && this.inView) this.plot.redraw(false);
    if (changed.includes("x") || changed.includes("smooth")) this.refresh();
    if (changed.includes("theme")) this.plot?.redraw(false);
  }

  pointed(u) {
    const idx = u.cursor.left < 0 ? null : u.cursor.idx;
    const x = idx === null || idx === undefined ? null : u.data[0][idx];
    if (x !== this.view.at) this.view.set({ at: x, index: idx ?? null }, this);
  }

  moveCursor() {
    const { at } = this.view;
    this.quietly(() => this.plot.setCursor(at === null || at === undefined ? { left: -10, top: -10 } : { left: this.plot.valToPos(at, "x"), top: 20 }));
  }

  applyZoom() {
    if (!this.plot) return;
    const xs = this.plot.data[0], zoom = this.view.zoom;
    if (!xs.length) return;
    this.quietly(() => this.plot.setScale("x", zoom ? { min: zoom[0], max: zoom[1] } : { min: xs[0], max: xs.at(-1) > xs[0] ? xs.at(-1) : xs[0] + 1 }));
  }

  quietly(action) {
    this.quiet = true;
    action();
    // uPlot fires its hooks in a microtask when several changes were batched
    queueMicrotask(() => queueMicrotask(() => { this.quiet = false; }));
  }

  // The values at the cursor, or the last ones.
  readout() {
    const { at } = this.view, xs = this.xs ?? [], pointed = at !== null && at !== undefined;
    const index = pointed ? nearest(xs, at) : null;
    this.lines.forEach((line, i) => {
      const column = this.raw?.[i] ?? line.store.columns[line.column] ?? [];
      let value = null;
      if (pointed) value = column[index];
      else for (let j = column.length - 1; j >= 0 && (value === null || value === undefined); j--) value = column[j];
      const bad = pointed && value === null && line.store.nonfinite[line.column]?.includes(line.store.columns.step[index]);
      this.values[i].textContent = bad ? "not finite" : number(value);
    });
  }

  describe() {
    const texts = this.lines.map((line) => {
      const bad = line.store.nonfinite[line.column]?.length;
      const text = says(line.store.columns.step, line.store.columns[line.column] ?? []) + (bad ? ` Not finite at ${bad} steps.` : "");
      return this.lines.length > 1 ? `${line.label}: ${text}` : text;
    });
    this.says.textContent = new Set(this.lines.map((l) => l.store)).size > 1 ? this.ends() : texts[0];
    this.box.setAttribute("aria-label", `${this.title}. ${texts.join(" ")}`);
  }

  // Of several runs: how they compare at their ends.
  ends() {
    const last = this.lines.map((l) => [l.label, (l.store.columns[l.column] ?? []).findLast((v) => v !== null)]).filter(([, v]) => v !== undefined).sort((a, b) => b[1] - a[1]);
    if (last.length < 2) return "";
    if (number(last[0][1], 3) === number(last.at(-1)[1], 3)) return `At the end all ${number(last[0][1], 3)}.`;
    return `At the end highest: ${last[0][0]}, ${number(last[0][1], 3)}; lowest: ${last.at(-1)[0]}, ${number(last.at(-1)[1], 3)}.`;
  }

  // ---------------------------------------------------------------------------------------------------------- drawing

  drawBands(u) {
    const store = this.lines[0].store, xs = u.data[0], { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const ratio = devicePixelRatio || 1, names = [];
    for (const band of this.bands ? store.bands : []) {
      const a = store.indexOf(band.from), b = Math.min(store.indexOf(band.to) + 1, xs.length - 1);
      const left = u.valToPos(xs[a], "x", true), right = u.valToPos(xs[b], "x", true);
      ctx.fillStyle = color(`ph-${band.phase}`);
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
      if (band.phase.startsWith("I") && right > bbox.left && left < bbox.left + bbox.width) names.push([band.phase, Math.max(left, bbox.left), Math.min(right, bbox.left + bbox.width)]);
    }
    if (this.zero) {
      const y = u.valToPos(0, "y", true);
      ctx.strokeStyle = color("strong");
      ctx.lineWidth = ratio;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
    ctx.save();
    ctx.font = `600 ${11 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = color("text");
    ctx.textAlign = "center";
    const taken = [];
    // Above the band it names, where no line can cover it; the worse phase where there is no room for both.
    for (const [name, left, right] of names.sort((a, b) => b[0].length - a[0].length)) {
      const x = (left + right) / 2, half = ctx.measureText(name).width / 2 + 2 * ratio;
      if (taken.some(([from, to]) => x + half > from && x - half < to)) continue;
      ctx.fillText(name, x, bbox.top - 4 * ratio);
      taken.push([x - half, x + half]);
    }
    ctx.restore();
  }

  drawMarks(u) {
    const store = this.lines[0].store, xs = u.data[0], { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    const vertical = (step, style, dash, width) => {
      const x = u.valToPos(xs[store.indexOf(step)], "x", true);
      if (!(x >= bbox.left && x <= bbox.left + bbox.width)) return;
      ctx.strokeStyle = style;
      ctx.lineWidth = width * ratio;
      ctx.setLineDash(dash.map((v) => v * ratio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    };
    ctx.save();
    if (xs.length && new Set(this.lines.map((l) => l.store)).size === 1) {
      for (const mark of this.marks()) {
        if (mark.kind) vertical(mark.step, color("s4"), [], mark.kind === "rollback" ? 2 : 1);  // the guard's
        else vertical(mark.step, color({ info: "info", warn: "warn", critical: "bad" }[mark.level] ?? "muted"), [3, 3], mark.level === "info" ? 0.7 : 1.2);
      }
      if (this.view.x === "time") for (const pause of store.clock().pauses) vertical(pause.step, color("muted"), [1, 4], 1.4);
      if (this.view.pinned !== null) vertical(this.view.pinned, color("text"), [], 1.2);
      ctx.setLineDash([]);
      for (const line of this.lines) {  // where a value was not finite: a cross at the lower edge
        ctx.strokeStyle = color("bad");
        ctx.lineWidth = 1.6 * ratio;
        for (const step of line.store.nonfinite[line.column] ?? []) {
          const x = u.valToPos(xs[store.indexOf(step)], "x", true), y = bbox.top + bbox.height - 6 * ratio, d = 3 * ratio;
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(x - d, y - d); ctx.lineTo(x + d, y + d); ctx.moveTo(x - d, y + d); ctx.lineTo(x + d, y - d);
          ctx.stroke();
        }
      }
    }
    ctx.restore();
  }

  // ----------------------------------------------------------------------------------------------------- table, export

  toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.box.hidden = !this.table.hidden;
    this.tableButton.setAttribute("aria-pressed", String(!this.table.hidden));
    if (!this.table.hidden) this.drawTable();
  }

  rows() {
    const [xs] = this.plot ? this.plot.data : this.data(), zoom = this.view.zoom;
    const all = xs.map((x, i) => [x, ...this.raw.map((v) => v[i])]);
    return zoom ? all.filter(([x]) => x >= zoom[0] && x <= zoom[1]) : all;
  }

  drawTable() {
    const all = this.rows(), rows = all.slice(-TABLE_ROWS);
    fill(this.table, h("table", {},
      h("caption", { class: "sr" }, `${this.title} in ${this.unit}`),
      h("thead", {}, h("tr", {}, h("th", { class: "num", scope: "col" }, AXIS[this.view.x]), this.lines.map((l) => h("th", { class: "num", scope: "col" }, l.label)))),
      h("tbody", {}, rows.reverse().map(([x, ...values]) => h("tr", {}, h("td", { class: "num" }, number(x)), values.map((v) => h("td", { class: "num" }, number(v, 6))))))),
    all.length > rows.length ? h("p", { class: "muted small" }, `The last ${rows.length} of ${all.length} rows; CSV has all.`) : null);
  }

  csv() {
    const quote = (text) => `"${String(text).replaceAll('"', '""').replace(/^([=+\-@\t\r])/, "'$1")}"`;  // no formula for a spreadsheet
    const lines = [[AXIS[this.view.x], ...this.lines.map((l) => l.label)].map(quote).join(",")];
    for (const row of this.rows()) lines.push(row.map((v) => (v === null || v === undefined ? "" : v)).join(","));
    download(`${this.file}-${this.title}.csv`, new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  }

  png() {
    const source = this.plot.ctx.canvas, ratio = devicePixelRatio || 1, head = 46 * ratio;
    const canvas = h("canvas", { width: source.width, height: source.height + head });
    const ctx = canvas.getContext("2d");
    ctx.fillStyle = color("card");
    ctx.fillRect(0, 0, canvas.width, canvas.height);
    ctx.fillStyle = color("text");
    ctx.font = `600 ${14 * ratio}px system-ui, sans-serif`;
    ctx.fillText(`${this.title} (${this.unit}), ${this.file}`, 10 * ratio, 18 * ratio);
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    let x = 10 * ratio;
    for (const line of this.lines) {
      ctx.fillStyle = color(line.color);
      ctx.fillRect(x, 30 * ratio, 14 * ratio, 3 * ratio);
      ctx.fillStyle = color("text");
      ctx.fillText(line.label, x + 19 * ratio, 36 * ratio);
      x += ctx.measureText(line.label).width + 34 * ratio;
    }
    ctx.drawImage(source, 0, head);
    canvas.toBlob((blob) => blob && download(`${this.file}-${this.title}.png`, blob), "image/png");
  }
}

// An average over a few evaluations would lag behind them by half the run: what is measured now and then is not smoothed.
function rare({ store, column }) {
  const values = store.columns[column] ?? [];
  return 3 * values.reduce((n, v) => n + (v !== null), 0) < values.length;
}

// Points are drawn where a signal is measured now and then only, and lines would be all that shows.
function sparse(u, s, from, to) {
  const values = u.data[s];
  let there = 0, first = to, last = from;
  for (let i = from; i <= to; i++) {
    if (values[i] === null || values[i] === undefined) continue;
    there++;
    first = Math.min(first, i);
    last = i;
  }
  return there > 0 && (to - from < 30 || there * 4 < last - first);
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

function tick(value) {
  return Math.abs(value) >= 1e4 ? `${number(value / (Math.abs(value) >= 1e6 ? 1e6 : 1e3), 3)}${Math.abs(value) >= 1e6 ? "M" : "k"}` : number(value, 3);
}

// Minutes on the axis, in hours where the axis is long: one unit for all ticks.
function clock(minutes, longest) {
  return longest > 300 ? `${number(minutes / 60, 3)} h` : `${number(minutes, 3)} min`;
}

// The legend of the phase bands.
export function phaseLegend(store) {
  const there = Object.keys(PHASES).filter((name) => store.bands.some((b) => b.phase === name));
  return h("div", { class: "legend-phases" }, there.map((name) => {
    const box = h("i");
    box.style.background = `var(--ph-${name})`;
    return h("span", { class: "phase", title: PHASES[name]?.[1] }, box, PHASES[name]?.[0] ?? name);
  }));
}
