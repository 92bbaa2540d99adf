// Runs before the page is drawn, so that it does not flash in the wrong colours.
"use strict";
(() => {
  let saved = null;
  try { saved = localStorage.getItem("agentrl-theme"); } catch { /* storage may be switched off */ }
  const asked = new URLSearchParams(location.search).get("theme");
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = ["light", "dark"].includes(asked) ? asked : saved === "light" || saved === "dark" ? saved : system;
})();
