// Two plots of the usage page: requests and tokens over time, a line for each of the busiest.
import uPlot from "./vendor/uplot.esm.js";

const TONES = ["--color-primary", "--color-info", "--color-success", "--color-warning", "--color-error", "--color-secondary"];
const source = document.getElementById("plot");
const plots = source ? start(JSON.parse(source.textContent)) : [];

function start({ times, lines }) {
  return [...document.querySelectorAll("[data-plot]")].map((box) => {
    const data = [times, ...lines.map((line) => line[box.dataset.plot])];
    const plot = new uPlot(options(box, times, lines), data, box);
    new ResizeObserver(([entry]) => plot.setSize({ width: entry.contentRect.width, height: 240 })).observe(box);
    return plot;
  });
}

function options(box, times, lines) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {
    stroke: () => colour("--color-base-content"),
    grid: { stroke: () => colour("--color-base-300"), width: 1 },
    ticks: { show: false },
    font: "12px 'Inter Variable', sans-serif",
  };
  const whole = (_, value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  const short = (value) => Intl.NumberFormat("en", { notation: "compact" }).format(value);
  const byHour = times[1] - times[0] < 86400;
  const when = byHour ? "{HH}:{mm}" : "{D} {MMM}";
  return {
    width: box.clientWidth,
    height: 240,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
    scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] } },
    axes: [
      { ...axis, space: 64, incrs: [3600, 14400, 21600, 86400, 86400 * 2, 86400 * 7], values: [[1, when, null, null, null, null, null, null, 1]] },
      { ...axis, size: 52, incrs: [1, 2, 5, 10, 20, 50].flatMap((one) => [one, one * 100, one * 1e4, one * 1e6]).sort((a, b) => a - b), values: (_, ticks) => ticks.map(short) },
    ],
    series: [
      { label: byHour ? "Hour" : "Day", value: byHour ? "{HH}:{mm}" : "{D} {MMM}" },
      ...lines.map((line, index) => ({
        label: line.label,
        stroke: () => colour(TONES[index]),
        width: 2,
        points: { size: 5, fill: () => colour(TONES[index]) },
        value: whole,
      })),
    ],
  };
}

document.addEventListener("themechange", () => plots.forEach((plot) => plot.redraw()));
