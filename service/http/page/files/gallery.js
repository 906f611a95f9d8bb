// The images of this session as a strip of film, and the one that is shown.

import { byId, element, formatCount, formatSeconds } from "./dom.js";

/**
 * The session's images, newest first in the strip.
 *
 * An image is `{number, settings, request, index, url, previewUrl, blob, answer, numImages, element}`; without
 * `url` it is under way.
 */
export class Gallery {
  /** `onShow(image)` is called when another image is shown; with null for none. */
  constructor(onShow) {
    this.images = [];
    this.shown = null;
    this.onShow = onShow;
    this.count = 0;
  }

  /** Adds an image under way. */
  add(settings, request, index) {
    const image = { number: (this.count += 1), settings, request, index, url: null, previewUrl: null };
    image.element = this.#frame(image);
    this.images.push(image);
    byId("frames").prepend(image.element);
    byId("film").hidden = false;
    return image;
  }

  preview(image, blob) {
    const before = image.previewUrl;
    image.previewUrl = URL.createObjectURL(blob);
    this.#update(image);
    if (before) URL.revokeObjectURL(before);
  }

  finish(image, { blob, answer, numImages }) {
    Object.assign(image, { blob, answer, numImages, url: URL.createObjectURL(blob) });
    this.#update(image);
    if (image.previewUrl) URL.revokeObjectURL(image.previewUrl);
  }

  /** Takes away an image that was not finished, and shows `before`, or the newest. */
  remove(image, before) {
    this.images = this.images.filter((other) => other !== image);
    image.element.remove();
    if (image.previewUrl) URL.revokeObjectURL(image.previewUrl);
    if (!this.images.length) {
      byId("film").hidden = true;
      this.count = 0;
    }
    if (this.shown === image) this.show(this.images.includes(before) ? before : this.images.at(-1) ?? null);
  }

  show(image) {
    this.shown?.element.firstChild.removeAttribute("aria-current");
    this.shown = image;
    image?.element.firstChild.setAttribute("aria-current", "true");
    this.onShow(image);
  }

  #frame(image) {
    const button = element("button", { type: "button", className: "frame" });
    const number = element("span", { className: "number" }, String(image.number));
    button.append(element("img", { alt: "" }), number);
    button.addEventListener("click", () => this.show(image));
    button.setAttribute("aria-label", `Image ${image.number}, under way: ${image.settings.prompt}`);
    button.classList.add("under-way");
    return element("li", {}, button);
  }

  #update(image) {
    const button = image.element.firstChild;
    button.querySelector("img").src = image.url ?? image.previewUrl;
    if (image.url) {
      button.classList.remove("under-way");
      button.setAttribute("aria-label", `Image ${image.number}: ${image.settings.prompt}`);
    }
    if (this.shown === image) this.onShow(image);
  }
}

/** What a finished image cost, as rows of a name, a text and a class. */
export function costsOf({ answer, numImages }) {
  const { device_seconds: device, seconds, queue_seconds: queue, nfe, flops, previews } = answer.usage.safelight;
  const total = device.encode + device.denoise + device.decode;
  const whole = numImages > 1 ? `, for ${numImages} images` : "";
  return [
    ["Device time", `${formatSeconds(total)}${whole}`, "main"],
    ["Total time", formatSeconds(seconds), "main"],
    ["Text", formatSeconds(device.encode), "encode"],
    ["Denoising", formatSeconds(device.denoise), "denoise"],
    ["Decoding", `${formatSeconds(device.decode)}${previewsOf(previews)}`, "decode"],
    ["Waiting", formatSeconds(queue)],
    ["Network evaluations", String(nfe)],
    ["Operations", `${formatCount(flops)}FLOP`],
  ];
}

function previewsOf(count) {
  return count ? ` with ${count} preview${count === 1 ? "" : "s"}` : "";
}

/** How a finished image was drawn, as rows of a name, a text and a class. */
export function factsOf({ settings, request, index, answer }) {
  const used = answer.usage.safelight;
  const seed = index ? `${used.seeds[0]}, image ${index + 1} of ${settings.n}` : String(used.seeds[0]);
  const facts = [
    ["Seed", seed, seed.length > 12 ? "wide" : ""],
    ["Model", used.model],
    ["Size", (answer.size ?? settings.size).replace("x", " × ")],
    ["Steps", String(used.num_inference_steps)],
    ["Guidance", String(used.guidance_scale)],
    ["Solver", used.solver],
  ];
  if (settings.negative_prompt) facts.push(["Negative prompt", settings.negative_prompt, "wide"]);
  const strength = used.edit?.strength ?? request.fields.strength ?? "default";
  if (request.files) facts.push(["Strength", String(strength)]);
  return facts;
}

/** Sentences about what the service changed or could not use. */
export function notesOf({ answer }) {
  const used = answer.usage.safelight;
  const { adjusted = [], unknown_words: words, prompt_syntax: marks, corrected_words: corrected } = used;
  const { truncated, edit } = used;
  // That an image is resampled to a size of the model is no news here; what was cut off is said below.
  const changes = adjusted.filter(({ field }) => field !== "image");
  const notes = changes.map(({ field, asked, used }) => {
    const change = used === null || used === undefined ? "had no effect" : `was changed to ${show(used)}`;
    return `${field}: ${show(asked)} ${change}.`;
  });
  const readings = Object.entries(corrected).map(([typed, read]) => `${typed} as ${read}`);
  if (readings.length) notes.push(`Misspelt words were read as known ones: ${readings.join(", ")}.`);
  if (words.length) notes.push(`Not known to the model, so without effect: ${words.join(", ")}.`);
  if (marks.length) notes.push(`Prompt syntax of other programs, without effect: ${marks.join(", ")}.`);
  if (edit) notes.push(...cropNotes(edit));
  if (truncated) notes.push("The prompt is longer than the model reads; its end had no effect.");
  return notes;
}

function cropNotes({ uploaded_size: size, crop: [left, top, right, bottom] }) {
  const whole = size.replace("x", " × ");
  const part = `${right - left} × ${bottom - top}`;
  return part === whole ? [] : [`Of the image that it started from, ${part} of ${whole} pixels were used.`];
}

function show(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
