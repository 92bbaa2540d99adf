// The page of one run.
import { alarmCard, guardLine } from "./alarms.js";
import { get, Stream } from "./api.js";
import { Chart } from "./chart.js";
import { configTab } from "./config.js";
import { copy, fill, h, segmented } from "./dom.js";
import { ago, duration, mean, number, PHASES, plural, words } from "./format.js";
import { key } from "./keys.js";
import { OVERVIEW, SECTIONS, sections } from "./overview.js";
import { RolloutTab } from "./rollouts.js";
import { Store, View } from "./store.js";
import { Timeline } from "./timeline.js";
import { address, change, onBack, param } from "./url.js";

const FIGURES = ["reward", "held_out", "logprob_correct", "delta_correct", "entropy", "clip_fraction", "kl", "response_length", "valid_search_ratio"];
const TAB_NAMES = { charts: "Charts", rollouts: "Rollouts", alarms: "Alarms", config: "Config and evaluations" };
const spent = (hours, gpus) => (gpus ? `${number(hours * gpus, 3)} GPU-hours` : duration(hours * 3600));
const TABS = Object.keys(TAB_NAMES);

export async function show(main, crumbs, live) {
  const page = new RunPage(param("run", ""), main, live);
  fill(crumbs, h("a", { href: "./" }, "runs"), " / ", page.run);
  document.title = `${page.run} · agentrl`;
  await page.load();
}

class RunPage {
  constructor(run, main, live) {
    Object.assign(this, { run, main, live, charts: [], built: new Set() });
    const zoom = (param("zoom") ?? "").split("~").map(Number);
    const pinned = param("step");
    this.view = new View({
      x: ["tokens", "time"].includes(param("x")) ? param("x") : "step", smooth: Math.min(0.98, Math.max(0, Number(param("smooth", 0)) || 0)),
      zoom: zoom.length === 2 && zoom.every(Number.isFinite) && zoom[1] > zoom[0] ? zoom : null, pinned: pinned === null ? null : Number(pinned),
    });
  }

  async load() {
    fill(this.main, h("p", { class: "empty" }, "Reading the run …"));
    const [answer, signals] = await Promise.all([get("run", { run: this.run }), get("signals")]);
    this.signals = signals;
    this.take(answer);
    this.store = new Store(answer);
    this.layout();
    this.follow(answer.cursor);
    this.listen();
  }

  take({ state, alarms, guard, evals, rollout_steps, problems }) {
    Object.assign(this, { state, alarms, guard, evals, rolloutSteps: rollout_steps, problems });
  }

  follow(cursor) {
    this.stream?.close();
    let waiting = false;
    this.stream = new Stream(this.run, cursor, {
      state: (name) => this.showLive(name),
      rows: ({ rows, bands, phase }) => {
        this.store.append(rows, bands, phase);
        if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; this.grown(); }); }
      },
      alarms: ({ alarms, guard, evals }) => {
        Object.assign(this, { alarms, guard, evals });
        this.store.setEvals(evals);
        this.alarmsChanged();
        this.grown();
      },
      status: (state) => { this.state = state; this.head(); this.showLive("live"); },
      reset: () => { this.gone = false; this.reload(); },
      gone: () => { this.gone = true; this.notice("This run's folder is gone. What was read of it stays here until you leave the page.", "error"); this.showLive("gone"); },
    }, this.state.status === "running");
  }

  async reload() {
    try {
      const answer = await get("run", { run: this.run });
      this.take(answer);
      this.store.load(answer);
      this.notice("");
      this.grown();
      this.alarmsChanged();
      this.head();
      this.follow(answer.cursor);
    } catch (error) {
      this.notice(error.message, "error");
      setTimeout(() => { if (!this.gone) this.reload(); }, 2000);  // it may be half written yet
    }
  }

  showLive(name) {
    const running = this.state.status === "running";
    this.live.dataset.state = name === "live" && running ? "live" : name === "lost" ? "lost" : "";
    this.live.textContent = name === "lost" ? "connection lost, trying again" : name === "gone" ? "run deleted" : running ? "live" : this.state.status;
  }

  // ------------------------------------------------------------------------------------------------------------ layout

  layout() {
    this.headBox = h("div", { class: "runhead" });
    this.noticeBox = h("div", { role: "status" });
    this.figures = h("div", { class: "figures" });
    this.timeline = new Timeline(this.store, this.view, (id) => this.openAlarm(id), (action) => this.openGuard(action));
    this.alarmBox = h("div");
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the run" });
    this.panels = Object.fromEntries(TABS.map((name) => [name, h("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: true })]));
    fill(this.main, this.headBox, this.noticeBox, this.figures, this.timeline.el, this.alarmBox, this.tabs, Object.values(this.panels));
    this.rollouts = new RolloutTab(this.run, this.panels.rollouts, () => this.alarms, (step) => this.pin(step));
    this.head();
    this.notice("");
    this.drawFigures();
    this.timeline.update(this.alarms, this.guard, param("alarm"));
    this.openAlarm(param("alarm"), false);
    this.openTab(TABS.includes(param("tab")) ? param("tab") : "charts", false);
  }

  head() {
    const s = this.state, { seconds, pauses } = this.store.clock();
    const took = seconds.length > 1 && seconds.at(-1) > 0 ? seconds.at(-1) : null;
    const paused = pauses.length ? ` without ${plural(pauses.length, "pause")} of ${duration(pauses.reduce((sum, p) => sum + p.seconds, 0))}` : "";
    const first = this.alarms.find((a) => a.level !== "info"), at = first ? this.store.indexOf(first.step) : 0;
    const since = first ? this.store.columns.step.at(-1) - first.step : 0, hours = took && first ? (seconds.at(-1) - seconds[at]) / 3600 : null;
    const left = s.status === "running" && s.steps && took && this.store.length > 1 ? (took / (this.store.length - 1)) * (s.steps - s.step) : null;
    const bar = h("i");
    bar.style.width = `${s.steps ? Math.min(100, (100 * s.step) / s.steps) : 0}%`;
    const phase = this.store.phase?.phase ?? "warmup";
    const swatch = h("i");
    swatch.style.background = `var(--ph-${phase})`;
    fill(this.headBox,
      h("h1", {}, this.run), h("span", { class: "pill", data: { status: s.status } }, s.status),
      h("span", { class: "row small" }, `step ${number(s.step)}${s.steps ? ` of ${number(s.steps)}` : ""}`, s.steps ? h("span", { class: "bar", "aria-hidden": "true" }, bar) : null),
      h("span", { class: "muted small" }, took ? `${duration(took)} long${paused}${left ? `, about ${duration(left)} left` : ""}, ` : "", `updated ${ago(s.updated)}`),
      h("span", { class: "phase pill", title: PHASES[phase]?.[1] }, swatch, PHASES[phase]?.[0] ?? phase),
      since > 0 ? h("span", { class: "muted small after", title: "What was spent since the first warning, on all GPUs where the run says how many it has" }, `${plural(since, "step")}${hours === null ? "" : ` and ${spent(hours, s.gpus)}`} after the first alarm`) : null,
      this.store.phase?.death_spiral ? h("span", { class: "level", data: { level: "critical" } }, "death spiral") : null,
      h("span", { class: "grow" }),
      !["finished", "running"].includes(s.status) ? h("button", { type: "button", title: `${s.resume} (click to copy)`, onclick: () => copy(s.resume) }, "Copy resume command") : null,
      h("a", { class: "button", href: address("api/report", { run: this.run }), download: "" }, "Report"));
    if (s.message) this.headBox.append(h("span", { class: "muted small" }, s.message));
  }

  notice(text, kind = "") {
    fill(this.noticeBox,
      text ? h("div", { class: `notice ${kind}` }, text) : null,
      this.problems.length ? h("div", { class: "notice" }, "Not everything of this run could be read:", h("ul", {}, this.problems.map((p) => h("li", {}, p)))) : null);
  }

  drawFigures() {
    const c = this.store.columns;
    fill(this.figures, FIGURES.filter((name) => this.store.has(name)).map((name) => {
      const values = (c[name] ?? []).filter((v) => v !== null), n = values.length;
      let note = this.signals[name]?.unit ?? "share";  // single steps are noisy: what is compared are means of ten
      if (name === "held_out" && n > 1) note = `before ${number(values.at(-2), 3)}`;
      else if (n >= 20) {
        const by = mean(values.slice(-10)) - mean(values.slice(-20, -10));
        note = `10 steps: ${by > 0 ? "+" : by < 0 ? "−" : "±"}${number(Math.abs(by), 2)}`;
      }
      return h("div", { class: "card figure", title: `${this.signals[name]?.description ?? "accuracy on held-out questions"}; the last value, and by how much the mean of the last 10 steps differs from that of the 10 before` },
        h("div", { class: "label" }, words(name)), h("div", { class: "value" }, number(values.at(-1), 3)), h("div", { class: "change" }, note));
    }));
  }

  // ------------------------------------------------------------------------------------------------------------ alarms

  alarmsChanged() {
    this.timeline.update(this.alarms, this.guard, param("alarm"));
    this.openAlarm(param("alarm"), false);
    this.drawTabs();
    if (this.built.has("alarms")) this.drawAlarms();
    this.view.set({ theme: true });
  }

  openAlarm(id, push = true) {
    const alarm = this.alarms.find((a) => a.id === id);
    if (push) change({ alarm: alarm && param("alarm") !== id ? id : null, step: alarm ? alarm.step : param("step") }, true);
    const open = alarm && param("alarm") === id;
    fill(this.alarmBox, open ? alarmCard(this.run, alarm, {
      onclose: () => this.openAlarm(null), onrollouts: (...which) => this.showRollouts(...which), onseen: (a) => this.seen(a),
    }) : null);
    this.timeline.update(this.alarms, this.guard, open ? id : null);
    if (open) this.view.set({ pinned: alarm.step });
  }

  openGuard(action) {
    change({ alarm: null, step: action.step }, true);
    this.openAlarm(null, false);
    fill(this.alarmBox, guardLine(action));
    this.view.set({ pinned: action.step });
  }

  seen(alarm) {
    this.alarms = this.alarms.map((a) => (a.id === alarm.id ? alarm : a));
    this.alarmsChanged();
  }

  showRollouts(alarm, group = null) {
    change({ alarm: alarm.id, tab: "rollouts", step: alarm.step, only: "alarm", group, sample: null, kind: null }, true);
    this.openTab("rollouts", false);
    this.panels.rollouts.scrollIntoView({ block: "start", behavior: "auto" });
  }

  drawAlarms() {
    const actions = this.guard.length ? [h("h2", {}, "What the guard did"), this.guard.map(guardLine), h("h2", {}, "Alarms")] : null;
    fill(this.panels.alarms, actions, this.alarms.length ? this.alarms.toReversed().map((a) => alarmCard(this.run, a, { compact: true, onrollouts: (...which) => this.showRollouts(...which), onseen: (x) => this.seen(x) }))
      : h("p", { class: "empty" }, "No alarm so far."));
  }

  // -------------------------------------------------------------------------------------------------------------- tabs

  drawTabs() {
    const current = TABS.includes(param("tab")) ? param("tab") : "charts";
    const focused = this.tabs.contains(document.activeElement);
    fill(this.tabs, TABS.map((name) => h("button", { role: "tab", type: "button", id: `tab-${name}`, "aria-controls": `panel-${name}`, "aria-selected": String(name === current), tabindex: name === current ? 0 : -1,
      onclick: () => this.openTab(name), onkeydown: (e) => this.tabKey(e, name) },
    TAB_NAMES[name], name === "alarms" && this.alarms.length ? [" ", h("span", { class: "count" }, this.alarms.length)] : null)));
    if (focused) this.tabs.querySelector("[aria-selected=true]").focus();
  }

  tabKey(event, name) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    this.openTab(TABS[(TABS.indexOf(name) + move + TABS.length) % TABS.length]);
  }

  openTab(name, push = true) {
    if (push) change({ tab: name === "charts" ? null : name }, true);
    for (const [other, panel] of Object.entries(this.panels)) panel.hidden = other !== name;
    this.figures.hidden = name === "rollouts";
    this.drawTabs();
    if (name === "rollouts") this.rollouts.open(this.rolloutSteps);
    if (this.built.has(name)) return;
    this.built.add(name);
    if (name === "charts") this.buildCharts();
    if (name === "alarms") this.drawAlarms();
    if (name === "config") configTab(this.run, this.panels.config, this.evals);
  }

  // ------------------------------------------------------------------------------------------------------------ charts

  buildCharts() {
    const { view } = this;
    const smooth = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: view.smooth, "aria-label": "Smoothing", oninput: () => { change({ smooth: Number(smooth.value) || null }); view.set({ smooth: Number(smooth.value) }); } });
    this.atStep = h("span", { class: "atstep", role: "status" });
    this.pinBox = h("span", { class: "row" });
    this.unzoom = h("button", { type: "button", onclick: () => view.set({ zoom: null }) }, "Zoom out");
    this.grids = h("div");
    fill(this.panels.charts, h("div", { class: "toolbar" },
      segmented("Horizontal axis", [["step", "Steps"], ["tokens", "Tokens"], ["time", "Time"]], view.x, (x) => { change({ x: x === "step" ? null : x }); view.set({ zoom: null }); view.set({ x }); }),
      h("label", {}, "Smoothing", smooth), this.unzoom, h("span", { class: "grow" }), this.pinBox, this.atStep), this.grids);
    this.drawGrids();
    this.toolbar();
  }

  // The charts of what is measured; made again when another signal appears, as in a run that has only begun.
  drawGrids() {
    const opened = new Set([...this.grids.querySelectorAll("details[open]")].map((d) => d.dataset.section));
    this.charts.splice(0).forEach((chart) => chart.destroy());
    this.measured = this.measuredNow();
    const overview = h("div", { class: "charts" }), more = h("div"), missing = [];
    for (const { title, columns, zero, hint } of OVERVIEW) {
      const there = columns.filter(([name], i) => this.store.has(name) && (i === 0 || (this.store.has(columns[0][0]) && !this.same(name, columns[0][0]))));
      if (!there.length) { missing.push(hint ? `${title} (${hint})` : title); continue; }
      overview.append(this.chart(title, there, { zero }).el);
    }
    if (missing.length) overview.append(h("section", { class: "card chart missing", "aria-label": "Not measured" }, h("h3", {}, "Not measured in this run"), h("p", {}, missing.join("; "))));
    for (const [section, list] of sections(this.store, this.signals)) {
      const grid = h("div", { class: "charts" });
      const details = h("details", { class: "section", data: { section }, open: opened.has(section) }, h("summary", {}, SECTIONS[section], " ", h("span", { class: "muted" }, plural(list.length, "signal"))), grid);
      details.addEventListener("toggle", () => {
        if (details.open && !grid.childElementCount) for (const [name] of list) grid.append(this.chart(words(name), [[name, words(name), "s1"]], { zero: name.startsWith("delta") }).el);
      });
      more.append(details);
    }
    fill(this.grids, this.store.length ? [overview, more] : h("p", { class: "empty" }, this.state.status === "running" ? "No step is done yet. Its numbers appear here by themselves." : "No step of this run is recorded."));
  }

  measuredNow() {
    return Object.keys(this.store.columns).filter((name) => this.store.has(name)).sort().join();
  }

  // A reward of 0 and 1 and the share of correct answers, for example: one line hides the other.
  same(a, b) {
    const c = this.store.columns;
    return c[a].every((v, i) => v === c[b][i]);
  }

  chart(title, columns, { zero = false } = {}) {
    const signal = this.signals[columns[0][0]];
    const chart = new Chart({
      title, unit: signal?.unit ?? "", description: columns.map(([name]) => `${name}: ${this.signals[name]?.description ?? ""}`).join("\n"),
      lines: columns.map(([column, label, color, dash]) => ({ store: this.store, column, label, color, dash })),
      view: this.view, bands: true, zero, marks: () => [...this.alarms, ...this.guard], file: this.run,
      onpick: (index) => this.pin(this.store.columns.step[index]),
    });
    this.charts.push(chart);
    return chart;
  }

  pin(step) {
    change({ step });
    this.view.set({ pinned: step });
  }

  toolbar() {
    if (!this.atStep) return;
    const { view, store } = this, c = store.columns;
    const step = view.index !== null && view.index !== undefined ? c.step[view.index] : view.pinned;
    const band = store.bands.findLast((b) => b.from <= step);
    this.atStep.textContent = step === null || step === undefined ? "" : `step ${step}${band ? `, ${PHASES[band.phase]?.[0] ?? band.phase}` : ""}`;
    this.unzoom.hidden = !view.zoom;
    fill(this.pinBox, view.pinned === null ? null : [
      h("button", { type: "button", onclick: () => { change({ tab: "rollouts", step: view.pinned, sample: null, only: null }, true); this.openTab("rollouts", false); } }, `Rollouts of step ${view.pinned}`),
      h("button", { class: "quiet", type: "button", "aria-label": "Unpin the step", onclick: () => { change({ step: null }); view.set({ pinned: null }); } }, "✕")]);
  }

  grown() {
    if (this.grids && this.measured !== this.measuredNow()) this.drawGrids();
    else for (const chart of this.charts) chart.refresh();
    this.drawFigures();
    this.head();
    this.timeline.update(this.alarms, this.guard, param("alarm"));
    this.toolbar();
  }

  // ------------------------------------------------------------------------------------------------------- interaction

  listen() {
    const { view } = this;
    view.listeners.add((changed) => {
      if (changed.includes("zoom")) change({ zoom: view.zoom ? view.zoom.map((v) => Number(v.toPrecision(8))).join("~") : null });
      if (changed.some((c) => ["index", "pinned", "zoom"].includes(c))) this.toolbar();
    });
    addEventListener("theme", () => view.set({ theme: true }));
    const step = (by) => {
      if (param("tab") === "rollouts") return this.rollouts.move(by);
      const n = this.store.length;
      if (!n) return false;
      const from = view.index ?? (view.pinned === null ? (by > 0 ? -1 : n) : this.store.indexOf(view.pinned));
      const index = Math.min(n - 1, Math.max(0, from + by));
      view.set({ index, at: this.store.x(view.x)[index] });
      return true;
    };
    key("ArrowLeft", "one step back (charts, rollouts)", () => step(-1));
    key("ArrowRight", "one step on", () => step(1));
    key("Shift+ArrowLeft", "ten steps back", () => step(-10));
    key("Shift+ArrowRight", "ten steps on", () => step(10));
    key("Enter", "pin the step under the cursor", (e) => {
      if (e.target !== document.body && e.target !== this.main) return false;
      if (view.index === null) return false;
      this.pin(this.store.columns.step[view.index]);
      return true;
    });
    key("n", "next alarm", () => this.nextAlarm(1));
    key("p", "previous alarm", () => this.nextAlarm(-1));
    key("r", "rollouts", () => this.openTab("rollouts"));
    key("g", "charts", () => this.openTab("charts"));
    key("z", "zoom out", () => view.set({ zoom: null }));
    key("Escape", "close the alarm, unpin the step", () => {
      view.set({ index: null, at: null });
      if (param("alarm")) this.openAlarm(null);
      else { change({ step: null }); view.set({ pinned: null }); }
    });
    onBack(() => {
      view.set({ pinned: param("step") === null ? null : Number(param("step")) });
      this.openAlarm(param("alarm"), false);
      this.openTab(TABS.includes(param("tab")) ? param("tab") : "charts", false);
    });
  }

  nextAlarm(by) {
    if (!this.alarms.length) return false;
    const at = this.alarms.findIndex((a) => a.id === param("alarm"));
    const next = at < 0 ? (by > 0 ? 0 : this.alarms.length - 1) : Math.min(this.alarms.length - 1, Math.max(0, at + by));
    if (next !== at) this.openAlarm(this.alarms[next].id);
    return true;
  }
}
