// Follows a run over server-sent events: numbers, log and the loss curve. A broken line goes on where it was.
import uPlot from "./vendor/uplot.esm.js";
import { duration } from "./http.js";

const TONES = { queued: "state-wait", paused: "state-wait", running: "state-busy", succeeded: "state-good", failed: "state-bad", cancelled: "" };
const root = document.querySelector("[data-run]");
const slot = (name) => root.querySelector(`[data-slot="${name}"]`);
const put = (name, text) => { const place = slot(name); if (place.textContent !== text) place.textContent = text; };

const AGAIN_MS = 3000;
const HINT_MS = 6000; // a line that ends by itself is back before
const DEAF_MS = 40000; // the platform has a word every 15 s

const points = new Map(); // step -> loss
let plot = null;
let drawAgain = false;

let events = null; // the open line, or null when the run has ended
let heard = Date.now(); // when the platform said its last word
let asked = 0; // when the line was asked for
let cursor = ""; // how far the curve was told
let begun = 1; // the attempt whose first step the history knows
let shown = root.dataset.state; // what buttons, notice and history were drawn for
follow();
setInterval(watch, 1000);
// Another page may have it tried again after it ended here.
document.addEventListener("visibilitychange", () => { if (!document.hidden && !events) follow(); });
window.addEventListener("pagehide", () => events?.close());

function follow() {
  asked = Date.now();
  const line = new EventSource(`${root.dataset.events}?after=${cursor}`);
  const on = (name, act) => line.addEventListener(name, (event) => { heard = Date.now(); act(event); });
  const told = (name, act) => on(name, (event) => { cursor = event.lastEventId; act(JSON.parse(event.data)); });
  on("open", () => {});
  on("alive", () => {});
  told("reset", () => { points.clear(); draw(); });
  told("points", addPoints);
  told("job", showJob);
  told("end", () => { line.close(); events = null; });
  events = line;
}

/** A browser gives a line up for good where a proxy or an error of ours answered once, and waits for ever on a dead one. */
function watch() {
  if (!events) return;
  const silence = Date.now() - heard;
  const isOpen = events.readyState === EventSource.OPEN;
  if (isOpen ? silence < DEAF_MS : silence < HINT_MS) return;
  put("message", `No answer since ${new Date(heard).toISOString().slice(11, 19)} UTC; what you see is from then. Trying again.`);
  if (Date.now() - asked < (events.readyState === EventSource.CONNECTING ? DEAF_MS : AGAIN_MS)) return;
  events.close();
  follow();
}

function showJob(job) {
  const state = document.createElement("span");
  state.className = `state ${TONES[job.state] ?? ""}`;
  state.textContent = job.cancelling ? "stopping" : job.pausing ? "pausing" : job.state;
  slot("state").replaceChildren(state);
  put("message", job.waiting || (job.state === "paused" ? "It waits until somebody resumes it." : job.message));
  if (job.waiting && slot("waiting")) put("waiting", job.waiting);
  put("phase", job.phase || "–");
  put("step", job.total_steps ? `${job.step} of ${job.total_steps}` : `${job.step}`);
  put("eta", job.state === "running" ? duration(job.eta_seconds) : "–");
  put("worker", job.worker || "–");
  put("attempt", `${job.attempt}`);
  slot("bar").max = job.total_steps || 1;
  slot("bar").value = job.step;
  showLog(job.log_tail);
  const now = `${job.state} ${job.attempt} ${job.cancelling} ${job.pausing}`;
  if (now !== shown) window.htmx.trigger(document.body, "run-changed");
  shown = now;
}

function showLog(text) {
  const log = slot("log");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  put("log", text || "Nothing yet.");
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function addPoints(fresh) {
  for (const point of fresh) if (Number.isFinite(point.loss)) points.set(point.step, point.loss);
  const attempt = Math.max(...fresh.map((point) => point.attempt)); // what others had done beyond it is not news
  const newest = fresh.filter((point) => point.attempt === attempt);
  const last = newest.at(-1);
  if (Number.isFinite(last.loss)) put("loss", last.loss.toFixed(3));
  const speed = newest.findLast((point) => Number.isFinite(point.tokens_per_second));
  if (speed) put("speed", Math.round(speed.tokens_per_second).toLocaleString("en"));
  if (attempt > begun) window.htmx.trigger(document.body, "run-changed"); // only now it is known where it went on from
  begun = attempt;
  draw();
}

/** Draw at most once a frame, however many points a reconnect brings. */
function draw() {
  if (drawAgain) return;
  drawAgain = true;
  requestAnimationFrame(() => { drawAgain = false; paint(); });
}

function paint() {
  const box = root.querySelector("[data-chart]");
  const steps = [...points.keys()].sort((a, b) => a - b);
  const losses = steps.map((step) => points.get(step));
  const data = [steps, losses, smooth(losses)];
  if (plot) { plot.setData(data); return; }
  if (!steps.length) return;
  box.replaceChildren();
  plot = new uPlot(options(box), data, box);
}

/** The mean over a window around each point: unlike a running mean it does not lag behind. */
function smooth(values) {
  const reach = Math.max(1, Math.floor(values.length / 16));
  return values.map((_, index) => {
    const window = values.slice(Math.max(0, index - reach), index + reach + 1);
    return window.reduce((sum, value) => sum + value, 0) / window.length;
  });
}

function options(box) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {
    stroke: () => colour("--color-base-content"),
    grid: { stroke: () => colour("--color-base-300"), width: 1 },
    ticks: { show: false },
    font: "12px 'Inter Variable', sans-serif",
  };
  return {
    width: box.clientWidth,
    height: 260,
    legend: { live: true },
    cursor: { points: { size: 7 } },
    scales: { x: { time: false } },
    axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] }, { ...axis, size: 52 }],
    series: [
      { label: "Step" },
      { label: "Loss", stroke: () => `${colour("--color-primary")}55`, width: 1.25, points: { show: false }, value: short },
      { label: "Smoothed", stroke: () => colour("--color-primary"), width: 2.25, points: { show: false }, value: short },
    ],
  };
}

function short(_, value) {
  return value === null || value === undefined ? "–" : value.toFixed(4);
}

new ResizeObserver(([entry]) => plot?.setSize({ width: entry.contentRect.width, height: 260 })).observe(root.querySelector("[data-chart]"));
document.addEventListener("themechange", () => plot?.redraw());
