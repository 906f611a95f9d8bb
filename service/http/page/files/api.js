// The service's public API: models, images, errors.

import { readEvents } from "./sse.js";

/** What the service, or the way to it, says is wrong: `message` is a sentence for a person. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, requestId = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, requestId });
  }
}

/** The absolute address of `path`, also behind a proxy that serves everything under a prefix. */
export function addressOf(path) {
  return new URL(path, document.baseURI).href;
}

export async function listModels(key) {
  return (await (await send("v1/models", { headers: authorization(key) })).json()).data;
}

/** Whether the service can draw at once; true where that cannot be learned. */
export async function isReady() {
  try {
    return (await fetch(addressOf("readyz"))).status !== 503;
  } catch {
    return true;
  }
}

const refusals = new Set(); // the paths that do not stream

/**
 * Sends a request for images and yields what comes back.
 *
 * `{kind: "preview", index, number, blob}`, `{kind: "image", index, blob, answer, numImages}` and
 * `{kind: "notice", text}`. A service that does not stream is asked again without it.
 */
export async function* draw(request, { key, signal, numPreviews }) {
  let response;
  const isRefused = refusals.has(request.path);
  const streaming = isRefused ? {} : { stream: true, partial_images: numPreviews };
  try {
    response = await post(request, streaming, key, signal);
  } catch (error) {
    if (isRefused || error.status !== 400 || !["stream", "partial_images"].includes(error.param)) throw error;
    refusals.add(request.path);
    yield { kind: "notice", text: "This service sends no previews: each image appears when it is done." };
    response = await post(request, {}, key, signal);
  }
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) yield* readStream(response);
  else yield* readAnswer(await response.json());
}

async function* readStream(response) {
  for await (const { type, data } of readEvents(response.body)) {
    const index = data.image_index ?? 0;
    if (type === "error" || data.error) throw errorOf(data, response);
    if (type.endsWith(".partial_image")) {
      yield { kind: "preview", index, number: data.partial_image_index + 1, blob: blobOf(data) };
    } else if (type.endsWith(".completed")) {
      yield { kind: "image", index, blob: blobOf(data), answer: data, numImages: 1 };
    }
  }
}

function* readAnswer(answer) {
  for (const [index, image] of answer.data.entries()) {
    const blob = blobOf({ ...image, output_format: answer.output_format });
    yield { kind: "image", index, blob, answer, numImages: answer.data.length };
  }
}

function blobOf({ b64_json, output_format }) {
  const bytes = Uint8Array.from(atob(b64_json), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${output_format ?? "png"}` });
}

function post({ path, fields, files }, streaming, key, signal) {
  const headers = authorization(key);
  const all = { ...fields, ...streaming };
  let body;
  if (files) {
    body = new FormData(); // the browser writes its content type
    for (const [name, value] of Object.entries(all)) body.append(name, String(value));
    for (const [name, blob] of Object.entries(files)) if (blob) body.append(name, blob, `${name}.png`);
  } else {
    body = JSON.stringify(all);
    headers["content-type"] = "application/json";
  }
  return send(path, { method: "POST", headers, body, signal });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(addressOf(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service did not answer. Is it still running, and is the network up?");
  }
  if (!response.ok) throw errorOf(await response.json().catch(() => ({})), response);
  return response;
}

function errorOf(body, response) {
  const { message, param, code } = body.error ?? {};
  const { status, headers } = response;
  const requestId = body.request_id ?? headers.get("x-request-id");
  return new ApiError(sentenceOf(status, message, headers.get("retry-after"), response.url), {
    status, param, code, requestId,
  });
}

function sentenceOf(status, message, retryAfter, url) {
  if (status === 404 && url.endsWith("/v1/images/edits")) {
    return "This service does not change images; it draws from words alone.";
  }
  if (status === 401) return `${message ?? "A key is required."} Enter one under Key, at the top.`;
  if (!message) return `The service answered with status ${status} and no reason.`;
  const waits = [429, 503].includes(status) && /^\d+$/.test(retryAfter ?? "");
  return waits ? `${message.replace(/\.$/, "")} (in ${retryAfter} s).` : message;
}

function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}
