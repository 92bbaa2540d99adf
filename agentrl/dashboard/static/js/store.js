// The rows of one run as columns, growing.

const PAUSE_S = 600, PAUSE_STEPS = 20;  // a gap longer than both is a pause: so many seconds, so many usual steps

export class Store {
  constructor(answer) {
    this.load(answer);
  }

  load({ columns, nonfinite, bands, phase, evals }) {
    this.columns = columns.step ? columns : { step: [] };
    this.nonfinite = nonfinite;
    this.bands = bands ?? [];
    this.phase = phase ?? null;
    this.setEvals(evals ?? []);
  }

  // Held-out accuracy as a column: an evaluation at step s is of the weights that sample row s, or after the last row.
  setEvals(evals) {
    this.evals = evals;
    const scored = evals.filter((e) => typeof e.em === "number");
    delete this.columns.held_out;
    if (!scored.length || !this.length) return;
    this.columns.held_out = new Array(this.length).fill(null);
    for (const { step, em } of scored) this.columns.held_out[this.indexOf(step)] = em;
  }

  get length() {
    return this.columns.step.length;
  }

  // Adds rows; one whose step is already there replaces it and what came after (the run was resumed).
  append(rows, bands, phase) {
    const c = this.columns;
    for (const row of rows) {
      if (c.step.length && c.step.at(-1) >= row.step) {
        const kept = c.step.findIndex((s) => s >= row.step);
        for (const values of Object.values(c)) values.length = kept;
        for (const [name, steps] of Object.entries(this.nonfinite)) this.nonfinite[name] = steps.filter((s) => s < row.step);
      }
      const n = c.step.length;
      for (const [name, value] of Object.entries(row)) {
        (c[name] ??= new Array(n).fill(null)).push(value);
        if (value === null) (this.nonfinite[name] ??= []).push(row.step);
      }
      for (const values of Object.values(c)) if (values.length === n) values.push(null);
    }
    if (bands) this.bands = bands;
    if (phase) this.phase = phase;
    this.setEvals(this.evals);
  }

  has(name) {
    const values = this.columns[name];
    return Boolean(values && values.some((v) => v !== null)) || Boolean(this.nonfinite[name]?.length);
  }

  // Values of the x axis: steps, sampled tokens, or minutes since the first row.
  x(mode) {
    const c = this.columns;
    if (mode === "tokens" && c.tokens) return monotone(c.tokens);
    if (mode === "time" && c.time) return this.clock().seconds.map((s) => s / 60);
    return c.step;
  }

  // Time spent at each row since the first, which never goes back; and the pauses, which are left out of it.
  clock() {
    const times = this.columns.time ?? [];
    if (this.clocked?.times === times && this.clocked.seconds.length === times.length && this.clocked.last === times.at(-1)) return this.clocked;
    const gaps = [];
    let before = null;
    for (const t of times) {
      if (t !== null && before !== null && t > before) gaps.push(t - before);
      before = t ?? before;
    }
    gaps.sort((a, b) => a - b);
    const usual = gaps.length ? gaps[gaps.length >> 1] : 0, longest = Math.max(PAUSE_S, PAUSE_STEPS * usual), pauses = [];
    let spent = 0;
    before = null;
    const seconds = times.map((t, i) => {
      if (t === null) return spent;
      const gap = before === null ? 0 : t - before;  // below 0: the clock was set back
      if (gap > longest) pauses.push({ index: i, step: this.columns.step[i], seconds: gap });
      spent += gap > longest || gap < 0 ? (i ? usual : 0) : gap;
      before = t;
      return spent;
    });
    this.clocked = { times, last: times.at(-1), seconds, pauses };
    return this.clocked;
  }

  indexOf(step) {
    const steps = this.columns.step;
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (steps[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

// A chart's x must not go back: a clock that was set back, or a row without it, stays where the last one was.
function monotone(values) {
  let last = 0;
  return values.map((v) => (last = v === null || v < last ? last : v));
}

// Exponential moving average with bias correction (as Adam's); gaps stay gaps.
export function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((v) => {
    if (v === null || v === undefined) return null;
    sum = weight * sum + (1 - weight) * v;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// What all charts of a page share: the cursor, the zoom, the axis, the smoothing.
export class View {
  constructor({ x = "step", smooth = 0, zoom = null, pinned = null }) {
    Object.assign(this, { x, smooth, zoom, pinned, index: null });
    this.listeners = new Set();
  }

  set(values, from = null) {
    Object.assign(this, values);
    for (const listener of this.listeners) listener(Object.keys(values), from);
  }
}
