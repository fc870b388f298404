// Tables: sorted by a click on a column; on phones, one block per row, with the name of the column above each value.
const FEW_COLUMNS = 3; // a table of so few columns fits on a phone as it is

// The value by which a cell is sorted; null for an empty one.
function sortKey(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  if (text === "" || text === "\u2013") return null;
  const value = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
  const isDate = /^\d{4}-/.test(text);
  return Number.isNaN(value) || isDate ? text.toLowerCase() : value;
}

function compareKeys(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

function sortable(table) {
  const body = table.tBodies[0], heads = all("thead th", table);
  function sort(head, column) {
    const down = head.getAttribute("aria-sort") !== "descending";
    const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : down ? compareKeys(b, a) : compareKeys(a, b)));
    body.append(...rows.map(([, row]) => row));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.dispatchEvent(new Event("sorted"));
  }
  heads.forEach((head, column) => {
    if (head.dataset.sortable === "no") return;
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(head, column));
  });
}

function labelCells(table) {
  const names = all("thead th", table).map((head) => head.textContent.trim());
  if (names.length <= FEW_COLUMNS) return;
  table.classList.add("stacked");
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, column) => { cell.dataset.label = names[column]; });
  }
}
