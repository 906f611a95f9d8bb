// The form: what a model allows, what is asked, and the request that follows.

import { byId } from "./dom.js";

const NUMBERS = ["num_inference_steps", "guidance_scale", "n"];
const SLIDERS = { num_inference_steps: "steps-slider", guidance_scale: "guidance-slider", n: "n-slider" };
// What a slider spans where a whole range would leave it no precision; the number beside it takes the rest.
const MOST_ON_SLIDER = { num_inference_steps: 60, guidance_scale: 12 };
const ONLY_DEFAULTS = { negative_prompt: "", n: 1 };

export class RequestForm {
  /** `onChange()` is called after each change. */
  constructor(onChange) {
    this.onChange = onChange;
    this.model = null;
    this.element = byId("form");
    this.element.addEventListener("input", (event) => this.#synchronise(event.target));
    byId("reset").addEventListener("click", () => this.fill({ prompt: byId("prompt").value }));
    byId("random-seed").addEventListener("click", () => this.fill({ ...this.read(), seed: null }));
  }

  /** Offers what `model`, an object of /v1/models, allows, and chooses its defaults. */
  serve(model) {
    this.model = model;
    setOptions("size", model.sizes, (size) => size.replace("x", " × "));
    setOptions("solver", model.solvers);
    for (const name of NUMBERS) {
      const [least, most] = model.limits[name];
      for (const input of [byId(name), byId(SLIDERS[name])]) Object.assign(input, { min: least, max: most });
      byId(SLIDERS[name]).step = name === "guidance_scale" ? 0.5 : 1;
      byId(SLIDERS[name]).max = Math.min(most, MOST_ON_SLIDER[name] ?? most);
    }
    for (const name of ["prompt", "negative_prompt"]) byId(name).maxLength = model.limits.prompt[1];
    this.fill({ prompt: byId("prompt").value });
  }

  /** The settings as they stand; a `seed` of null is a random one. */
  read() {
    const settings = { model: byId("model").value, prompt: byId("prompt").value.trim() };
    for (const name of ["negative_prompt", "size", "solver"]) settings[name] = byId(name).value.trim();
    for (const name of NUMBERS) settings[name] = Number(byId(name).value);
    const seed = byId("seed").value.trim();
    return { ...settings, seed: seed === "" ? null : Number(seed) };
  }

  /** Sets `settings`, and the model's defaults for all others. */
  fill(settings) {
    const values = { ...ONLY_DEFAULTS, ...this.model.defaults, seed: null, ...settings };
    for (const name of ["prompt", "negative_prompt", "size", "solver", ...NUMBERS]) {
      byId(name).value = values[name] ?? "";
    }
    byId("seed").value = values.seed ?? "";
    NUMBERS.forEach((name) => (byId(SLIDERS[name]).value = values[name]));
    this.#summarise();
    this.onChange();
  }

  get numPreviews() {
    return Number(byId("previews").value);
  }

  /** Whether all fields are valid; if not, the first that is not is shown. */
  check() {
    if (this.element.checkValidity()) return true;
    const fault = this.element.querySelector("input:invalid, textarea:invalid, select:invalid");
    if (fault.closest("details")) fault.closest("details").open = true;
    this.element.reportValidity();
    return false;
  }

  #synchronise(target) {
    for (const [name, slider] of Object.entries(SLIDERS)) {
      if (target.id === slider) byId(name).value = target.value;
      if (target.id === name) byId(slider).value = target.value;
    }
    byId("previews-value").value = byId("previews").value;
    this.#summarise();
    this.onChange();
  }

  #summarise() {
    const { n, num_inference_steps: steps, guidance_scale: guidance, solver, seed } = this.read();
    const parts = [`${steps} steps`, `guidance ${guidance}`, solver];
    if (seed !== null) parts.push(`seed ${seed}`);
    if (n !== 1) parts.unshift(`${n} images`);
    byId("settings-summary").textContent = parts.join(" · ");
  }
}

/**
 * The request for `settings`: what equals the default of `model` is left out.
 *
 * `files` is null for words alone; a `strength` of null is the service's default.
 */
export function makeRequest(settings, model, files, strength) {
  const defaults = { ...ONLY_DEFAULTS, ...model.defaults, seed: null };
  const changed = Object.entries(settings).filter(([name, value]) => value !== defaults[name]);
  const fields = Object.fromEntries(changed);
  if (files && strength !== null) fields.strength = strength;
  return { path: `v1/images/${files ? "edits" : "generations"}`, fields, files };
}

function setOptions(id, values, label = (value) => value) {
  byId(id).replaceChildren(...values.map((value) => new Option(label(value), value)));
}
