// Small helpers around the document.

export function byId(id) {
  return document.getElementById(id);
}

/** A new element with `properties` set and `children` appended. */
export function element(tag, properties = {}, ...children) {
  const result = document.createElement(tag);
  const { className, dataset, ...others } = properties;
  if (className) result.className = className;
  Object.assign(result.dataset, dataset);
  for (const [name, value] of Object.entries(others)) {
    if (name.startsWith("aria-") || name === "role") result.setAttribute(name, value);
    else result[name] = value;
  }
  result.append(...children);
  return result;
}

/** Copies `text`; also on plain HTTP, where browsers have no clipboard interface. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text, className: "visually-hidden" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("The browser did not allow it.");
  }
}

/** A number of seconds for people: `0.84 s`, `12.3 s`, `2 min 5 s`. */
export function formatSeconds(seconds) {
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** A count with a metric prefix: `12.4 G`. */
export function formatCount(count) {
  const power = count < 1 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), 6);
  return `${(count / 1000 ** power).toPrecision(3)} ${" kMGTPE"[power].trim()}`.trim();
}
