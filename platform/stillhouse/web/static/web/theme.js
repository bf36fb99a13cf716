// Runs before the first paint, so that the page never flashes in the other theme.
(() => {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (system.matches ? "ink" : "paper");
  };
  system.addEventListener("change", () => {
    apply();
    document.documentElement.dispatchEvent(new CustomEvent("themechange", { bubbles: true }));
  });
  apply();
})();
