// A request as code: a curl command, and a program with OpenAI's Python library.

import { addressOf } from "./api.js";

const KEY_VARIABLE = "SAFELIGHT_KEY";
const SAVE = `import base64, json, sys
for k, image in enumerate(json.load(sys.stdin)["data"]):
    open(f"image-{k}.png", "wb").write(base64.b64decode(image["b64_json"]))`;
// Fields that OpenAI's library has parameters for; all others go through `extra_body`.
const PARAMETERS = ["model", "prompt", "n", "size"];

/** A shell command that writes `image-0.png` and so on. */
export function asCurl({ path, fields, files }, hasKey) {
  const lines = [`curl -sS ${quote(addressOf(path))}`];
  if (hasKey) lines.push(`-H "authorization: Bearer $${KEY_VARIABLE}"`);
  if (files) {
    for (const name of Object.keys(files)) if (files[name]) lines.push(`-F ${name}=@${name}.png`);
    for (const [name, value] of Object.entries(fields)) {
      lines.push(`--form-string ${quote(`${name}=${value}`)}`);
    }
  } else {
    lines.push("-H 'content-type: application/json'", `-d ${quote(JSON.stringify(fields))}`);
  }
  return `${lines.join(" \\\n  ")} |\n  python3 -c ${quote(SAVE)}\n`;
}

/** A Python program that writes `image-0.png` and so on. */
export function asPython({ path, fields, files }, hasKey) {
  const names = Object.keys(fields);
  const parameters = names.filter((name) => PARAMETERS.includes(name));
  const extensions = names.filter((name) => !PARAMETERS.includes(name));
  const lines = Object.keys(files ?? {})
    .filter((name) => files[name])
    .map((name) => `    ${name}=open("${name}.png", "rb"),`);
  lines.push(...parameters.map((name) => `    ${name}=${JSON.stringify(fields[name])},`));
  if (extensions.length) {
    const pairs = extensions.map((name) => `"${name}": ${JSON.stringify(fields[name])}`);
    lines.push(`    extra_body={${pairs.join(", ")}},`);
  }
  const base = addressOf(path).replace(/\/images\/\w+$/, "");
  const key = hasKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return `import base64
${hasKey ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})
answer = client.images.${files ? "edit" : "generate"}(
${lines.join("\n")}
)
for k, image in enumerate(answer.data):
    with open(f"image-{k}.png", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
