// Draws the page's figures, in the colours of the reader's theme.
"use strict";
const theme = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("figure.plot")].map(box => [
  box.querySelector(".canvas"),
  JSON.parse(box.querySelector("script").textContent),
]);

function coloured(value, style) {
  if (typeof value === "string") {
    const name = /^var\((--[a-z]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map(item => coloured(item, style));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
  return value;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [canvas, figure] of figures) {
    const { data, layout } = coloured(figure, style);
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    Plotly.react(canvas, data, layout, config);
  }
}

draw();
theme.addEventListener("change", draw);
