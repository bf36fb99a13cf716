// Draws the length histograms of a dataset version; the numbers stand beside them as text.
import uPlot from "./vendor/uplot.esm.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (count) => (count >= 1000 ? `${Math.round(count / 1000)}k` : `${count}`);

function draw(root) {
  for (const box of root.querySelectorAll("[data-lengths]")) {
    if (box.firstChild) continue;
    const bins = JSON.parse(box.dataset.lengths);
    const axis = {
      stroke: () => colour("--color-base-content"),
      grid: { stroke: () => colour("--color-base-300"), width: 1 },
      ticks: { show: false },
      font: "12px 'Inter Variable', sans-serif",
    };
    const options = {
      width: box.clientWidth,
      height: 180,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [-0.6, bins.length - 0.4] }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.05)] } },
      axes: [
        { ...axis, splits: () => bins.map((_, index) => index), values: (_, at) => at.map((index) => short(bins[index]?.[0] ?? 0)) },
        { ...axis, size: 52 },
      ],
      series: [{}, { label: "Rows", fill: () => colour("--color-primary"), paths: uPlot.paths.bars({ size: [0.8, 64] }), points: { show: false } }],
    };
    new uPlot(options, [bins.map((_, index) => index), bins.map(([, rows]) => rows)], box);
  }
}

draw(document);
document.body.addEventListener("htmx:load", (event) => draw(event.detail.elt.parentElement ?? document));
