// What every page has: theme, dialogs, copy buttons, folds that stay as they were left.
import Alpine from "./vendor/alpine-csp.esm.min.js";
import { Trouble, showTrouble } from "./http.js";

Alpine.data("theme", () => ({
  toggle() {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "ink" ? "paper" : "ink";
    localStorage.setItem("theme", root.dataset.theme);
    root.dispatchEvent(new CustomEvent("themechange", { bubbles: true }));
  },
}));
Alpine.start();

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open-dialog]");
  if (opener) document.getElementById(opener.dataset.openDialog)?.showModal();
  event.target.closest("[data-close-dialog]")?.closest("dialog")?.close();
  if (event.target.closest("[data-back]")) history.back();
  const copier = event.target.closest("[data-copy]");
  if (copier) copy(copier, document.getElementById(copier.dataset.copy));
});

async function copy(button, source) {
  await copyText(source.value ?? source.textContent, button);
  if (source.select) source.select();
}

/** Copy text and say so on the button for a moment. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    fallbackCopy(text); // plain http has no clipboard API, and many sites on premises are plain http
  }
  if (button.dataset.copied) return;
  const before = button.innerHTML;
  button.dataset.copied = "yes";
  button.textContent = button.classList.contains("btn-square") ? "✓" : "Copied";
  setTimeout(() => { button.innerHTML = before; delete button.dataset.copied; }, 1600);
}

function fallbackCopy(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr-only";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function rememberFolds(root) {
  for (const fold of root.querySelectorAll("details[data-remember]")) {
    const key = `fold:${fold.dataset.remember}`;
    if (sessionStorage.getItem(key) === "open") fold.open = true;
    fold.addEventListener("toggle", () => sessionStorage.setItem(key, fold.open ? "open" : "shut"));
  }
}
rememberFolds(document);
document.body.addEventListener("htmx:load", (event) => rememberFolds(event.detail.elt));

// The share held back belongs to one of the two choices only.
const runForm = document.querySelector("[data-run-form]");
if (runForm) {
  const show = () => { runForm.querySelector("[data-heldout]").hidden = runForm.elements.eval_data.value !== ""; };
  runForm.elements.eval_data.addEventListener("change", show);
  show();
}

// Fresh settings bring fresh defaults; what was typed meanwhile stays.
let typed = new Map();
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.id !== "settings") return;
  typed = new Map([...event.detail.target.querySelectorAll("input, select")].map((field) => [field.id, field.value]));
});
document.body.addEventListener("htmx:afterSettle", () => {
  for (const [id, value] of typed) {
    const field = document.getElementById(id);
    if (field && field.value !== value) field.value = value;
  }
  typed.clear();
});

// A proxy's page, shown while the platform starts, takes no part's place. Whoever asks again says so until it is answered.
let unanswered = false; // a note about it stands among the messages
const isOurs = (xhr) => xhr.getResponseHeader("Content-Security-Policy") !== null;
const asksAgain = (element) => element.matches('[hx-trigger^="every"]');

for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.body.addEventListener(name, (event) => sayUnanswered(event.detail.requestConfig.elt));
}
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (isOurs(event.detail.xhr)) return;
  event.detail.shouldSwap = false;
  sayUnanswered(event.detail.requestConfig.elt);
});
document.body.addEventListener("htmx:afterRequest", (event) => {
  const { successful, xhr, requestConfig } = event.detail;
  if (successful && isOurs(xhr)) {
    if (unanswered) document.getElementById("messages")?.replaceChildren();
    unanswered = false;
  } else if (xhr.status && isOurs(xhr) && asksAgain(requestConfig.elt)) {
    unanswered = true; // an error of ours stands there
  }
});

function sayUnanswered(element) {
  const box = document.getElementById("messages");
  if (!box || unanswered) return;
  unanswered = true;
  showTrouble(box, new Trouble({
    code: "no_connection", message: "Stillhouse does not answer.",
    next_step: asksAgain(element) ? "This page goes on by itself as soon as it does." : "Check your connection and try again.",
  }));
  box.firstElementChild.classList.add("mb-5");
}

document.body.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && event.target.matches("[data-reset-after]")) event.target.reset();
});

// A form that was sent once is not sent twice by an impatient second click.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.hasAttribute("hx-post") || form.matches("[data-upload-form], [hx-boost]")) return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => delete form.dataset.sent, 4000);
});
