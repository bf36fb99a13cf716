// Sends a file straight to the object store, in parts: each part asks for its own address, and is sent again when it fails.
import { Trouble, bytes, call, duration, showTrouble } from "./http.js";

const AT_ONCE = 3;
const TRIES = 5;
const PAUSE_MS = 600;

for (const form of document.querySelectorAll("[data-upload-form]")) setUp(form);

function setUp(form) {
  const input = form.elements.file;
  const drop = form.querySelector("[data-drop]");
  const find = (name) => form.querySelector(`[data-${name}]`);

  input.addEventListener("change", () => describe(find("file-name"), find("file-note"), input.files[0]));
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.dataset.over = "yes"; });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => delete drop.dataset.over);
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const file = input.files[0];
    const button = form.querySelector("button[type=submit]");
    const leaving = (leave) => leave.preventDefault();
    const stop = new AbortController();
    window.addEventListener("beforeunload", leaving);
    find("problem").replaceChildren();
    find("progress").hidden = false;
    find("pause").hidden = false;
    find("cancel").onclick = () => stop.abort("cancelled");
    find("pause").onclick = () => stop.abort("paused");
    button.disabled = true;
    try {
      const version = await send(form, file, stop.signal, progressOf(find("progress"), find("progress-text"), file.size));
      window.removeEventListener("beforeunload", leaving);
      location.assign(version.url);
    } catch (error) {
      window.removeEventListener("beforeunload", leaving);
      button.disabled = false;
      find("pause").hidden = true;
      if (stop.signal.aborted && stop.signal.reason === "paused") {
        find("progress-text").textContent = "Paused. Press Upload to go on, now or after a reload.";
        button.focus();
        return;
      }
      find("progress").hidden = true;
      if (stop.signal.aborted) forget(file);
      else showTrouble(find("problem"), error);
    }
  });
}

/** Uploads under way, by file, in this browser: one that was interrupted goes on where it was. */
const memoryKey = (file) => `upload:${location.pathname.split("/", 3).join("/")}:${file.name}:${file.size}:${file.lastModified}`;

function remember(file, upload) {
  try { localStorage.setItem(memoryKey(file), JSON.stringify(upload)); } catch { /* private windows keep nothing */ }
}

function remembered(file) {
  try { return JSON.parse(localStorage.getItem(memoryKey(file))); } catch { return null; }
}

function forget(file) {
  const upload = remembered(file);
  localStorage.removeItem(memoryKey(file));
  if (upload) call("DELETE", upload.url).catch(() => {}); // the keeper throws away what this cannot reach
}

/** The upload to go on with, and the parts that have arrived; a new one when there is none. */
async function begin(form, file, signal) {
  const known = remembered(file);
  if (known) {
    try {
      const { arrived } = await call("GET", known.url, { signal });
      return { upload: known, arrived: new Set(arrived) };
    } catch (error) {
      if (error.name === "AbortError" || error.code === "no_connection") throw error;
      localStorage.removeItem(memoryKey(file)); // swept, finished, or somebody else's
    }
  }
  if (!form.dataset.uploadsUrl) {
    const body = new FormData();
    body.set("name", form.elements.name.value);
    const made = await call("POST", form.dataset.createUrl, { form: body, signal });
    form.dataset.uploadsUrl = made.uploads_url;
    form.elements.name.readOnly = true;
  }
  const upload = await call("POST", form.dataset.uploadsUrl, { json: { filename: file.name, size: file.size }, signal });
  remember(file, upload);
  return { upload, arrived: new Set() };
}

function describe(name, note, file) {
  if (!file) return;
  name.textContent = file.name;
  note.textContent = remembered(file) ? `${bytes(file.size)}. An upload of this file was interrupted: it goes on where it was.` : bytes(file.size);
}

/** The whole way; returns the dataset version. The dataset is made once, however often the file is tried. */
async function send(form, file, signal, progress) {
  if (file.size === 0) {
    throw new Trouble({ code: "empty_file", message: "The file is empty.", place: "file", next_step: "Choose a file with data in it." });
  }
  progress(0, "Starting");
  const { upload, arrived } = await begin(form, file, signal);
  await sendParts(upload, arrived, file, signal, progress);
  progress(file.size, "Putting the file together");
  const version = await call("POST", upload.finish_url, { signal });
  localStorage.removeItem(memoryKey(file));
  return version;
}

async function sendParts(upload, arrived, file, signal, progress) {
  const size = (index) => Math.min(upload.part_size, file.size - index * upload.part_size);
  const sent = Array.from({ length: upload.parts }, (_, index) => (arrived.has(index + 1) ? size(index) : 0));
  progress(sent.reduce((sum, part) => sum + part, 0), arrived.size ? "Going on" : "Starting");
  const tell = (index, count) => { sent[index] = count; progress(sent.reduce((sum, part) => sum + part, 0)); };
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  let next = 0;
  const work = async () => {
    while (next < upload.parts) {
      const index = next;
      next += 1;
      if (arrived.has(index + 1)) continue;
      const part = file.slice(index * upload.part_size, (index + 1) * upload.part_size);
      await sendPart(upload.part_url.replace("{number}", index + 1), part, either, (count) => tell(index, count));
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, upload.parts) }, work));
  } catch (error) {
    failed.abort();
    throw error;
  }
}

async function sendPart(addressUrl, part, signal, tell) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const { url } = await call("POST", addressUrl, { signal });
      await put(url, part, signal, tell);
      return;
    } catch (error) {
      tell(0);
      const final = signal.aborted || error.name === "AbortError" || (error instanceof Trouble && !["store_failed", "no_connection"].includes(error.code));
      if (final || attempt === TRIES) throw error;
      await new Promise((resolve) => { setTimeout(resolve, PAUSE_MS * 2 ** attempt); });
    }
  }
}

/** PUT one part. XMLHttpRequest, because fetch says nothing about upload progress. */
function put(url, part, signal, tell) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const trouble = () => reject(new Trouble({
      code: "store_failed", message: "The store did not take a part of the file.",
      next_step: "Try again; if it keeps failing, tell your administrator.", place: request.status ? `status ${request.status}` : "",
    }));
    if (signal.aborted) { reject(signal.reason); return; }
    signal.addEventListener("abort", () => { request.abort(); reject(signal.reason); });
    request.open("PUT", url);
    request.timeout = 10 * 60 * 1000;
    request.upload.onprogress = (event) => tell(event.loaded);
    request.onload = () => { if (request.status === 200) { tell(part.size); resolve(); } else trouble(); };
    request.onerror = trouble;
    request.ontimeout = trouble;
    request.send(part);
  });
}

/** Bytes sent -> bar, speed over the last seconds, and time left. */
function progressOf(box, text, size) {
  const bar = box.querySelector("progress");
  const past = [];
  let said = 0;
  return (count, words) => {
    bar.value = size ? count / size : 0;
    const now = performance.now();
    if (words) past.length = 0; // what had arrived before was not sent now
    past.push([now, count]);
    while (past.length > 2 && now - past[0][0] > 5000) past.shift();
    if (words) { text.textContent = words; return; }
    if (now - said < 400) return;
    said = now;
    const speed = (count - past[0][1]) / Math.max(0.2, (now - past[0][0]) / 1000);
    const left = speed > 0 ? `, ${bytes(speed)}/s, ${duration((size - count) / speed)} left` : "";
    text.textContent = `${bytes(count)} of ${bytes(size)}${left}`;
  };
}
