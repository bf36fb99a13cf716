// Draws the length histograms of a dataset version, with the limit where there is one; the numbers stand beside them as text.
import uPlot from "./vendor/uplot.esm.js";

const plots = new Set();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (count) => (count >= 10_000 ? `${Math.round(count / 1000)}k` : count >= 1000 ? `${Math.round(count / 100) / 10}k` : `${count}`);

/** Where a length falls on an axis on which bar `i` is centred on `i`. */
function place(bins, length) {
  const at = bins.findIndex(([upper]) => length <= upper);
  if (at < 0) return bins.length - 0.5;
  const lower = at ? bins[at - 1][0] : 0;
  return at - 0.5 + (length - lower) / (bins[at][0] - lower);
}

/** A dashed line at the limit, its number beside it. */
function limitLine(bins, limit) {
  return (plot) => {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const x = plot.valToPos(place(bins, limit), "x", true);
    const right = x > bbox.left + bbox.width / 2;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--color-base-content");
    ctx.lineWidth = 2 * ratio;
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.font = `${12 * ratio}px 'Inter Variable', sans-serif`;
    ctx.textAlign = right ? "right" : "left";
    ctx.fillText(`limit ${limit.toLocaleString("en")}`, x + (right ? -6 : 6) * ratio, bbox.top + 12 * ratio);
    ctx.restore();
  };
}

function draw(root) {
  for (const box of root.querySelectorAll("[data-lengths]")) {
    if (box.firstChild) continue;
    const bins = JSON.parse(box.dataset.lengths);
    const limit = Number(box.dataset.limit) || 0;
    const step = Math.max(1, Math.ceil((bins.length * 44) / box.clientWidth));
    const axis = {
      stroke: () => colour("--color-base-content"),
      grid: { stroke: () => colour("--color-base-300"), width: 1 },
      ticks: { show: false },
      font: "12px 'Inter Variable', sans-serif",
    };
    const bars = (tone) => ({ fill: () => colour(tone), stroke: "transparent", paths: uPlot.paths.bars({ size: [0.8, 64] }), points: { show: false } });
    const options = {
      width: box.clientWidth,
      height: 200,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [-0.6, bins.length - 0.4] }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.12)] } },
      axes: [
        {
          ...axis, grid: { show: false }, label: box.dataset.unit || "characters", labelSize: 20, labelFont: axis.font,
          splits: () => bins.flatMap((_, index) => ((index + 1) % step ? [] : [index])),
          values: (_, at) => at.map((index) => short(bins[index]?.[0] ?? 0)),
        },
        { ...axis, size: 52, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6], values: (_, at) => at.map(short) },
      ],
      series: [{}, ...(limit ? [bars("--color-error")] : []), bars("--color-primary")],
      hooks: limit ? { draw: [limitLine(bins, limit)] } : {},
    };
    const all = bins.map(([, within, beyond = 0]) => within + beyond);
    const data = [bins.map((_, index) => index), ...(limit ? [all] : []), bins.map(([, within]) => within)];
    plots.add(new uPlot(options, data, box));
  }
}

draw(document);
document.body.addEventListener("htmx:load", (event) => draw(event.detail.elt.parentElement ?? document));
document.addEventListener("themechange", () => plots.forEach((plot) => plot.redraw()));
