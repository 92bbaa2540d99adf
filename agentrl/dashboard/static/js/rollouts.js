import { fill, h } from "./dom.js";
export class RolloutTab { constructor(run, panel){ this.panel = panel; } open(){ fill(this.panel, h("p", {}, "coming")); } move(){ return false; } }
