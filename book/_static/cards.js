// On a phone a table's rows become cards, and a cell says which column it is of.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table.table")) {
    const heads = [...table.querySelectorAll("thead th")].map((h) => h.textContent.trim());
    if (!heads.length) continue;
    table.classList.add("zolab-cards");
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => (cell.dataset.head = heads[i] ?? ""));
  }
});
