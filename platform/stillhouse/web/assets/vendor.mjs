// Copies the browser libraries, their licences, the typeface and one sprite of icons into static/web/vendor/.
// Nothing is loaded from elsewhere at run time: the site may have no way out.
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";

const modules = "node_modules";
const target = "../static/web/vendor";

const files = {
  "htmx.min.js": "htmx.org/dist/htmx.min.js",
  "htmx.LICENSE": "htmx.org/LICENSE",
  "alpine-csp.esm.min.js": "@alpinejs/csp/dist/module.esm.min.js",
  "uplot.esm.js": "uplot/dist/uPlot.esm.js",
  "uplot.min.css": "uplot/dist/uPlot.min.css",
  "uplot.LICENSE": "uplot/LICENSE",
  "inter-latin.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
  "inter-latin-ext.woff2": "@fontsource-variable/inter/files/inter-latin-ext-wght-normal.woff2",
  "inter.LICENSE": "@fontsource-variable/inter/LICENSE",
  "lucide.LICENSE": "lucide-static/LICENSE",
};

const icons = [
  "house", "database", "activity", "layers", "clipboard-check", "tag", "message-square-text", "key-round", "box",
  "scroll-text", "plus", "upload", "check", "x", "circle-alert", "triangle-alert", "info", "chevron-right",
  "chevron-down", "copy", "play", "square", "menu", "sun", "moon", "log-out", "arrow-right", "undo-2", "rocket",
  "brain", "git-commit-horizontal", "shield-check", "file-text", "scale", "sparkles", "clock", "search",
  "flask-conical", "send", "code-xml", "eye", "ellipsis", "cpu", "bell", "download", "pencil", "eraser", "git-compare",
  "wand-sparkles", "funnel", "message-circle", "shield-alert",
];

await mkdir(target, { recursive: true });
for (const [name, source] of Object.entries(files)) await cp(`${modules}/${source}`, `${target}/${name}`);
await cp("alpine.LICENSE", `${target}/alpine.LICENSE`);

const symbols = await Promise.all(
  icons.map(async (name) => {
    const svg = await readFile(`${modules}/lucide-static/icons/${name}.svg`, "utf8");
    const inner = svg.replace(/^[\s\S]*?<svg[^>]*>/, "").replace(/<\/svg>\s*$/, "").replace(/\s+/g, " ").trim();
    return `<symbol id="${name}" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.75" ` +
      `stroke-linecap="round" stroke-linejoin="round">${inner}</symbol>`;
  }),
);
await writeFile(`${target}/icons.svg`, `<svg xmlns="http://www.w3.org/2000/svg">\n${symbols.join("\n")}\n</svg>\n`);

const version = async (name) => JSON.parse(await readFile(`${modules}/${name}/package.json`, "utf8")).version;
const rows = [];
for (const name of ["htmx.org", "@alpinejs/csp", "uplot", "@fontsource-variable/inter", "lucide-static"]) {
  rows.push(`- ${name} ${await version(name)}`);
}
await writeFile(`${target}/README.md`, `Vendored by \`npm run vendor\` (see ../../../assets/). Unchanged copies:\n\n${rows.join("\n")}\n`);
