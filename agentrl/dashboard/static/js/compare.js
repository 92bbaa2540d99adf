import { fill, h } from "./dom.js";
export async function show(main) { fill(main, h("p", {}, "coming")); }
