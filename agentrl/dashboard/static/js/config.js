// The run's configuration, versions and evaluations.
import { get } from "./api.js";
import { copy, fill, h } from "./dom.js";
import { number } from "./format.js";

export async function configTab(run, panel, evals) {
  fill(panel, h("p", { class: "muted" }, "Reading …"));
  try {
    const { text, meta, problems } = await get("config", { run });
    fill(panel,
      problems.length ? h("div", { class: "notice" }, "The configuration was written by another version, or by hand:", h("ul", {}, problems.map((p) => h("li", {}, p)))) : null,
      evals.length ? [h("h2", {}, "Evaluations"), evalTable(evals)] : null,
      h("div", { class: "row" }, h("h2", {}, "config.yaml"), h("button", { type: "button", onclick: () => copy(text) }, "Copy")),
      h("div", { class: "card detail" }, h("pre", {}, text || "not there")),
      h("h2", {}, "Versions and seeds"),
      h("div", { class: "card detail" }, h("pre", {}, JSON.stringify(meta, null, 2))));
  } catch (error) {
    fill(panel, h("div", { class: "notice error" }, error.message));
  }
}

function evalTable(evals) {
  const names = [...new Set(evals.flatMap((row) => Object.keys(row)))].filter((n) => n !== "time");
  return h("div", { class: "card scroll fit", tabindex: 0, role: "region", "aria-label": "Evaluations" }, h("table", {},
    h("thead", {}, h("tr", {}, names.map((n) => h("th", { class: n === "split" ? "" : "num", scope: "col" }, n)))),
    h("tbody", {}, evals.map((row) => h("tr", {}, names.map((n) => h("td", { class: typeof row[n] === "number" ? "num" : "" }, typeof row[n] === "number" ? number(row[n]) : row[n] === undefined || row[n] === null ? "–" : typeof row[n] === "object" ? JSON.stringify(row[n]) : String(row[n]))))))));
}
