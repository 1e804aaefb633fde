// Draws every figure of the page from the JSON beside it, in the colours of the theme.
(async () => {
  "use strict";
  // The library lies in the page gzipped; as a script of its own it runs like any other.
  async function unpack() {
    const packed = atob(document.getElementById("plotly-library").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const library = document.createElement("script");
    library.textContent = await new Response(stream).text();
    document.head.append(library);
  }
  await unpack();

  // The figures' own light colours and what they become on a dark page.
  const DARK = {
    "#2B2F36": "#D9DEE6", "#3F4650": "#AEB6C2", "#6B7280": "#9AA3B0", "#111827": "#F2F4F7",
    "#E4E7EB": "#2E343D", "#B8BDC6": "#4A5260", "#C9CDD3": "#5B6472", "#0072B2": "#4A9FDB",
    "rgba(255,255,255,0.75)": "rgba(23,26,32,0.75)",
  };
  const KNOWN = new RegExp(Object.keys(DARK).map((c) => c.replace(/[().]/g, "\\$&")).join("|"), "g");
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : media.matches);

  // Rows that the legend will need: plotly gives each entry the width of the longest.
  function legendRows(figure, width) {
    const names = figure.data.filter((t) => t.name && t.showlegend !== false).map((t) => t.name);
    if (names.length < 2 || figure.layout.showlegend === false) return 0;
    const columns = Math.max(1, Math.floor(width / (60 + 7 * Math.max(...names.map((n) => n.length)))));
    return Math.ceil(names.length / columns);
  }

  function spec(box, onDark, width) {
    const text = document.getElementById(box.dataset.figure).textContent;
    const figure = JSON.parse(onDark ? text.replace(KNOWN, (c) => DARK[c]) : text);
    figure.layout.width = width;
    if (!figure.layout.title) {
      const top = 14 + 20 * legendRows(figure, width);
      figure.layout.height += top - figure.layout.margin.t;
      figure.layout.margin.t = top;
    }
    figure.layout.paper_bgcolor = figure.layout.plot_bgcolor = "rgba(0,0,0,0)";
    return figure;
  }

  const options = {
    displaylogo: false, showTips: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  };

  // A figure is one thing with one text; its bar of buttons is for the mouse.
  function leaveTabOrder(box) {
    for (const button of box.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  }

  function draw(onDark = dark(), printed = null) {
    for (const box of document.querySelectorAll("[data-figure]")) {
      const figure = spec(box, onDark, printed ?? box.clientWidth);
      box.style.height = `${figure.layout.height}px`;
      // One figure that cannot be drawn must not take the others with it.
      Promise.resolve()
        .then(() => Plotly.react(box, figure.data, figure.layout, options))
        .then(leaveTabOrder)
        .catch((error) => console.error(box.id, error));
    }
  }

  // What is wider than its frame is scrolled with the keys as well.
  function reachScrolled() {
    for (const frame of document.querySelectorAll(".scroll")) {
      if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0;
      else frame.removeAttribute("tabindex");
    }
  }

  draw();
  reachScrolled();
  let width = window.innerWidth, later = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(later);
    later = setTimeout(() => {
      draw();
      reachScrolled();
    }, 150);
  });
  media.addEventListener("change", () => draw());
  // Paper is laid out after this event, so its width is not known yet: that of A4 with margins.
  window.addEventListener("beforeprint", () => draw(false, 660));
  window.addEventListener("afterprint", () => draw());
  document.getElementById("theme")?.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    draw();
  });
})();
