// Numbers, times and words for people.

export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);  // a file that somebody else has written
  if (value < 0) return `−${number(-value, digits)}`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  const text = value.toPrecision(digits);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

export function ago(seconds) {
  if (!seconds) return "never";
  const s = Date.now() / 1000 - seconds;
  if (s < 5) return "now";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (s >= size) return `${Math.floor(s / size)} ${unit} ago`;
  return `${Math.floor(s)} s ago`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// A signal's name for people.
const NAMES = { clip_fraction: "clipped tokens", kl: "KL", kl_sampler: "KL to the sampler", valid_search_ratio: "valid searches", valid_action_ratio: "valid actions", held_out: "held-out accuracy", grad_norm: "gradient norm", grad_norm_max: "gradient norm, largest", probe_logprob: "log π probe set" };

export function words(name) {
  return NAMES[name] ?? name.replace(/^logprob_/, "log π ").replace(/^delta_/, "Δ ").replaceAll("_", " ");
}

export function plural(count, word) {
  return `${number(count)} ${word}${count === 1 ? "" : "s"}`;
}

export function mean(values) {
  return values.reduce((sum, v) => sum + v, 0) / values.length;
}

export const PHASES = {
  warmup: ["warm-up", "too few steps to say"],
  learning: ["learning", "correct responses become more likely"],
  plateau: ["plateau", "neither likelihood nor reward moves"],
  I: ["phase I", "early stagnation: the likelihood of correct responses is flat while the reward rises"],
  II: ["phase II", "steady decay: the likelihood of correct responses falls, the reward does not yet"],
  III: ["phase III", "acceleration: it falls faster, or entropy, gradient norm or the reward go with it"],
};

// One line about a series: what a chart would tell at a glance.
export function says(steps, values) {
  const points = steps.map((s, i) => [s, values[i]]).filter(([, v]) => v !== null && v !== undefined);
  if (!points.length) return "not measured";
  if (points.length === 1) return `${number(points[0][1])} at step ${points[0][0]}`;
  const high = points.reduce((a, b) => (b[1] > a[1] ? b : a)), low = points.reduce((a, b) => (b[1] < a[1] ? b : a));
  const level = (part) => mean(part.map(([, v]) => v));
  const edge = Math.max(1, Math.min(5, points.length >> 1)), begin = level(points.slice(0, edge)), end = level(points.slice(-edge));
  const spread = high[1] - low[1];
  if (spread <= 1e-9 * Math.abs(high[1])) return `${number(high[1])} throughout.`;
  const recent = points.slice(-20), half = recent.length >> 1;
  const change = recent.length > 3 ? level(recent.slice(half)) - level(recent.slice(0, half)) : 0;
  const trend = Math.abs(change) < 0.06 * spread ? "steady" : change > 0 ? "rising" : "falling";
  return `From ${number(begin, 3)} to ${number(end, 3)}; highest ${number(high[1], 3)} at step ${high[0]}, lowest ${number(low[1], 3)} at ${low[0]}; lately ${trend}.`;
}
