// OpenAI's library for Node.js, and Vercel's AI SDK with its provider for servers like OpenAI's.
// Reads the service's URL and the folder of image.png and mask.png; prints one JSON object a line.
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";
import OpenAI from "openai";

const [url, folder] = process.argv.slice(-2);
const packages = process.cwd();
const prompt = "a red apple";
const fewSteps = { num_inference_steps: 4, seed: 7 };

async function action(client, name, act) {
  const result = { client, action: name };
  try {
    Object.assign(result, await act());
  } catch (error) {
    result.failure = `${error.name}: ${error.message}`;
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

async function describe(stream) {
  const events = [];
  for await (const event of stream) {
    events.push({ type: event.type, image: event.b64_json });
  }
  return { events };
}

async function runOpenAI() {
  const name = "openai-node";
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
  const model = "emoji-128";
  const image = () => createReadStream(`${folder}/image.png`);
  const files = (answer) => ({ images: answer.data.map((item) => item.b64_json) });
  await action(name, "models", async () => {
    const models = [];
    for await (const entry of client.models.list()) models.push(entry.id);
    return { models };
  });
  await action(name, "generate", async () =>
    files(await client.images.generate({ model, prompt, n: 2, ...fewSteps })),
  );
  await action(name, "links", async () => {
    const answer = await client.images.generate({ model, prompt, response_format: "url", ...fewSteps });
    return { urls: answer.data.map((item) => item.url) };
  });
  await action(name, "edit", async () =>
    files(await client.images.edit({ model, prompt: "a green apple", image: image(), ...fewSteps })),
  );
  await action(name, "edit with a mask", async () => {
    const mask = createReadStream(`${folder}/mask.png`);
    return files(await client.images.edit({ model, prompt, image: [image()], mask, ...fewSteps }));
  });
  await action(name, "stream", async () =>
    describe(await client.images.generate({ model, prompt, stream: true, partial_images: 2, ...fewSteps })),
  );
  await action(name, "error", async () => {
    try {
      await client.images.generate({ model, prompt, background: "transparent" });
    } catch (error) {
      return { error: { status: error.status, message: error.message, param: error.param } };
    }
  });
}

async function runVercel() {
  const name = "Vercel AI SDK";
  const provider = createOpenAICompatible({ name: "safelight", baseURL: `${url}/v1`, apiKey: "none" });
  const model = provider.imageModel("emoji-128");
  const providerOptions = { safelight: fewSteps };
  const files = ({ images }) => ({ images: images.map((image) => image.base64) });
  await action(name, "generate", async () =>
    files(await generateImage({ model, prompt, n: 2, size: "1024x1024", providerOptions })),
  );
  await action(name, "edit", async () => {
    const images = [await readFile(`${folder}/image.png`)];
    return files(await generateImage({ model, prompt: { text: "a green apple", images }, providerOptions }));
  });
  await action(name, "error", async () => {
    try {
      const transparent = { safelight: { background: "transparent" } };
      await generateImage({ model, prompt, providerOptions: transparent, maxRetries: 0 });
    } catch (error) {
      return { error: { status: error.statusCode, message: error.message, param: "background" } };
    }
  });
}

// An example of docs/clients.md, which writes a file.
async function runExample(client, name) {
  await action(client, "example", async () => {
    await import(`${packages}/${name}`);
    return { images: [await readFile("apple.png", "base64")] };
  });
}

process.chdir(folder);
await runOpenAI();
await runExample("openai-node", "openai.mjs");
await runVercel();
await runExample("Vercel AI SDK", "vercel.mjs");
