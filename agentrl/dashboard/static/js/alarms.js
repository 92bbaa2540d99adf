// What an alarm says, and the way from it to the rollouts.
import { post } from "./api.js";
import { copy, h, toast } from "./dom.js";
import { number } from "./format.js";

const CHANGE = /\b[a-z_]+(?:\.[a-z_]+)+=[^\s,;]*[^\s,;.)]/g;  // "optim.lr=1e-4" in a remedy

export function alarmCard(run, alarm, { onrollouts, onclose, onseen, compact = false }) {
  const changes = [...new Set((alarm.remedy ?? "").match(CHANGE) ?? [])];
  const seen = h("button", { type: "button", onclick: async () => {
    try {
      await post("acknowledge", { run, id: alarm.id, acknowledged: !alarm.acknowledged });
      onseen?.({ ...alarm, acknowledged: !alarm.acknowledged });
    } catch (error) { toast(error.message); }
  } }, alarm.acknowledged ? "Acknowledged, undo" : "Acknowledge");
  const named = alarm.rollouts?.length ? `${alarm.rollouts.length} responsible rollouts` : "rollouts of this step";
  const show = h("button", { class: compact ? "" : "primary", type: "button", onclick: () => onrollouts(alarm) }, `Show the ${named}`);
  return h("article", { class: "card alarm", data: { level: alarm.level }, "aria-label": `${alarm.level} alarm at step ${alarm.step}` },
    h("div", { class: "row" }, h("span", { class: "level", data: { level: alarm.level } }, alarm.level), h("h3", {}, alarm.rule.replaceAll("_", " ")), h("span", { class: "muted" }, `step ${alarm.step}`),
      h("span", { class: "grow" }), show, seen, onclose ? h("button", { class: "quiet", type: "button", onclick: onclose, "aria-label": "Close the alarm" }, "✕") : null),
    alarm.story ? h("p", { class: "small" }, h("b", {}, "Cause: "), String(alarm.story)) : null,
    h("p", {}, alarm.message),
    h("dl", {}, Object.entries(alarm.signals ?? {}).map(([name, s]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, number(s.value)), h("span", { class: "muted" }, ` against ${number(s.threshold)}`))))),
    alarm.remedy ? h("p", {}, h("b", {}, "What to do: "), alarm.remedy) : null,
    changes.length ? h("div", { class: "row small changes" }, changes.map((c) => h("button", { type: "button", title: "Copy", onclick: () => copy(`--set ${c}`) }, h("code", {}, `--set ${c}`)))) : null,
    alarm.groups?.length && !compact ? h("div", { class: "row small muted" }, "Groups most responsible:", alarm.groups.map((group) => h("button", { type: "button", onclick: () => onrollouts(alarm, group) }, h("code", {}, group)))) : null);
}

// One action of the guard, in words.
export function guardLine(action) {
  const did = { protect: "protected", release: "released the protection", rollback: "rolled back", stop: "stopped the run" }[action.kind] ?? action.kind;
  const where = typeof action.weights_of === "number" ? ` to the weights after ${action.weights_of} steps` : "";
  return h("article", { class: "card alarm", data: { level: "guard" } }, h("b", {}, `Step ${action.step}: the guard ${did}${where}. `),
    `LLDS weight ${number(action.llds_weight)}, learning rate × ${number(action.lr_scale)}. `, h("span", { class: "muted" }, String(action.reason ?? "")));
}
