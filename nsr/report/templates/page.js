// Sort a table by the column whose heading is pressed: numbers by data-value, words by their text.
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (one, other) =>
        isNaN(one) || isNaN(other) ? String(one).localeCompare(other, "en", { numeric: true }) : one - other;
      const rows = [...table.tBodies[0].rows].sort((one, other) => order(key(one), key(other)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
