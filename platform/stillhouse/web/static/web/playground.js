// Talks to /v1/chat/completions like an app would, with a short-lived grant in place of a key.
import { copyText } from "./app.js";
import { Trouble, call, duration, showTrouble } from "./http.js";

const root = document.querySelector("[data-playground]");
function start() {
  const form = root.querySelector("[data-ask]");
  const send = root.querySelector("[data-send]");
  const stop = root.querySelector("[data-stop]");
  let running = null;
  restore(form);
  instruct(form);

  form.elements.model.addEventListener("change", () => instruct(form));
  form.elements.system.addEventListener("input", () => { written = true; });
  form.addEventListener("input", () => remember(form));
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  for (const button of root.querySelectorAll("[data-copy-as]")) {
    button.addEventListener("click", () => copyText(SNIPPETS[button.dataset.copyAs](request(form)), button));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    const cards = models(form).map((model) => newCard(model));
    const answers = root.querySelector("[data-answers]");
    answers.classList.toggle("lg:grid-cols-2", cards.length > 1);
    answers.replaceChildren(...cards.map((card) => card.element));
    try {
      const grant = await freshGrant();
      await Promise.all(cards.map((card) => ask(card, { ...request(form), model: card.model }, grant, running.signal)));
    } catch (error) {
      showTrouble(cards[0].trouble, error);
    } finally {
      running = null;
      send.disabled = false;
      stop.disabled = true;
    }
  });
}

function models(form) {
  const chosen = form.elements.model.selectedOptions[0];
  const base = chosen.dataset.base;
  return form.elements.compare.checked && base ? [chosen.value, base] : [chosen.value];
}

// The chosen adapter's own instructions, unless somebody has written others.
let written = false;
function instruct(form) {
  if (written) return;
  form.elements.system.value = form.elements.model.selectedOptions[0].dataset.instructions ?? "";
}

function request(form) {
  const system = form.elements.system.value;
  return {
    model: form.elements.model.value,
    messages: [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      { role: "user", content: form.elements.prompt.value },
    ],
    max_tokens: Number(form.elements.max_tokens.value) || 256,
    temperature: Number(form.elements.temperature.value) || 0,
  };
}

// What was typed survives a reload, on this computer and for this tab.
const MEMORY = `playground:${root?.dataset.workspace}`;
function remember(form) {
  const { prompt, system, max_tokens: tokens, temperature } = form.elements;
  sessionStorage.setItem(MEMORY, JSON.stringify({
    model: form.elements.model.value, compare: form.elements.compare.checked,
    prompt: prompt.value, tokens: tokens.value, temperature: temperature.value,
    ...(written ? { system: system.value } : {}),
  }));
}

function restore(form) {
  const kept = JSON.parse(sessionStorage.getItem(MEMORY) ?? "null");
  if (!kept) return;
  form.elements.prompt.value = kept.prompt;
  form.elements.max_tokens.value = kept.tokens;
  form.elements.temperature.value = kept.temperature;
  written = kept.system !== undefined;
  if (written) form.elements.system.value = kept.system;
  if (new URLSearchParams(location.search).has("model")) return; // the link that led here says more
  form.elements.model.value = kept.model;
  if (!form.elements.model.value) form.elements.model.selectedIndex = 0;
  form.elements.compare.checked = kept.compare;
}

let grant = null;
async function freshGrant() {
  if (grant && grant.until > Date.now()) return grant.token;
  const made = await call("POST", root.dataset.grantUrl);
  grant = { token: made.grant, until: Date.now() + (made.seconds - 60) * 1000 };
  return grant.token;
}

function newCard(model) {
  const element = root.querySelector("[data-answer-template]").content.firstElementChild.cloneNode(true);
  const find = (name) => element.querySelector(`[data-${name}]`);
  find("title").textContent = model;
  return {
    model, element, text: find("text"), trouble: find("trouble"), meta: find("meta"),
    fold: find("reasoning"), reasoning: find("reasoning-text"), label: find("reasoning-label"),
  };
}

async function ask(card, body, token, signal) {
  const began = performance.now();
  let first = null;
  let usage = null;
  let reason = "";
  card.meta.textContent = "waiting…";
  try {
    for await (const chunk of stream(body, token, signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const thought = choice.delta.reasoning ?? choice.delta.reasoning_content ?? "";
      const said = choice.delta.content ?? "";
      if (!thought && !said) continue;
      first ??= performance.now() - began;
      write(card, thought, said, first, began);
    }
    card.meta.textContent = summary(usage, first, performance.now() - began, reason);
    if (first !== null && !card.text.textContent.trim()) card.trouble.append(hint(NO_ANSWER));
  } catch (error) {
    card.meta.textContent = "";
    if (error.name === "AbortError") card.meta.textContent = "stopped";
    else showTrouble(card.trouble, error);
  }
}

const NO_ANSWER = "It thought, and gave no answer. Give it the instructions of its data, or more tokens.";
function hint(text) {
  const element = document.createElement("p");
  element.className = "hint";
  element.textContent = text;
  return element;
}

function write(card, thought, said, first, began) {
  if (thought) {
    card.fold.hidden = false;
    card.label.textContent = "Reasoning…";
    card.reasoning.textContent += thought;
  }
  if (said) {
    if (!card.fold.hidden) card.label.textContent = "Reasoning";
    card.text.textContent += card.text.textContent ? said : said.trimStart();
  }
  card.meta.textContent = `${duration((performance.now() - began) / 1000)}`;
}

function summary(usage, first, total, reason) {
  const parts = [];
  if (first !== null) parts.push(`first word after ${Math.round(first)} ms`);
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  parts.push(`${(total / 1000).toFixed(1)} s`);
  if (reason === "length") parts.push("cut off: most tokens reached");
  return parts.join(" · ");
}

/** The chunks of a streamed completion; throws Trouble for an error before or in the middle of it. */
async function* stream(body, token, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw trouble((await response.json().catch(() => null))?.error, response.status);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw trouble(chunk.error, response.status);
      yield chunk;
    }
  }
}

function trouble(error, status) {
  return new Trouble({
    code: error?.code ?? `http_${status}`,
    message: error?.message ?? "The model did not answer.",
    place: error?.param ?? "",
  });
}

const SNIPPETS = {
  python: (body) => [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${root.dataset.apiUrl}", api_key="sk-sh-...")`,
    "stream = client.chat.completions.create(",
    `    model=${JSON.stringify(body.model)},`,
    `    messages=${JSON.stringify(body.messages)},`,
    `    max_tokens=${body.max_tokens},`,
    `    temperature=${body.temperature},`,
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
    "",
  ].join("\n"),
  curl: (body) => [
    `curl ${root.dataset.apiUrl}/chat/completions \\`,
    '  -H "Authorization: Bearer $STILLHOUSE_API_KEY" \\',
    '  -H "Content-Type: application/json" \\',
    `  -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
    "",
  ].join("\n"),
};

if (root) start();
