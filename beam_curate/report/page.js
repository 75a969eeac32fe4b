"use strict";
// Sliders, plots, hidden pictures and the copy button. All data comes from the element "data"; none of it is markup.
(() => {
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("data").textContent);
  const number = new Intl.NumberFormat("en");
  const names = Object.keys(data.axes);
  const at = Object.fromEntries(names.map((name) => [name, data.axes[name].start]));
  const threshold = (name) => data.axes[name].stops[at[name]];

  // An image in cell c of a score is not below c of the stops. So "at least stop k" keeps the cells above k, and
  // "below stop k" those up to k.
  const passes = (name, cell) => {
    const axis = data.axes[name];
    return !axis || (axis.keepsAbove ? cell > at[name] : cell <= at[name]);
  };

  const kept = () =>
    data.cells.reduce((sum, [a, n, count]) => sum + (passes("aesthetic", a) && passes("nsfw", n) ? count : 0), 0);

  const views = {};

  const show = () => {
    if (!element("kept")) return;
    const count = kept();
    const change = count - data.written;
    const share = data.read ? ((100 * count) / data.read).toFixed(1) : "0";
    const more = change ? `, ${number.format(Math.abs(change))} ${change > 0 ? "more" : "fewer"} than in this run` : "";
    element("kept").textContent = number.format(count);
    element("kept-text").textContent = `of ${number.format(data.read)} images would be kept (${share}%)${more}`;
    for (const name of names) {
      const text = String(threshold(name));
      element(`value-${name}`).textContent = text;
      element(`slider-${name}`).setAttribute("aria-valuetext", text);
    }
    const command = element("command");
    if (command) {
      const flags = names.map((name) => ` --${name}_threshold=${threshold(name)}`).join("");
      command.value = command.dataset.command + flags;
    }
    element("copied") && (element("copied").textContent = "");
    for (const { view, params } of Object.values(views)) {
      for (const name of params) view.signal(name, threshold(name));
      view.runAsync();
    }
  };

  let waiting = false;
  const showSoon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      show();
    });
  };

  for (const name of names) {
    const slider = element(`slider-${name}`);
    if (!slider) continue;
    slider.addEventListener("input", () => {
      at[name] = Number(slider.value);
      showSoon();
    });
  }

  element("reset")?.addEventListener("click", () => {
    for (const name of names) {
      at[name] = data.axes[name].start;
      element(`slider-${name}`).value = at[name];
    }
    show();
  });

  element("copy")?.addEventListener("click", async () => {
    const command = element("command");
    let copied = false;
    try {
      await navigator.clipboard.writeText(command.value);
      copied = true;
    } catch {
      command.select();
      copied = document.execCommand("copy");
    }
    element("copied").textContent = copied ? "Copied" : "Select the text and copy it";
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.blurred");
    if (!button) return;
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    const label = button.getAttribute("aria-label");
    button.setAttribute(
      "aria-label",
      shown
        ? label.replace("Hidden picture", "Picture").replace(": show", ": hide")
        : label.replace("Picture", "Hidden picture").replace(": hide", ": show"),
    );
  });

  const dark = matchMedia("(prefers-color-scheme: dark)");

  const draw = async () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const font = getComputedStyle(document.body).fontFamily;
    const config = {
      background: "transparent",
      font,
      aria: true,
      view: { stroke: null },
      mark: { aria: false },
      axis: {
        aria: false,
        labelColor: colour("muted"),
        titleColor: colour("ink"),
        titleFontWeight: "normal",
        titleFontSize: 13,
        labelFontSize: 12,
        gridColor: colour("edge"),
        domainColor: colour("edge"),
        tickColor: colour("edge"),
      },
      legend: { aria: false, labelColor: colour("muted"), titleColor: colour("ink"), titleFontWeight: "normal" },
    };
    for (const [id, spec] of Object.entries(data.specs)) {
      const text = JSON.stringify(spec).replace(/"\$(kept|dropped|line|few|many)"/g, (_, name) =>
        JSON.stringify(colour(name)),
      );
      views[id]?.finalize();
      const { view, finalize } = await vegaEmbed(element(id), JSON.parse(text), {
        mode: "vega-lite",
        renderer: "svg",
        ast: true, // no code is made from text, so the page's policy can forbid it
        actions: false,
        tooltip: { theme: dark.matches ? "dark" : "light" },
        config,
      });
      views[id] = { view, finalize, params: (spec.params || []).map((param) => param.name) };
    }
    show();
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  };

  let drawing = Promise.resolve();
  const redraw = () => (drawing = drawing.then(draw));
  dark.addEventListener("change", redraw);
  redraw();
})();
