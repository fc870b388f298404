// The index of all runs: filters, and learning curves side by side on one scale of accuracy.
const CURVE = { width: 260, height: 110, margin: 4 };

function drawCurve(row, low, high) {
  const { width, height, margin } = CURVE;
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", row.querySelector("svg")?.getAttribute("aria-label") ?? "No learning curve");
  for (const role of ["training", "validation"]) {
    const values = readCurve(row, role);
    const step = (width - 2 * margin) / Math.max(1, values.length - 1);
    const point = (value, i) => `${(margin + i * step).toFixed(1)},${(height - margin - ((value - low) / (high - low || 1)) * (height - 2 * margin)).toFixed(1)}`;
    const line = document.createElementNS(space, "polyline");
    line.setAttribute("points", values.map(point).join(" "));
    line.setAttribute("class", role);
    svg.append(line);
  }
  return svg;
}

// Accuracies over the epochs in thousandths.
const readCurve = (row, role) => (row.dataset[role] ?? "").split(" ").filter(Boolean).map(Number);

function drawCard(row, low, high) {
  const name = row.querySelector(".name > div").cloneNode(true), accuracy = row.cells[1].textContent.trim();
  const card = make("article", { className: "run" }, make("h2", {}, ...name.childNodes), drawCurve(row, low, high));
  card.append(make("p", { className: "caption", textContent: `${accuracy} \u00b7 ${row.cells[4].textContent} \u00b7 ${row.cells[6].textContent || "no"} epochs` }));
  return card;
}

function runIndex(root) {
  const table = root.querySelector("table"), box = table.closest(".scroll"), cards = root.querySelector(".curves");
  const search = root.querySelector("[data-search]"), preset = root.querySelector("[data-preset]");
  const status = root.querySelector(".status"), scale = root.querySelector("[data-scale]");
  const showsCurves = () => root.querySelector('[name="layout"]:checked').value === "curves";
  function matches(row) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), text = `${row.textContent} ${row.querySelector(".source").title}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!preset.value || row.cells[4].textContent === preset.value);
  }
  function update() {
    const rows = [...table.tBodies[0].rows], shown = rows.filter(matches);
    for (const row of rows) row.hidden = !shown.includes(row);
    status.textContent = `${shown.length} of ${rows.length} runs`;
    box.hidden = showsCurves();
    cards.hidden = scale.hidden = !showsCurves();
    if (!showsCurves()) return;
    const values = shown.flatMap((row) => [...readCurve(row, "training"), ...readCurve(row, "validation")]);
    const low = Math.min(1000, ...values), high = Math.max(0, ...values);
    cards.replaceChildren(...shown.map((row) => drawCard(row, low, high)));
    root.querySelector("[data-limits]").textContent = values.length ? `All curves share one scale of accuracy, from ${low / 10}% to ${high / 10}%.` : "";
  }
  root.querySelector(".controls").hidden = false;
  root.addEventListener("input", update);
  table.addEventListener("sorted", update);
  update();
}
