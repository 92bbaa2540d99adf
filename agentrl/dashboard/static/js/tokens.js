// The token map: every sampled token of a trajectory, coloured by one of its values.
//
// The tokens of a part are made when it comes near the window, so that 32k tokens cost no long frame.
import { download, fill, h, longText } from "./dom.js";
import { reader, visible } from "./decode.js";
import { number } from "./format.js";
import { change, param } from "./url.js";

const known = (v) => typeof v === "number";  // a file of somebody else's may lack some
const PART = 300;  // tokens made at once
const LINE = 26;  // pixels, for the height of a part that is not made yet
const PER_LINE = 90;  // characters
const SAMPLED = 4000;  // values from which the colour scale is made

// `sides`: 2 for values around zero, 1 for sizes. Orange is what hurts correct responses: `flip` where that is positive.
const MEASURES = {
  nthr: { label: "NTHR score", sides: 2, flip: true, of: (t) => t.nthr_scores, why: "only with algorithm.nthr.enabled", says: ["harmless to penalise", "penalty hurts correct responses"] },
  delta: { label: "Δ log π by the update", sides: 2, of: (t) => t.delta_logprobs, why: "only correct responses of groups with both outcomes", says: ["less likely", "more likely"] },
  advantage: { label: "Advantage", sides: 2, of: (t) => t.advantages, why: "not for rollouts that were left out of the update", says: ["made less likely", "made more likely"] },
  entropy: { label: "Entropy", sides: 1, of: (t) => t.entropy, why: "not for rollouts that were left out of the update", says: ["certain", "uncertain"] },
  mismatch: { label: "Sampler mismatch", sides: 2, of: (t) => t.old_logprobs && t.logprobs && t.logprobs.map((v, i) => (known(v) && known(t.old_logprobs[i]) ? v - t.old_logprobs[i] : null)), why: "not for rollouts that were left out of the update", says: ["trainer finds it likelier", "sampler finds it likelier"] },
  surprise: { label: "Surprise (−log π)", sides: 1, of: (t) => t.logprobs?.map((v) => (known(v) ? -v : null)), why: "no log-probabilities are stored", says: ["expected", "surprising"] },
};
const PREFERRED = ["nthr", "delta", "entropy", "surprise", "advantage", "mismatch"];  // an advantage has one value per response
const UNITS = { nthr: "", delta: "nats", advantage: "", entropy: "nats", mismatch: "nats", surprise: "nats" };

export class TokenMap {
  constructor(row, file) {
    this.file = file;
    this.turns = row.turns ?? [];
    this.read = reader(this.turns);
    this.starts = [];  // number of sampled tokens before each turn
    this.count = 0;
    this.parts = [];  // {label, context, text} or {label, from, to}
    this.columns = Object.fromEntries(Object.entries(MEASURES).map(([name, m]) => [name, this.turns.map((t) => m.of(t) ?? null)]));
    this.turns.forEach((turn, i) => this.addTurn(turn, i));
    this.there = Object.keys(MEASURES).filter((name) => this.columns[name].some((c) => c?.some((v) => typeof v === "number")));
    const wanted = param("measure");
    this.measure = this.there.includes(wanted) ? wanted : PREFERRED.find((name) => this.columns[name].some((c) => c?.some((v) => v))) ?? this.there[0] ?? null;
    this.here = null;
    this.layout();
  }

  addTurn(turn, i) {
    this.parts.push({ label: i === 0 ? "Prompt" : "Tool output", context: true, text: (turn.prompt_tokens ?? []).map(this.read).join("") });
    const tokens = turn.action_tokens ?? [], first = this.count;
    this.starts.push(first);
    this.count += tokens.length;
    for (let start = 0; start < tokens.length;) {
      let end = Math.min(start + PART, tokens.length);
      for (let j = end; j > start + PART / 2 && end < tokens.length; j--) if (/[\nĊ]/.test(tokens[j - 1])) { end = j; break; }
      this.parts.push({ label: start === 0 ? `Agent, turn ${i + 1}` : null, from: first + start, to: first + end });
      start = end;
    }
  }

  // Turn and place in it of the token with that number.
  at(index) {
    let turn = this.starts.length - 1;
    while (this.starts[turn] > index) turn--;
    return [turn, index - this.starts[turn]];
  }

  value(name, turn, at) {
    const value = this.columns[name]?.[turn]?.[at];
    return typeof value === "number" ? value : undefined;
  }

  token(index) {
    const [turn, at] = this.at(index), t = this.turns[turn];
    return { turn, at, id: t.action_ids?.[at], text: this.read(String(t.action_tokens[at])), selected: Boolean(t.nthr_selected?.[at]), answer: Boolean(t.answer_span && at >= t.answer_span[0] && at < t.answer_span[1]) };
  }

  layout() {
    const select = h("select", { "aria-label": "Colour tokens by", onchange: () => { this.measure = select.value; change({ measure: select.value }); this.recolour(); } },
      Object.entries(MEASURES).map(([name, m]) => h("option", { value: name, disabled: !this.there.includes(name) }, this.there.includes(name) ? m.label : `${m.label} (not recorded)`)));
    if (this.measure) select.value = this.measure;
    this.scale = h("span", { class: "scale" });
    this.readout = h("div", { class: "readout", role: "status", "aria-live": "polite" });
    this.map = h("div", { class: "map", tabindex: 0, role: "group", "aria-label": "Token map. Arrow keys go from token to token." });
    const marks = [this.turns.some((t) => t.nthr_selected?.some(Boolean)) ? "double underline: penalty softened by NTHR" : null, this.turns.some((t) => t.answer_span) ? "green line: final answer" : null].filter(Boolean);
    const absent = Object.entries(MEASURES).filter(([name]) => !this.there.includes(name)).map(([, m]) => `${m.label} (${m.why})`);
    this.el = h("div", {},
      h("div", { class: "row" }, h("label", { class: "muted" }, "Colour by "), select, this.scale),
      h("div", { class: "row mark-note" }, marks.join(" · "), h("span", { class: "grow" }), h("button", { class: "quiet", type: "button", onclick: () => this.csv() }, "CSV")), absent.length ? h("div", { class: "mark-note" }, `Not recorded here: ${absent.join("; ")}.`) : null, this.readout, this.map);
    const near = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) { near.unobserve(target); this.make(target); }
    }, { root: this.map, rootMargin: "700px" });
    this.boxes = [];
    for (const part of this.parts) {
      if (part.label) this.map.append(h("div", { class: "label" }, part.label));
      const box = h("div", { class: part.context ? "part context" : "part" });
      if (part.context) longText(box, part.text);
      else {
        box.span = part;
        box.style.minHeight = `${Math.ceil((5 * (part.to - part.from)) / PER_LINE) * LINE}px`;
        near.observe(box);
        this.boxes.push(box);
      }
      this.map.append(box);
    }
    this.map.addEventListener("pointerover", (e) => { if (e.target.token !== undefined) this.show(e.target.token); });
    this.map.addEventListener("keydown", (e) => this.onkey(e));
    this.range();
    this.show(null);
  }

  make(box) {
    if (box.childElementCount) return;
    const { from, to } = box.span, all = document.createDocumentFragment();
    for (let i = from; i < to; i++) {
      const span = document.createElement("span"), token = this.token(i);
      span.textContent = token.text;
      span.token = i;
      span.className = this.look(token);
      all.append(span);
    }
    box.append(all);
    box.style.minHeight = "";
  }

  look(t) {
    const value = this.value(this.measure, t.turn, t.at);
    let name = "none";
    if (value !== undefined) {
      const sign = MEASURES[this.measure].flip ? -1 : 1, bin = sign * Math.sign(value) * Math.min(5, Math.round(5 * Math.sqrt(Math.abs(value) / this.top)));
      name = bin < 0 ? `n${-bin}` : bin > 0 ? `p${bin}` : "z0";
    }
    return `t ${name}${t.selected ? " sel" : ""}${t.answer ? " ans" : ""}`;
  }

  // The colour is full at the 98th percentile and grows with the square root: a few large values, and scores are often
  // of that kind, must not turn everything else white.
  range() {
    const every = Math.ceil(this.count / SAMPLED), values = [];
    for (const column of this.columns[this.measure] ?? []) for (let i = 0; i < (column?.length ?? 0); i += every) if (typeof column[i] === "number") values.push(Math.abs(column[i]));
    values.sort((a, b) => a - b);
    this.top = values[Math.floor(0.98 * (values.length - 1))] || values.at(-1) || 1;
    const m = MEASURES[this.measure];
    if (!m) return;
    const bins = m.sides === 2 ? ["n5", "n4", "n3", "n2", "n1", "z0", "p1", "p2", "p3", "p4", "p5"] : ["z0", "p1", "p2", "p3", "p4", "p5"];
    if (m.flip) bins.reverse();
    this.scale.title = "the colour grows with the square root of the value";
    fill(this.scale, h("span", {}, m.says[0]), h("span", {}, m.sides === 2 ? number(-this.top, 2) : "0"), h("span", { class: "bins", "aria-hidden": "true" }, bins.map((b) => h("i", { class: b }))), h("span", {}, number(this.top, 2)), h("span", {}, m.says[1]));
  }

  recolour() {
    this.range();
    const top = this.map.scrollTop, far = (box) => Math.abs(box.offsetTop - this.map.offsetTop - top);
    const made = this.boxes.filter((box) => box.childElementCount).map((box) => [far(box), box]).sort((a, b) => a[0] - b[0]);
    const run = (this.colouring = {});
    const some = () => {  // two parts per frame, what is in sight first
      if (this.colouring !== run) return;  // another measure was picked meanwhile
      for (const [, box] of made.splice(0, 2)) for (const span of box.children) span.className = this.look(this.token(span.token));
      if (made.length) requestAnimationFrame(some);
    };
    some();
    this.show(this.here);
  }

  show(index) {
    this.marked?.classList.remove("here");
    this.here = index;
    if (index === null) {
      fill(this.readout, h("span", { class: "muted" }, this.count ? `${number(this.count)} sampled tokens in ${this.turns.length} turns. Point at one, or use the arrow keys, for its exact values.` : "This trajectory has no sampled tokens."));
      return;
    }
    const t = this.token(index), value = (n) => this.value(n, t.turn, t.at);
    const order = [this.measure, ...Object.keys(MEASURES).filter((n) => n !== this.measure)];
    fill(this.readout, h("span", { class: "tok mono" }, visible(t.text)), h("span", { class: "muted" }, `turn ${t.turn + 1}, token ${t.at + 1}${t.id === undefined ? "" : `, id ${t.id}`}`),
      order.filter((n) => value(n) !== undefined).map((n) => h("span", { class: n === this.measure ? "main" : "" }, `${MEASURES[n].label} ${exact(value(n))}${UNITS[n] ? ` ${UNITS[n]}` : ""}`)),
      t.selected ? h("span", {}, "softened by NTHR") : null);
  }

  onkey(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 15, ArrowUp: -15, Home: -Infinity, End: Infinity }[event.key];
    if (!move || !this.count || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const index = Math.min(this.count - 1, Math.max(0, (this.here ?? (move > 0 ? -1 : this.count)) + move));
    const box = this.boxes.find((b) => index >= b.span.from && index < b.span.to);
    this.make(box);
    this.show(index);
    this.marked = box.children[index - box.span.from];
    this.marked.classList.add("here");
    this.marked.scrollIntoView({ block: "nearest" });
  }

  csv() {
    const names = this.there, quote = (text) => `"${visible(text).replaceAll('"', '""').replace(/^([=+\-@])/, "'$1")}"`;
    const lines = [["turn", "token", "id", "text", ...names].join(",")];
    for (let i = 0; i < this.count; i++) {
      const t = this.token(i);
      lines.push([t.turn + 1, t.at + 1, t.id ?? "", quote(t.text), ...names.map((n) => this.value(n, t.turn, t.at) ?? "")].join(","));
    }
    download(`${this.file}-tokens.csv`, new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  }
}

function exact(value) {
  const rounded = Number(value.toPrecision(7)), text = rounded && Math.abs(rounded) < 1e-4 ? rounded.toExponential() : String(rounded);
  return text.replace(/^-/, "−");
}
