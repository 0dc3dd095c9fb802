"use strict";
// Draws every figure of the page in the colours of the reader's screen, and again when they change.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const scales = JSON.parse(document.getElementById("scales").textContent);

  function dressed(figure) {
    const theme = dark.matches ? "dark" : "light";
    const ink = dark.matches ? "#e6edf3" : "#1f2328";
    const panel = dark.matches ? "#151b23" : "#ffffff";
    const data = figure.data.map(function (trace) {
      const colours = scales[theme][trace.meta];
      if (!colours) return trace;
      const stops = colours.map(function (c, i) { return [i / (colours.length - 1), c]; });
      return Object.assign({}, trace, { colorscale: stops });
    });
    const layout = Object.assign({}, figure.layout, { paper_bgcolor: "rgba(0,0,0,0)" });
    layout.font = Object.assign({}, layout.font, { color: ink });
    layout.updatemenus = (layout.updatemenus || []).map(function (menu) {
      return Object.assign({ bgcolor: panel, bordercolor: "#8b949e", font: { color: ink } }, menu);
    });
    return { data: data, layout: layout };
  }

  function draw() {
    document.querySelectorAll(".plot").forEach(function (place) {
      const figure = dressed(JSON.parse(place.nextElementSibling.textContent));
      const config = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.react(place, figure.data, figure.layout, config);
    });
    document.documentElement.dataset.drawn = String(document.querySelectorAll(".plot .main-svg").length > 0);
  }

  dark.addEventListener("change", draw);
  draw();
})();
