// Reads server-sent events from the body of a response: EventSource cannot send a POST.

/** Yields `{type, data}` for each event of `body`, with its data parsed as JSON. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { type: "message", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a last \r may be half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line !== "") addLine(event, line);
        else {
          const data = event.data.join("\n");
          if (data && data !== "[DONE]") yield { type: event.type, data: JSON.parse(data) };
          event = { type: "message", data: [] };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the reader of the events may stop before the stream ends
  }
}

function addLine(event, line) {
  const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line); // a comment has an empty name
  if (name === "event") event.type = value;
  if (name === "data") event.data.push(value);
}
