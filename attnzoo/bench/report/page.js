"use strict";
const body = document.querySelector("tbody");
const heads = [...document.querySelectorAll("th")];
const rows = [...body.rows];
const units = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  if (heads[column].style.textAlign !== "right") return text;
  const [, digits, unit] = text.match(/(\d[\d.]*(?:e[+-]?\d+)?) ?([kMGT]?)/) ?? [];
  return digits ? digits * (units[unit] ?? 1) : text;
}

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return typeof a === "number" ? a - b : a.localeCompare(b);
}

function sort(column) {
  const rising = heads[column].getAttribute("aria-sort") !== "ascending";
  const keys = new Map(rows.map((row) => [row, value(row, column)]));
  const sign = (a, b) => (rising || keys.get(a) === "" || keys.get(b) === "" ? 1 : -1);
  rows.sort((a, b) => sign(a, b) * compare(keys.get(a), keys.get(b)));
  heads.forEach((head) => head.setAttribute("aria-sort", "none"));
  heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...rows);
  const order = rising ? "ascending" : "descending";
  document.querySelector("[role=status]").textContent =
    `Sorted by ${heads[column].textContent.trim()}, ${order}.`;
}

heads.forEach((head, column) => {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(column));
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort(column));
});

document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
