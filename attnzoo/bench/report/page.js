"use strict";
const table = document.querySelector("table");
const heads = [...table.tHead.rows[0].cells];
const values = new Map();
for (const row of table.tBodies[0].rows) {
  values.set(row, [...row.cells].map((cell) => JSON.parse(cell.dataset.value ?? "null")));
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function sort(column) {
  const rising = heads[column].getAttribute("aria-sort") !== "ascending";
  const missing = (row) => (values.get(row)[column] ?? null) === null;
  const rows = [...values.keys()].sort(
    (a, b) =>
      missing(a) - missing(b) ||
      (missing(a) ? 0 : (rising ? 1 : -1) * compare(values.get(a)[column], values.get(b)[column])),
  );
  heads.forEach((head) => head.setAttribute("aria-sort", "none"));
  heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
  table.querySelector("[role=status]").textContent =
    "Sorted by " + heads[column].innerText + (rising ? ", ascending." : ", descending.");
}

heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));

document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of values.keys()) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
