// What helps a reader of the page: words explained where they stand, tables saved as CSV.
(() => {
  "use strict";
  const shown = document.createElement("div");
  shown.id = "term-shown";
  shown.role = "tooltip";
  shown.hidden = true;
  document.body.append(shown);
  let hiding = 0;

  function explain(word) {
    clearTimeout(hiding);
    const told = document.querySelector(`${word.getAttribute("href")} dd`);
    if (!told) return;
    shown.textContent = told.textContent;
    shown.hidden = false;
    const at = word.getClientRects()[0], wide = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(at.left, wide - shown.offsetWidth - 8));
    const above = at.bottom + shown.offsetHeight + 8 > window.innerHeight;
    const top = above ? at.top - shown.offsetHeight - 4 : at.bottom + 4;
    shown.style.left = `${left + window.scrollX}px`;
    shown.style.top = `${top + window.scrollY}px`;
  }
  // Not at once: the pointer may go from the word to its text, to read or to copy it.
  const leave = () => { hiding = setTimeout(() => { shown.hidden = true; }, 200); };

  for (const word of document.querySelectorAll("a.term")) {
    word.addEventListener("pointerenter", () => explain(word));
    word.addEventListener("focus", () => explain(word));
    word.addEventListener("pointerleave", leave);
    word.addEventListener("blur", leave);
    // A finger has no pointer to hover with: the first touch explains, and goes nowhere.
    let touched = false;
    word.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch"; });
    word.addEventListener("click", (event) => {
      if (!touched) return;
      event.preventDefault();
      explain(word);
    });
  }
  shown.addEventListener("pointerenter", () => clearTimeout(hiding));
  shown.addEventListener("pointerleave", leave);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") shown.hidden = true;
  });

  // Tables as CSV, made of what the page shows; figures with all their digits, from data-csv.
  const PLAIN = /^[-+]?(\d[\d.,\s]*)?([eE][-+]?\d+)?$/;
  function field(text) {
    // A text that begins like a formula would be run by a spreadsheet.
    const safe = /^[=+\-@\t]/.test(text) && !PLAIN.test(text) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }
  function fields(cell) {
    if (cell.dataset.csv !== undefined) return cell.dataset.csv.split("|");
    const told = cell.querySelector("a.mark[title]")?.title ?? cell.textContent;
    return [told.replace(/\s+/g, " ").trim()];
  }
  function csvOf(table) {
    const head = [...table.tHead.rows[0].cells].flatMap(fields);
    const grouped = table.dataset.group !== undefined;
    const rows = [grouped ? [...table.dataset.group.split("|"), ...head] : head];
    for (const row of table.querySelectorAll("tbody tr:not(.group)")) {
      const of = grouped ? [row.parentNode.dataset.title, row.parentNode.dataset.unit] : [];
      rows.push([...of, ...[...row.cells].flatMap(fields)]);
    }
    return "\ufeff" + rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  }
  function titleOf(table) {
    const heads = [...document.querySelectorAll("main h2, main h3, main h4, main summary")];
    const before = heads.filter((head) => head.compareDocumentPosition(table) & 4);
    return (before.at(-1)?.textContent ?? document.title).replace(/\s+/g, " ").trim();
  }
  const main = document.querySelector("main[data-csv-of]");
  for (const table of main ? main.querySelectorAll("table") : []) {
    if (!table.tHead) continue;
    const button = document.createElement("button");
    const title = titleOf(table);
    button.type = "button";
    button.className = "csv";
    button.textContent = "CSV";
    button.ariaLabel = `CSV: ${main.dataset.csvOf.replace("{of}", title)}`;
    button.title = main.dataset.csvOf.replace("{of}", title);
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
      const name = `${main.dataset.run}-${title}`.toLowerCase();
      link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 90)}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    (table.closest(".scroll") ?? table).before(button);
  }
})();
