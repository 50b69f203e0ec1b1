"use strict";
// ---- tables: a click on a head sorts, a second one turns it round; what is missing stays last --------------------
function compare(a, b) {
  const x = Number(a), y = Number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row, place) => ({ row, place, key: row.cells[column].dataset.value }));
  keyed.sort((a, b) => {
    if (a.key === undefined || b.key === undefined) {
      return (a.key === undefined) - (b.key === undefined) || a.place - b.place;
    }
    return (ascending ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
  });
  body.append(...keyed.map((entry) => entry.row));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    head.setAttribute("aria-sort", i !== column ? "none" : ascending ? "ascending" : "descending");
  });
}

function addFilter(table) {
  const field = document.createElement("input");
  field.className = "filter";
  field.type = "search";
  field.placeholder = `filter ${table.tBodies[0].rows.length} rows`;
  field.setAttribute("aria-label", field.placeholder);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.parentElement.before(field);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
    if (cells.some((cell) => cell.classList.contains("number"))) {
      for (const cell of [head, ...cells]) cell.classList.add("number");
    }
    head.firstElementChild.addEventListener("click", () => {
      sortBy(table, column, head.getAttribute("aria-sort") !== "ascending");
    });
  });
  if (table.tBodies[0].rows.length > 12) addFilter(table);
}

// ---- figures: in the reader's light or dark, with a choice of the x axis -----------------------------------------
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--soft") };
  const result = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { size: 13, ...layout.font, color: colour("--ink") },
    hoverlabel: { bgcolor: colour("--raised"), font: { color: colour("--ink") }, ...layout.hoverlabel },
    legend: { ...layout.legend, bgcolor: "rgba(0,0,0,0)" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--soft") },
    autosize: true,
  };
  delete result.width;
  delete result.height;
  const names = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  for (const name of new Set(["xaxis", "yaxis", ...names])) {
    result[name] = { automargin: true, exponentformat: "SI", ...layout[name], ...axis };
  }
  return result;
}

function draw(figure) {
  const plot = figure.querySelector(".plot");
  const content = JSON.parse(figure.querySelector("script").textContent);
  const bar = figure.querySelector(".axes");
  const titles = Object.keys(content.axes);
  const logarithmic = { x: false, y: false };
  let chosen = titles[0];

  function render() {
    const layout = themed(content.layout);
    const data = content.data.map((trace, i) => (chosen ? { ...trace, x: content.axes[chosen][i] || [] } : trace));
    if (chosen) layout.xaxis.title = { text: chosen };
    for (const letter of "xy") {
      if (!logarithmic[letter]) continue;
      layout[`${letter}axis`].type = "log";
      delete layout[`${letter}axis`].range;  // it was linear
    }
    Plotly.react(plot, data, layout, { displaylogo: false, responsive: true });
  }

  function button(text, pressed, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", () => { act(made); render(); });
    bar.append(made);
    return made;
  }

  if (chosen) {
    const buttons = titles.map((title) => button(title, title === chosen, (made) => {
      chosen = title;
      for (const other of buttons) other.setAttribute("aria-pressed", other === made);
    }));
    bar.append(Object.assign(document.createElement("span"), { className: "gap" }));
    for (const letter of "xy") {
      button(`log ${letter}`, false, (made) => {
        logarithmic[letter] = !logarithmic[letter];
        made.setAttribute("aria-pressed", logarithmic[letter]);
      });
    }
  }
  render();
  dark.addEventListener("change", render);
}

document.querySelectorAll("figure").forEach(draw);
