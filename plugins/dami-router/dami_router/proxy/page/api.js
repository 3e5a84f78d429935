// The router's own API, at addresses relative to this page. The key lives in this module and nowhere else.

let key = "";

/** Use this key from now on; an empty one sends none. */
export function useKey(given) {
  key = given;
}

/** A reply that is no answer. `status` is 0 where the router did not reply at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** GET or POST, and return the JSON of the reply; raises ApiError. */
export async function json(path, body, signal) {
  const reply = await call(path, body, signal);
  return reply.json();
}

/** POST a chat and yield { text, thought, tokens, finish } as they come; `begun` gets the reply's headers. */
export async function* chat(body, signal, begun) {
  const reply = await call("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  begun(reply.headers);
  if (!(reply.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
    yield piece(await reply.json());
    return;
  }
  for await (const event of events(reply.body)) {
    if (event === "[DONE]") return;
    let data;
    try {
      data = JSON.parse(event);
    } catch {
      continue;
    }
    if (data.error) throw new ApiError(502, said(data) ?? "the answer broke off");
    yield piece(data);
  }
}

function piece(data) {
  const choice = data.choices?.[0] ?? {};
  const part = choice.delta ?? choice.message ?? {};
  return {
    text: typeof part.content === "string" ? part.content : "",
    thought: [part.reasoning_content, part.reasoning].find((x) => typeof x === "string") ?? "",
    finish: choice.finish_reason ?? null,
    tokens: data.usage?.completion_tokens ?? null,
  };
}

/** Yield the data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split(/\r?\n\r?\n/);
    held = whole.pop();
    for (const event of whole) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length) yield data.join("\n");
    }
  }
}

async function call(path, body, signal) {
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The router does not reply. Is it still running?");
  }
  if (reply.ok) return reply;
  let message = null;
  try {
    message = said(await reply.json());
  } catch {
    // Not JSON: something in front of the router answered.
  }
  throw new ApiError(reply.status, message ?? `status ${reply.status} without a message`);
}

function said(data) {
  const error = data?.error;
  return typeof error === "string" ? error : typeof error?.message === "string" ? error.message : null;
}
