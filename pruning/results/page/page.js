"use strict";

// charts: every element with an id that the data knows
const data = JSON.parse(document.getElementById("data").textContent);
const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true };
const charts = Object.entries(data.charts).map(([id, chart]) =>
  vegaEmbed(document.getElementById(id), chart, options));
Promise.all(charts).then(() => { document.documentElement.dataset.drawn = charts.length; });

// the table: a click on a column sorts by it, another one the other way; empty cells stay last
const table = document.getElementById("results");
const body = table.tBodies[0];

function sort(column, sign) {
  const value = (row) => row.cells[column].dataset.value;
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = Number(x) - Number(y);
    return sign * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
  };
  body.append(...[...body.rows].sort(order));
}

for (const head of table.tHead.rows[0].cells) {
  head.querySelector("button").addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    sort(head.cellIndex, ascending ? 1 : -1);
  });
}

// Pareto marks are of one metric at a time
const metric = document.getElementById("metric");
metric.addEventListener("change", () => {
  const best = new Set(data.pareto[metric.value]);
  for (const row of body.rows) {
    const cell = row.querySelector("td.mark");
    row.classList.toggle("pareto", best.has(row.dataset.name));
    cell.textContent = best.has(row.dataset.name) ? "◆" : "";
    cell.dataset.value = best.has(row.dataset.name) ? "1" : "0";
  }
});
