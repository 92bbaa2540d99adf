// The rollouts of one step: a table with filters, and one trajectory as a conversation, as tokens, or beside its group.
import { get } from "./api.js";
import { conversation, verdict } from "./conversation.js";
import { fill, h, segmented } from "./dom.js";
import { mean, number, plural } from "./format.js";
import { key } from "./keys.js";
import { TokenMap } from "./tokens.js";
import { change, param } from "./url.js";

const VERDICTS = { all: "all outcomes", correct: "correct", incorrect: "incorrect", tool: "tool error", failed: "failed", truncated: "truncated", open: "not judged", differs: "grader disagrees" };
const ORDERS = { group: "by prompt", worst: "worst first", best: "best first" };
const FITS = {
  all: () => true, correct: (r) => r.correct, incorrect: (r) => r.correct === false && !r.error, tool: (r) => r.tool_error, failed: (r) => Boolean(r.error), truncated: (r) => r.truncated,
  open: (r) => r.correct === null && !r.error, differs: (r) => Object.values(r.grades ?? {}).some((grade) => disagrees(r, grade)),
};
const worth = (r) => (r.error ? null : r.reward ?? r.advantage ?? null);  // what worst and best go by

// A grade against the verdict that is stored, or against the reward where there is none.
function disagrees(r, grade) {
  if (typeof grade !== "number") return false;
  if (r.correct !== null) return grade >= 1 - 1e-6 !== r.correct;
  return typeof r.reward === "number" && Math.abs(grade - r.reward) > 1e-6;
}

export class RolloutTab {
  constructor(run, panel, alarms, onstep) {
    Object.assign(this, { run, panel, alarms, onstep, steps: { step: [], eval: [] }, rows: [], loaded: null, sample: null, detailFor: null });
    this.panel.classList.add("rollout-tab");
    key("j", "next rollout", () => this.next(1));
    key("k", "previous rollout", () => this.next(-1));
  }

  // Shows what the address asks for.
  async open(steps) {
    if (steps) this.steps = steps;
    if (!this.filters) this.layout();
    this.kind = param("kind") === "eval" ? "eval" : "step";
    const stored = this.steps[this.kind];
    this.kinds.pick(this.kind);
    this.verdict.value = VERDICTS[param("verdict")] ? param("verdict") : "all";
    this.search.value = param("q", "");
    this.low.value = param("from", "");
    this.high.value = param("to", "");
    this.order.value = ORDERS[param("order")] ? param("order") : "group";
    this.every.checked = param("all") === "1";
    if (!stored.length) {
      fill(this.say, h("p", { class: "empty" }, this.kind === "eval" ? "No evaluation of this run stored its rollouts." : "No rollouts are stored yet. log.rollout_groups says how many groups are kept per step; agentrl import --rollouts reads another trainer's."));
      this.showing(false);
      return;
    }
    this.showing(true);
    const wanted = param("step") === null ? stored.at(-1) : Number(param("step"));
    const step = stored.reduce((best, s) => (Math.abs(s - wanted) < Math.abs(best - wanted) ? s : best), stored[0]);
    this.step.value = step;
    this.missing = step === wanted ? "" : `Rollouts of ${this.kind === "eval" ? "evaluation" : "step"} ${wanted} were not stored; these are of ${step}. `;
    if (this.every.checked) return this.openAll(step);
    const name = `${this.kind} ${step}`;
    this.looked = null;
    try {
      if (this.loaded !== name) {
        fill(this.say, h("p", { class: "muted" }, "Reading …"));
        const answer = await get("rollouts", { run: this.run, step, kind: this.kind });
        this.rows = answer.rows;
        this.steps[this.kind] = answer.steps;
        this.loaded = name;
        this.detailFor = null;
        this.current = step;
      }
      this.groups();
      this.draw();
    } catch (error) {
      fill(this.say, h("div", { class: "notice error", role: "alert" }, error.message));
      fill(this.list);
      fill(this.detail);
      this.current = step;
      this.loaded = null;
    }
  }

  // The rollouts of all stored steps that hold the text, or are of one prompt: the server looks through its files.
  async openAll(step) {
    const q = this.search.value.trim(), prompt = param("prompt");
    this.current ??= step;
    if (!q && !prompt) {
      this.loaded = null;
      this.rows = [];
      fill(this.say, h("p", { class: "muted small" }, "Type what to look for in all stored steps."));
      fill(this.list, h("p", { class: "empty" }, "Nothing is searched for."));
      fill(this.detail);
      return;
    }
    const name = `${this.kind} all ${prompt} ${q}`;
    try {
      if (this.loaded !== name) {
        this.loaded = name;
        fill(this.say, h("p", { class: "muted" }, "Searching …"));
        const answer = await get("search", { run: this.run, kind: this.kind, q, prompt });
        if (this.loaded !== name) return;  // something else was asked for meanwhile
        this.rows = answer.rows;
        this.looked = answer.looked < answer.steps.length ? `The search stopped after ${plural(answer.rows.length, "rollout")} in ${answer.looked} of ${plural(answer.steps.length, "step")}, the last ones first. ` : `All ${plural(answer.steps.length, "stored step")} searched. `;
        this.detailFor = null;
      }
      this.groups();
      this.draw();
    } catch (error) {
      fill(this.say, h("div", { class: "notice error", role: "alert" }, error.message));
      this.loaded = null;
    }
  }

  layout() {
    const store = (values) => { change({ ...values, sample: null }); this.open(); };
    this.kinds = segmented("Kind of rollouts", [["step", "Training"], ["eval", "Evaluation"]], "step", (kind) => store({ kind: kind === "step" ? null : kind, step: null, only: null }));
    this.step = h("input", { type: "number", min: 0, "aria-label": "Step", onchange: () => store({ step: this.step.value }) });
    this.verdict = h("select", { "aria-label": "Outcome", onchange: () => store({ verdict: this.verdict.value === "all" ? null : this.verdict.value }) }, Object.entries(VERDICTS).map(([v, label]) => h("option", { value: v }, label)));
    this.group = h("select", { "aria-label": "Group", onchange: () => store({ group: this.group.value }) });
    this.search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search questions and answers", oninput: () => { change({ q: this.search.value }); if (this.every.checked) this.later(); else this.draw(); } });
    this.every = h("input", { type: "checkbox", onchange: () => store({ all: this.every.checked ? 1 : null, prompt: null }) });
    this.order = h("select", { "aria-label": "Order", onchange: () => store({ order: this.order.value === "group" ? null : this.order.value }) }, Object.entries(ORDERS).map(([v, label]) => h("option", { value: v }, label)));
    const bound = (name, label) => h("input", { type: "number", step: "any", placeholder: label, "aria-label": `Reward ${label}`, oninput: (e) => { change({ [name]: e.target.value }); this.draw(); } });
    this.low = bound("from", "from");
    this.high = bound("to", "to");
    this.only = h("input", { type: "checkbox", onchange: () => store({ only: this.only.checked ? "alarm" : null }) });
    this.onlyLabel = h("label", {}, this.only, "named by an alarm");
    this.say = h("div", { role: "status" });
    this.list = h("div", { class: "card list", tabindex: 0, role: "region", "aria-label": "Rollouts of the step" });
    this.detail = h("div", { class: "card detail" });
    this.filters = h("div", { class: "filters" }, this.kinds,
      h("button", { type: "button", "aria-label": "Previous stored step", onclick: () => this.move(-1) }, "←"), h("label", {}, "Step", this.step), h("button", { type: "button", "aria-label": "Next stored step", onclick: () => this.move(1) }, "→"),
      this.verdict, this.order, this.group, h("label", {}, "Reward", this.low, "–", this.high), this.onlyLabel, this.search, h("label", {}, this.every, "all steps"));
    this.body = h("div", { class: "rollouts" }, this.list, this.detail);
    fill(this.panel, this.filters, this.say, this.body);
  }

  later() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.open(), 300);
  }

  // Where nothing is stored there is nothing to filter.
  showing(something) {
    for (const element of [this.body, ...[...this.filters.children].filter((e) => e !== this.kinds)]) element.hidden = !something;
  }

  // The stored step before or after this one; at the end it looks whether there are newer ones.
  move(by) {
    const stored = this.steps[this.kind] ?? [], at = stored.indexOf(this.current);
    const next = stored[Math.min(stored.length - 1, Math.max(0, at + by))];
    if (by > 0 && at === stored.length - 1) {
      get("run", { run: this.run }).then((answer) => {
        if (answer.rollout_steps[this.kind].length > stored.length) { this.steps = answer.rollout_steps; this.move(by); }
      }, () => {});
      return true;
    }
    if (next === undefined || next === this.current) return true;
    change({ step: next, sample: null, only: null });
    this.onstep(next);
    this.open();
    return true;
  }

  next(by) {
    if (param("tab") !== "rollouts") return false;
    const all = this.visible(), shown = this.order.value === "group" ? all : ranked(all, this.order.value);
    const at = shown.findIndex((r) => r.sample_id === this.sample && (r.step === undefined || r.step === this.current));
    const row = shown[Math.min(shown.length - 1, Math.max(0, at + by))];
    if (row) this.pick(row.sample_id, true, row.step);
    return true;
  }

  groups() {
    const ids = [...new Set(this.rows.map((r) => r.group_id))];
    this.number = new Map(ids.map((id, i) => [id, i + 1]));
    fill(this.group, h("option", { value: "" }, "all groups"), ids.map((id) => h("option", { value: id }, `group ${this.number.get(id)}: ${this.rows.find((r) => r.group_id === id).question.slice(0, 40)}`)));
    this.group.value = ids.includes(param("group")) ? param("group") : "";
    const named = this.named();
    this.onlyLabel.hidden = !named;
    this.only.checked = Boolean(named) && param("only") === "alarm";
  }

  // What the open alarm names, if it is of this step, or else what any alarm of this step does.
  named() {
    const here = this.kind === "step" ? this.alarms().filter((a) => a.step === this.current) : [];
    const open = here.filter((a) => a.id === param("alarm")), of = open.length ? open : here;
    return of.length ? { samples: new Set(of.flatMap((a) => a.rollouts ?? [])), groups: new Set(of.flatMap((a) => a.groups ?? [])) } : null;
  }

  visible() {
    const text = this.search.value.toLowerCase(), named = this.only.checked ? this.named() : null;
    const low = this.low.value === "" ? -Infinity : Number(this.low.value), high = this.high.value === "" ? Infinity : Number(this.high.value);
    const bounded = this.low.value !== "" || this.high.value !== "";
    return this.rows.filter((r) => FITS[this.verdict.value](r) && (!this.group.value || r.group_id === this.group.value)
      && (!named || (named.samples.size ? named.samples.has(r.sample_id) : named.groups.has(r.group_id)))
      && (!bounded || (typeof r.reward === "number" && r.reward >= low && r.reward <= high))
      && (this.every.checked || !text || `${r.question} ${r.answer ?? ""} ${r.sample_id} ${r.error ?? ""}`.toLowerCase().includes(text)));
  }

  draw() {
    const shown = this.visible(), named = this.named();
    const lost = this.only.checked && named ? [...named.samples].filter((id) => !this.rows.some((r) => r.sample_id === id)).length : 0;
    const one = this.every.checked && param("prompt");
    fill(this.say, h("p", { class: "muted small" }, this.every.checked ? this.looked : this.missing, one ? h("button", { type: "button", onclick: () => { change({ prompt: null, all: null, sample: null }); this.open(); } }, "One prompt ✕") : null, `${shown.length} of ${plural(this.rows.length, "rollout")} in ${plural(this.number.size, "group")}. `, lost ? `${lost} of those that an alarm names were not stored (log.rollout_groups).` : ""));
    const graders = [...new Set(shown.flatMap((r) => Object.keys(r.grades ?? {})))].slice(0, 2);
    const line = (r) => {
      const hit = named && (named.samples.has(r.sample_id) || (!named.samples.size && named.groups.has(r.group_id)));
      return h("tr", { class: "pick", "aria-selected": String(r.sample_id === this.sample), data: { sample: r.sample_id, ...(r.step === undefined ? {} : { step: r.step }) }, onclick: () => this.pick(r.sample_id, true, r.step) },
        h("td", { class: "nowrap" }, h("button", { class: "quiet", type: "button" }, verdict(r), h("span", { class: "sr" }, `, rollout ${r.sample_id}`)), hit ? h("span", { class: "level", data: { level: "warn" }, title: "named by an alarm" }, "") : null),
        this.every.checked ? h("td", { class: "num" }, number(r.step)) : null,
        h("td", { class: "num" }, number(r.reward, 3)), graders.map((name) => h("td", { class: disagrees(r, r.grades[name]) ? "num differs" : "num" }, number(r.grades[name], 3))), h("td", { class: "q", title: r.answer }, r.answer === null ? (r.tool_error ? "tool error" : "no answer") : brief(r.answer, 80)),
        h("td", { class: "num" }, number(r.turns)), h("td", { class: "num" }, number(r.tokens)));
    };
    const group = (id) => {
      const all = this.rows.filter((r) => r.group_id === id), rewards = all.map((r) => r.reward).filter((v) => typeof v === "number");
      return h("tr", { class: "group" }, h("th", { colspan: 5 + graders.length + (this.every.checked ? 1 : 0), scope: "rowgroup", class: "q", title: all[0].question }, h("b", {}, `${this.number.get(id)}. ${brief(all[0].question, 160)}`), " ",
        h("span", { class: "nowrap" }, `${said(all)}${rewards.length ? `, mean reward ${number(mean(rewards), 3)}` : ""}`)));
    };
    fill(this.list, shown.length ? h("table", {}, h("caption", { class: "sr" }, "Rollouts"),
      h("thead", {}, h("tr", {}, [["Outcome"], ...(this.every.checked ? [["Step", "num"]] : []), ["Reward", "num"], ...graders.map((name) => [name, "num"]), ["Answer"], ["Turns", "num"], ["Tokens", "num"]].map(([t, c]) => h("th", { class: c, scope: "col" }, t)))),
      this.order.value !== "group" ? h("tbody", {}, ranked(shown, this.order.value).map(line)) : [...this.number.keys()].map((id) => [id, shown.filter((r) => r.group_id === id)]).filter(([, rows]) => rows.length).map(([id, rows]) => h("tbody", {}, group(id), rows.map(line)))) : h("p", { class: "empty" }, "No rollout matches the filters."));
    const wanted = param("sample") ?? this.sample;
    const first = this.order.value === "group" ? shown[0] : ranked(shown, this.order.value)[0];
    const here = (r) => r.sample_id === wanted && (r.step === undefined || param("step") === null || r.step === Number(param("step")));
    const row = shown.find(here) ?? first;
    if (row) this.pick(row.sample_id, false, row.step);
    else fill(this.detail, h("p", { class: "empty" }, "Nothing is selected."));
  }

  async pick(sample, push = true, step = undefined) {
    this.sample = sample;
    if (step !== undefined) this.current = step;
    if (push) change({ sample, step: this.current });
    for (const tr of this.list.querySelectorAll("tr.pick")) {
      const is = tr.dataset.sample === sample && (tr.dataset.step === undefined || Number(tr.dataset.step) === this.current);
      tr.setAttribute("aria-selected", String(is));
      if (!is) continue;
      if (push) tr.scrollIntoView({ block: "nearest" });
      else if (tr.offsetTop + tr.offsetHeight > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = tr.offsetTop - this.list.clientHeight / 2;
    }
    const name = `${this.loaded} ${this.current} ${sample}`;
    if (this.detailFor === name) return;
    this.detailFor = name;
    try {
      const row = await get("rollout", { run: this.run, step: this.current, kind: this.kind, sample });
      if (this.detailFor === name) this.drawDetail(row);
    } catch (error) {
      if (this.detailFor === name) fill(this.detail, h("div", { class: "notice error" }, error.message));
    }
  }

  drawDetail(row) {
    const looks = { conversation: "Conversation", tokens: "Tokens", group: "Group" };
    const current = looks[param("look")] ? param("look") : "conversation";
    const body = h("div");
    const draw = async (look) => {
      if (look === "tokens") fill(body, new TokenMap(row, `${this.run}-${row.sample_id}`).el);
      else if (look === "group") await this.drawGroup(row, body);
      else fill(body, conversation(row));
    };
    fill(this.detail,
      h("div", { class: "row" }, verdict(row.summary), h("span", {}, `reward ${number(row.reward, 3)}`), row.truncated ? h("span", { class: "pill" }, "truncated") : null,
        h("span", { class: "muted small" }, `group ${this.number.get(String(row.group_id))}${row.policy_version === null || row.policy_version === undefined ? "" : `, policy version ${row.policy_version}`}`), h("code", { class: "muted" }, row.sample_id), Object.entries(row.grades ?? {}).map(([name, grade]) => h("span", { class: "pill" }, `${name} ${grade === null ? "failed" : number(grade, 3)}`)), h("span", { class: "grow" }),
        row.summary.prompt ? h("button", { class: "quiet", type: "button", title: "the rollouts of this prompt at all stored steps", onclick: () => { change({ all: 1, prompt: row.summary.prompt, q: null, group: null, only: null }, true); this.open(); } }, "All of this prompt") : null,
        segmented("Look at it as", Object.entries(looks), current, (look) => { change({ look: look === "conversation" ? null : look }); draw(look); })),
      body);
    draw(current);
  }

  async drawGroup(row, body) {
    fill(body, h("p", { class: "muted" }, "Reading …"));
    try {
      const { rows } = await get("group", { run: this.run, step: this.current, kind: this.kind, group: row.group_id });
      fill(body, h("div", { class: "turns" }, h("div", { class: "turn ask" }, String(row.task?.question ?? ""))),
        h("div", { class: "siblings", tabindex: 0, role: "region", "aria-label": "The group's responses side by side" }, rows.map((r) =>
          h("section", { class: `sibling${r.sample_id === row.sample_id ? " current" : ""}`, "aria-label": `Response ${r.sample_id}` },
            h("div", { class: "row" }, verdict(r.summary), h("span", { class: "muted" }, `reward ${number(r.reward, 3)}`), h("span", { class: "grow" }), h("button", { class: "quiet", type: "button", onclick: () => { change({ look: null }); this.detailFor = null; this.pick(String(r.sample_id)); } }, "Open")),
            conversation(r, { short: true })))));
    } catch (error) {
      fill(body, h("div", { class: "notice error" }, error.message));
    }
  }
}

// Of those that were judged, how many are correct; nothing where none was.
function said(rows) {
  const judged = rows.filter((r) => r.correct !== null);
  return judged.length ? `${judged.filter((r) => r.correct).length} of ${judged.length} correct` : plural(rows.length, "rollout");
}

function ranked(rows, order) {
  const sign = order === "worst" ? 1 : -1, last = (v) => v === null;
  return rows.toSorted((a, b) => { const x = worth(a), y = worth(b); return last(x) - last(y) || sign * (x - y); });
}

function brief(text, length) {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
