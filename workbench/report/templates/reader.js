// What helps a reader of the page: words explained where they stand.
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
})();
