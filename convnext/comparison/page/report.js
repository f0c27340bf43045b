"use strict";
// A click on a column's name sorts the rows by it, and a second one the other way round.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const table = header.closest("table");
    const column = [...header.parentElement.children].indexOf(header);
    const key = row => row.children[column].dataset.value;
    const text = row => row.children[column].textContent;
    const numeric = table.querySelector(`tbody td:nth-child(${column + 1})[data-value]`) !== null;
    const down = header.ariaSort ? header.ariaSort === "ascending" : numeric;
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const missing = row => numeric && key(row) === undefined;  // stays last
    const compare = (a, b) =>
      missing(a) || missing(b) ? missing(a) - missing(b)
        : (numeric ? key(a) - key(b) : text(a).localeCompare(text(b), undefined, {numeric: true})) * (down ? -1 : 1);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}
