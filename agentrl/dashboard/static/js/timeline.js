// Phases and alarms over the whole run. A click on an alarm opens it.
import { fill, h } from "./dom.js";
import { PHASES, plural } from "./format.js";
import { phaseLegend } from "./chart.js";

const GLYPH = { info: "●", warn: "▲", critical: "◆" };
const GUARD = { protect: "■", release: "□", rollback: "↶", stop: "×" };
const COLOR = { info: "var(--info)", warn: "var(--warn)", critical: "var(--bad)" };

export class Timeline {
  constructor(store, view, onalarm, onguard) {
    Object.assign(this, { store, view, onalarm, onguard, alarms: [], guard: [], width: 0 });
    this.lane = h("div", { class: "lane" });
    this.head = h("div", { class: "head" });
    this.ends = h("div", { class: "ends" });
    this.el = h("section", { class: "card timeline", "aria-label": "Phases and alarms" }, this.head, this.lane, this.ends);
    this.at = h("div", { class: "at", hidden: true });
    this.zoomed = h("div", { class: "zoomed", hidden: true });
    new ResizeObserver(() => { if (this.lane.clientWidth !== this.width) this.update(this.alarms, this.guard, this.selected); }).observe(this.lane);
    view.listeners.add((changed) => { if (changed.some((c) => ["index", "zoom", "x", "pinned"].includes(c))) this.moved(); });
  }

  update(alarms, guard, selected) {
    Object.assign(this, { alarms, guard, selected, width: this.lane.clientWidth });
    const { store } = this, steps = store.columns.step;
    const first = steps[0] ?? 0, last = Math.max(steps.at(-1) ?? 0, first + 1);
    this.place = (step) => `${(100 * Math.min(1, Math.max(0, (step - first) / (last - first)))).toFixed(3)}%`;
    const strip = h("div", { class: "strip" }, store.bands.map((band) => {
      const box = h("div", { class: "seg", title: `${PHASES[band.phase]?.[0] ?? band.phase}, steps ${band.from} to ${band.to}: ${PHASES[band.phase]?.[1] ?? ""}` });
      const share = (band.to + 1 - band.from) / (last - first);
      Object.assign(box.style, { left: this.place(band.from), width: `${Math.min(100, 100 * share)}%`, background: `var(--ph-${band.phase})` });
      const fits = (name) => share * this.width > 10 + 6.5 * name.length;  // half a name would be another phase's
      box.textContent = [PHASES[band.phase]?.[0] ?? band.phase, ...(band.phase.startsWith("I") ? [band.phase] : [])].find(fits) ?? "";
      return box;
    }));
    const lanes = [-10, -10], apart = 24 / (this.width || 1000);
    const marks = alarms.map((a) => {
      const at = (a.step - first) / (last - first);
      const lane = at - lanes[0] > apart ? 0 : at - lanes[1] > apart ? 1 : 0;
      lanes[lane] = at;
      const name = `${a.level} alarm ${a.rule.replaceAll("_", " ")} at step ${a.step}`;
      const mark = h("button", { class: `mark${a.acknowledged ? " seen" : ""}`, type: "button", "aria-pressed": String(a.id === selected), "aria-label": `${name}${a.acknowledged ? ", acknowledged" : ""}`, title: `${name}: ${a.message}`, onclick: () => this.onalarm(a.id) }, GLYPH[a.level] ?? "●");
      Object.assign(mark.style, { left: this.place(a.step), top: lane ? "0px" : "auto", color: COLOR[a.level] ?? "" });
      return mark;
    });
    for (const action of guard) {
      const name = `guard: ${action.kind} at step ${action.step}`;
      const mark = h("button", { class: "mark", type: "button", "aria-label": name, title: `${name}: ${action.reason ?? ""}`, onclick: () => this.onguard(action) }, GUARD[action.kind] ?? "■");
      Object.assign(mark.style, { left: this.place(action.step), top: "0px", color: "var(--s4)" });
      marks.push(mark);
    }
    this.lane.classList.toggle("two", marks.some((m) => m.style.top === "0px"));
    fill(this.lane, strip, this.zoomed, this.at, marks);
    const open = alarms.filter((a) => !a.acknowledged).length;
    fill(this.head, h("h2", {}, "Phases and alarms"), h("span", { class: "muted small" }, alarms.length ? `${plural(alarms.length, "alarm")}, ${open} not acknowledged` : "no alarms"), guard.length ? h("span", { class: "muted small" }, `${plural(guard.length, "action")} of the guard (■ protect, □ release, ↶ roll back, × stop)`) : null, h("span", { class: "grow" }), phaseLegend(store));
    fill(this.ends, h("span", {}, `step ${first}`), h("span", {}, `step ${steps.at(-1) ?? 0}`));
    this.moved();
  }

  moved() {
    const { view, store } = this, xs = store.x(view.x), steps = store.columns.step;
    const step = view.index !== null && view.index !== undefined ? steps[view.index] : view.pinned;
    this.at.hidden = step === null || step === undefined;
    if (!this.at.hidden) this.at.style.left = this.place(step);
    this.zoomed.hidden = !view.zoom || !steps.length;
    if (!this.zoomed.hidden) {
      const near = (x) => { const i = xs.findIndex((v) => v >= x); return steps[i < 0 ? steps.length - 1 : i]; };
      const [a, b] = [near(view.zoom[0]), near(view.zoom[1])];
      Object.assign(this.zoomed.style, { left: this.place(a), right: `${100 - parseFloat(this.place(b))}%` });
    }
  }
}
