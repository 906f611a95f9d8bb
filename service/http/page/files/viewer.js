// Shows one image: under way or finished, with what it cost and how it was drawn.

import { byId, element } from "./dom.js";
import { costsOf, factsOf, notesOf } from "./gallery.js";

/** Shows `image` of the gallery; null shows the empty state. */
export function showImage(image, model) {
  byId("empty").hidden = byId("welcome").hidden = image !== null;
  byId("print").hidden = image === null;
  byId("details").hidden = !image?.url;
  if (!image) return;
  const isDone = image.url !== null;
  const source = image.url ?? image.previewUrl;
  byId("sheet").className = isDone ? "sheet" : `sheet under-way${source ? "" : " blank"}`;
  const [width, height] = (image.answer?.size ?? image.settings.size).split("x").map(Number);
  Object.assign(byId("image"), { width, height, alt: isDone ? image.settings.prompt : "" });
  if (source) byId("image").src = source;
  else byId("image").removeAttribute("src");
  byId("caption").textContent = image.settings.prompt;
  const seed = image.answer?.usage.safelight.seeds[0] ?? image.settings.seed;
  byId("edge").textContent = seed === null ? `№ ${image.number}` : `№ ${image.number} · seed ${seed}`;
  if (isDone) showDetails(image, model);
}

function showDetails(image, model) {
  Object.assign(byId("download"), { href: image.url, download: fileName(image) });
  byId("edit").hidden = !model.edits;
  byId("notes").replaceChildren(...notesOf(image).map((note) => element("li", {}, note)));
  byId("notes").hidden = !byId("notes").children.length;
  showBar(image);
  for (const [id, pairs] of [["costs", costsOf(image)], ["facts", factsOf(image)]]) {
    byId(id).replaceChildren(
      ...pairs.map(([name, text, className = ""]) =>
        element("div", { className }, element("dt", {}, name), element("dd", {}, text))),
    );
  }
}

function showBar({ answer }) {
  const { encode, denoise, decode } = answer.usage.safelight.device_seconds;
  [encode, denoise, decode].forEach((seconds, k) => {
    byId("bar").children[k].style.flexGrow = seconds / (encode + denoise + decode || 1);
  });
}

function fileName({ number, settings, blob }) {
  const words = settings.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["image"];
  return `${words.join("-").slice(0, 40)}-${number}.${blob.type.replace("image/", "")}`;
}

/** Shows an error as a sentence, with the request's id for the operator; null hides it. */
export function showError(error) {
  byId("error").hidden = error === null;
  if (error === null) return byId("error").replaceChildren();
  const lines = [element("p", {}, error.message)];
  if (error.requestId) lines.push(element("p", { className: "hint" }, `Request ${error.requestId}`));
  byId("error").replaceChildren(...lines);
  return byId("error").scrollIntoView({ block: "nearest" });
}

/** Progress by what has arrived; a `most` of 0 is unknown. */
export function showProgress(value, most) {
  const bar = byId("progress");
  bar.hidden = false;
  if (most === 0 || value === 0) bar.removeAttribute("value");
  else Object.assign(bar, { max: most, value });
}

export function hideProgress() {
  byId("progress").hidden = true;
}
