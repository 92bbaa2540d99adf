// A trajectory as a conversation. Everything in it is text that a model or a tool wrote, and stays text.
import { h, longText } from "./dom.js";
import { number } from "./format.js";

export function verdict(summary) {
  if (summary.error) return h("span", { class: "verdict err", title: summary.error }, "! failed");
  if (summary.correct === null || summary.correct === undefined) return h("span", { class: "verdict open", title: "nothing that is stored says whether it is correct" }, "· not judged");
  return summary.correct ? h("span", { class: "verdict yes" }, "✓ correct") : h("span", { class: "verdict no" }, "✗ incorrect");
}

export function conversation(row, { short = false } = {}) {
  const task = row.task ?? {}, golden = task.golden_answers;
  return h("div", { class: "turns" },
    short ? null : h("div", { class: "turn ask" }, who("Question", []), longText(h("div"), String(task.question ?? "(not stored)")),
      task.system ? h("details", { class: "small muted" }, h("summary", {}, "System prompt"), longText(h("div"), String(task.system))) : null,
      Array.isArray(golden) && golden.length ? h("div", { class: "muted small" }, `expected: ${golden.join(" | ")}`) : null),
    (row.turns ?? []).map((turn, i) => {
      const info = turn.info ?? {};
      const notes = [info.kind, info.valid === false ? "not valid" : null, turn.stop === "length" ? "cut at rollout.max_tokens_per_turn" : null, typeof turn.reward === "number" && turn.reward !== 0 ? `reward ${number(turn.reward, 3)}` : null];
      const toolNotes = [typeof info.latency_s === "number" ? `${number(info.latency_s * 1000, 3)} ms` : null, Array.isArray(info.retrieved) ? `found ${info.retrieved.slice(0, 8).join(", ")}` : null];
      return [
        h("div", { class: "turn agent" }, who(`Agent, turn ${i + 1}`, notes), longText(h("div"), String(turn.action ?? ""))),
        info.error ? h("div", { class: "turn error" }, who("Tool failed", toolNotes), String(info.error)) : null,
        turn.observation ? h("div", { class: "turn tool" }, who("Tool output", toolNotes), longText(h("div"), String(turn.observation))) : null,
      ];
    }),
    row.error && !(row.turns ?? []).some((t) => t.info?.error) ? h("div", { class: "turn error" }, who("Episode failed", []), String(row.error)) : null);
}

function who(name, notes) {
  return h("div", { class: "who" }, h("b", {}, name), notes.filter(Boolean).map((n) => h("span", {}, String(n))));
}
