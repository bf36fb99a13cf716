// Calls to our own pages, with errors as people read them.

/** What went wrong, in the platform's words. */
export class Trouble extends Error {
  constructor({ code, message, next_step: nextStep = "", place = "" }) {
    super(message);
    Object.assign(this, { code, nextStep, place });
  }
}

function csrfToken() {
  return document.querySelector("input[name=csrfmiddlewaretoken]")?.value
    ?? JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"];
}

/** Call and return the JSON answer (null for an empty one); throws Trouble. */
export async function call(method, url, { json, form, signal } = {}) {
  const headers = { Accept: "application/json", "X-CSRFToken": csrfToken() };
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { method, headers, signal, body: json !== undefined ? JSON.stringify(json) : form });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble({
      code: "no_connection", message: "Stillhouse did not answer.", next_step: "Check your connection and try again.",
    });
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  throw new Trouble(body?.error ?? {
    code: `http_${response.status}`, message: `The answer was not understood (status ${response.status}).`,
    next_step: "Reload the page and try again.",
  });
}

/** Show Trouble inside `box`, the way the server's pages show it. */
export function showTrouble(box, error) {
  const note = document.createElement("div");
  note.className = "note note-bad";
  note.setAttribute("role", "alert");
  const inner = document.createElement("div");
  for (const [text, classes] of [
    [error.message, "font-medium"],
    [error.nextStep, "mt-1"],
    [[error.code, error.place].filter(Boolean).join(" · "), "muted mt-2 text-xs mono"],
  ]) {
    if (!text) continue;
    const line = document.createElement("p");
    line.className = classes;
    line.textContent = text;
    inner.append(line);
  }
  note.append(inner);
  box.replaceChildren(note);
}

/** Seconds as a person says them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return minutes < 10 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 60)} h`;
}

/** Bytes as a person says them. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  let value = count;
  while (value >= 1000 && index < units.length - 1) { value /= 1000; index += 1; }
  return `${value >= 100 || index === 0 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}
