// Which charts there are: the curated ones first, then every signal by section.

export const OVERVIEW = [
  { title: "Reward", columns: [["reward", "reward", "s1"], ["correct_rate", "correct", "s3", true], ["held_out", "held-out accuracy", "s7"]] },
  { title: "Likelihood of responses", columns: [["logprob_correct", "correct", "s1"], ["logprob_incorrect", "incorrect", "s2"]] },
  { title: "Δ of correct responses", columns: [["delta_correct", "Δ by the update", "s1"]], zero: true },
  { title: "Likelihood of the probe set", columns: [["probe_logprob", "stored correct responses", "s4"]] },
  { title: "Entropy", columns: [["entropy", "entropy", "s4"]] },
  { title: "Gradient norm", columns: [["grad_norm", "mean", "s3"], ["grad_norm_max", "largest", "s5", true]] },
  { title: "Clipped tokens", columns: [["clip_fraction", "all", "s2"], ["clip_fraction_low", "below", "s4", true], ["clip_fraction_high", "above", "s3", true]] },
  { title: "KL to the reference", columns: [["kl", "KL", "s6"]], hint: "set algorithm.loss.kl_coef above 0 to measure it" },
  { title: "Length", columns: [["response_length", "response", "s1"], ["context_length", "context", "s5", true]] },
  { title: "Valid actions and searches", columns: [["valid_search_ratio", "valid searches", "s1"], ["valid_action_ratio", "valid actions", "s3", true]] },
];

export const SECTIONS = { reward: "Reward", likelihood: "Likelihood", update: "Update", algorithm: "Algorithm", episodes: "Episodes", tools: "Tools", time: "Time", other: "Other columns" };

// [section, [[signal, description]]] of everything that was measured.
export function sections(store, signals) {
  const out = new Map(Object.keys(SECTIONS).map((name) => [name, []]));
  for (const [name, signal] of Object.entries(signals)) if (store.has(name)) out.get(signal.section)?.push([name, signal]);
  for (const name of Object.keys(store.columns).sort()) {
    if (signals[name] || ["step", "time", "tokens", "held_out"].includes(name) || !store.has(name)) continue;
    out.get("other").push([name, { unit: "", description: "not one of the known signals", direction: "none" }]);
  }
  return [...out].filter(([, list]) => list.length);
}
