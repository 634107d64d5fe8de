"use strict";
(() => {
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const value = (row, index, number) => {
    const cell = row.cells[index];
    if (!number) return cell.textContent.trim();
    return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  };
  const heads = [...table.tHead.querySelectorAll("th[data-key]")];
  // The columns of the body: the sample, the numbers in the order of the second header row, the note.
  const numbers = heads.filter((head) => head.dataset.key === "number");
  const texts = heads.filter((head) => head.dataset.key === "text");
  const column = (head) => head === texts[0] ? 0 : head === texts[1] ? numbers.length + 1 : numbers.indexOf(head) + 1;
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending" || (head.dataset.key === "text" && !head.hasAttribute("aria-sort"));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const sign = down ? 1 : -1, index = column(head), number = head.dataset.key === "number";
      rows.sort((a, b) => {
        const x = value(a, index, number), y = value(b, index, number);
        if (!number) return sign * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x)) return Number.isNaN(y) ? 0 : 1;
        return Number.isNaN(y) ? -1 : sign * (x - y);
      });
      body.append(...rows);
    });
  }
  const filter = document.getElementById("filter"), count = document.getElementById("count");
  filter.closest("p").hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
})();
