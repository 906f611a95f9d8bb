// The page: connects the form, the gallery and the service.

import { ApiError, draw, isReady, listModels } from "./api.js";
import { asCurl, asPython } from "./code.js";
import { byId, copyText, element, formatSeconds } from "./dom.js";
import { makeRequest, RequestForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { readKey, storeKey } from "./key.js";
import { SourceImage } from "./source.js";
import { hideProgress, showError, showImage, showProgress } from "./viewer.js";

const NUM_VARIATIONS = 4;

let models = [];
let controller = null; // of the request under way
const form = new RequestForm(() => updateCode());
const gallery = new Gallery((image) => showImage(image, form.model));
const source = new SourceImage(() => updateCode(), (message) => showError(new ApiError(message)));

function setStatus(text) {
  byId("status").textContent = text;
}

function isEdit() {
  return form.element.elements.mode.value === "image";
}

/** Draws what the form says. */
async function submit() {
  if (!form.model || controller || !form.check()) return;
  if (isEdit() && !source.isOpen) {
    showError(new ApiError("Choose an image to start from, or draw from words."));
    return;
  }
  await run(form.read(), isEdit() ? source.files() : null, source.strength);
}

/** Draws `settings`, from `files` or a promise of them; null for words alone. One request at a time. */
async function run(settings, files, strength) {
  controller = new AbortController();
  try {
    await drawRequest(settings, makeRequest(settings, form.model, await files, strength));
  } catch (error) {
    report(error);
  } finally {
    controller = null;
  }
}

async function drawRequest(settings, request) {
  const before = gallery.shown;
  showError(null);
  const images = Array.from({ length: settings.n }, (_, index) => gallery.add(settings, request, index));
  gallery.show(images[0]);
  startWork();
  const stopClock = startClock();
  try {
    await receive(request, images);
  } finally {
    images.filter((image) => !image.url).forEach((image) => gallery.remove(image, before));
    stopClock();
    endWork();
  }
}

async function receive(request, images) {
  const numPreviews = form.numPreviews;
  const most = images.length * (numPreviews + 1);
  let done = 0;
  let notice = "";
  showProgress(0, most);
  setStatus("Drawing…");
  const options = { key: readKey(), signal: controller.signal, numPreviews };
  for await (const event of draw(request, options)) {
    const image = images[event.index];
    if (event.kind === "notice") {
      notice = ` ${event.text}`;
      setStatus(event.text);
    } else if (event.kind === "preview") {
      gallery.preview(image, event.blob);
      const which = images.length > 1 ? ` of image ${event.index + 1}` : "";
      setStatus(`Preview ${event.number} of ${numPreviews}${which}.`);
      showProgress(done * (numPreviews + 1) + event.number, most);
    } else {
      gallery.finish(image, event);
      showProgress((done += 1) * (numPreviews + 1), most);
    }
  }
  if (done < images.length) throw new ApiError("The service closed the connection before the end.");
  const { seconds } = images.at(-1).answer.usage.safelight;
  const what = images.length > 1 ? `${images.length} images` : "The image";
  setStatus(`${what} took ${formatSeconds(seconds)}.${notice}`);
}

function report(error) {
  if (error.name === "AbortError") {
    setStatus("Cancelled.");
    return;
  }
  setStatus("");
  const isSentence = error instanceof ApiError;
  showError(isSentence ? error : new ApiError(`The answer could not be read: ${error.message}`));
}

function startWork() {
  byId("cancel").hidden = false;
  byId("draw").setAttribute("aria-disabled", "true");
  document.body.classList.add("drawing");
  byId("print").scrollIntoView({ block: "nearest" });
}

function endWork() {
  if (document.activeElement === byId("cancel")) byId("draw").focus();
  byId("cancel").hidden = true;
  byId("draw").removeAttribute("aria-disabled");
  document.body.classList.remove("drawing");
  hideProgress();
}

/** Shows the time since now; returns what stops it. */
function startClock() {
  const started = performance.now();
  const timer = setInterval(() => {
    byId("clock").textContent = formatSeconds((performance.now() - started) / 1000);
  }, 100);
  return () => {
    clearInterval(timer);
    byId("clock").textContent = "";
  };
}

/** The settings that draw `image` once more, byte for byte. */
function settingsOf({ settings, answer }) {
  return { ...settings, seed: answer.usage.safelight.seeds[0] };
}

async function sameSeed() {
  const { number, request } = gallery.shown;
  form.fill(settingsOf(gallery.shown));
  byId("settings").open = true;
  chooseMode(request.files ? "image" : "words");
  if (request.files && !source.isOpen) await source.open(request.files.image);
  setStatus(`Seed and settings of image ${number} are in the form. Change something, and draw.`);
  byId("prompt").focus();
}

async function drawVariations() {
  if (controller) return;
  const { request } = gallery.shown;
  const settings = { ...settingsOf(gallery.shown), n: Math.min(NUM_VARIATIONS, form.model.limits.n[1]) };
  await run(settings, request.files, request.fields.strength ?? null);
}

async function editShown() {
  if (!gallery.shown?.url) {
    showError(new ApiError("There is no image yet: draw one, or choose a file."));
    return;
  }
  chooseMode("image");
  await source.open(gallery.shown.blob);
  byId("source").scrollIntoView({ block: "nearest" });
  byId("mask").focus({ preventScroll: true });
}

function chooseMode(mode) {
  form.element.elements.mode.value = mode;
  byId("source").hidden = mode !== "image";
  updateCode();
}

let filesForCode = null;
let numCodes = 0;

/** Writes the request of the form as code, if that is open. */
async function updateCode() {
  if (!form.model || !byId("code-panel").open) return;
  const number = (numCodes += 1);
  const anyFiles = source.isOpen ? await source.files() : { image: true, mask: true };
  if (number !== numCodes) return; // the form has changed meanwhile
  const files = isEdit() ? anyFiles : null;
  const request = makeRequest(form.read(), form.model, files, source.strength);
  const language = form.element.elements.language.value;
  byId("code").textContent = (language === "curl" ? asCurl : asPython)(request, readKey() !== "");
  filesForCode = files;
  for (const name of ["image", "mask"]) byId(`save-${name}`).hidden = !(files?.[name] instanceof Blob);
}

function saveFile(name) {
  const url = URL.createObjectURL(filesForCode[name]);
  element("a", { href: url, download: `${name}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // after the browser has read it
}

async function copy(text, what) {
  try {
    await copyText(text);
    setStatus(`${what} is in the clipboard.`);
  } catch (error) {
    showError(new ApiError(`Nothing was copied. ${error.message}`));
  }
}

function copyShown(write, what) {
  const { request } = gallery.shown;
  const fields = { ...request.fields, seed: settingsOf(gallery.shown).seed };
  return copy(write({ ...request, fields }, readKey() !== ""), what);
}

function offerExamples(list, examples) {
  const buttons = examples.map((prompt) => {
    const button = element("button", { type: "button", className: "chip" }, prompt);
    button.addEventListener("click", () => {
      if (controller) return;
      chooseMode("words");
      form.fill({ ...form.read(), prompt });
      submit();
    });
    return button;
  });
  list.replaceChildren(...buttons.map((button) => element("li", {}, button)));
}

/** Fits the page to the model that was chosen. */
function chooseModel(model) {
  form.serve(model);
  const sides = model.sizes.flatMap((size) => size.split("x").map(Number));
  source.longestSide = 2 * Math.max(...sides);
  byId("modes").hidden = !model.edits;
  if (!model.edits) chooseMode("words");
  const isEmoji = [model.id, ...model.aliases].includes("emoji-128");
  for (const id of ["guide", "first-examples", "first-hint"]) byId(id).hidden = !isEmoji;
  byId("service").textContent = `${model.id} · ${model.sizes[0].replace("x", " × ")}`;
}

async function start() {
  byId("service").textContent = "Asking the service what it draws…";
  try {
    models = await listModels(readKey());
  } catch (error) {
    byId("service").textContent = "No service";
    showError(error);
    const retry = element("button", { type: "button" }, "Try again");
    retry.addEventListener("click", start);
    byId("error").append(retry);
    return;
  }
  showError(null);
  byId("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  byId("model-field").hidden = models.length < 2;
  chooseModel(models[0]);
  if (!(await isReady())) setStatus("The service is warming up: the first image takes longer.");
}

function listen() {
  form.element.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") controller?.abort();
  });
  byId("cancel").addEventListener("click", () => controller?.abort());
  byId("same-seed").addEventListener("click", sameSeed);
  byId("variations").addEventListener("click", drawVariations);
  for (const id of ["edit", "use-shown"]) byId(id).addEventListener("click", editShown);
  byId("model").addEventListener("change", ({ target }) => {
    chooseModel(models.find(({ id }) => id === target.value));
  });
  byId("modes").addEventListener("change", () => chooseMode(form.element.elements.mode.value));
  byId("copy-curl").addEventListener("click", () => copyShown(asCurl, "The curl command"));
  byId("copy-python").addEventListener("click", () => copyShown(asPython, "The Python program"));
  byId("copy-code").addEventListener("click", () => copy(byId("code").textContent, "The code"));
  byId("code-panel").addEventListener("toggle", () => updateCode());
  for (const name of ["image", "mask"]) {
    byId(`save-${name}`).addEventListener("click", () => saveFile(name));
  }
  byId("key").value = readKey();
  byId("key-set").hidden = !readKey();
  byId("key").addEventListener("input", ({ target }) => {
    storeKey(target.value.trim());
    byId("key-set").hidden = !readKey();
    updateCode();
  });
  for (const list of document.querySelectorAll("[data-examples]")) {
    offerExamples(list, list.dataset.examples.split("|"));
  }
}

listen();
start();
