// Asking the server: the key, problems, server-sent events.

const KEY = "mera-key";
const key = { get: () => sessionStorage.getItem(KEY), set: (value) => sessionStorage.setItem(KEY, value), forget: () => sessionStorage.removeItem(KEY) };

/** What kept the server from answering. status 0: it was not reached; "stream": it broke off in mid-stream. */
class Problem extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The response of a path beside the page. Raises Problem, or AbortError. */
async function ask(path, body, signal) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const sent = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { ...sent, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, "unreachable", "");
  }
  if (response.ok) return response;
  const told = await response.json().then((found) => found.error, () => null);
  if (response.status === 401) $("key-form").hidden = false;
  throw new Problem(response.status, told?.code ?? "unknown", told?.message ?? "", response.headers.get("Retry-After"));
}

const askJson = async (path) => (await ask(path)).json();

/** The events of a stream, one by one. An error event, and an end before the last token, raise Problem "stream". */
async function* events(body, signal) {
  const reader = (await ask("generate_stream", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let [held, whole] = ["", false];
  while (true) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem("stream", "broken", "the connection was lost");
    }
    if (part.done) break;
    const blocks = (held + part.value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks.filter((one) => one.startsWith("data:"))) {
      const event = JSON.parse(block.slice(5));
      if (event.error) throw new Problem("stream", event.error.code, event.error.message);
      whole = event.details !== null;
      yield event;
    }
  }
  if (!whole) throw new Problem("stream", "broken", "it ended before the last token");
}
