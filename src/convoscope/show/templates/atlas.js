"use strict";
(() => {
  const title = document.getElementById("title"), text = document.getElementById("text"), strip = document.getElementById("strip");
  const cells = [...document.querySelectorAll(".world button")];
  const show = (cell) => {
    cells.forEach((c) => c.setAttribute("aria-pressed", c === cell));
    title.textContent = "The nearest activations";
    text.textContent = cell.title;
    const n = Number(cell.dataset.n);
    strip.replaceChildren(...Array.from({ length: n }, (_, k) => {
      const part = document.createElement("i");
      part.style.background = `url(${cell.dataset.strip}) ${n > 1 ? (100 * k) / (n - 1) : 0}% 0 / ${100 * n}% 100%`;
      return part;
    }));
    strip.hidden = false;
  };
  const at = (cell, rows, columns) => {
    const [row, column] = cell.style.gridArea.split("/").map((v) => parseInt(v, 10));
    return cells.find((c) => {
      const [r, k] = c.style.gridArea.split("/").map((v) => parseInt(v, 10));
      return r === row + rows && k === column + columns;
    });
  };
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  cells.forEach((cell) => {
    cell.addEventListener("mouseenter", () => show(cell));
    cell.addEventListener("focus", () => show(cell));
    cell.addEventListener("keydown", (event) => {
      const next = moves[event.key] && at(cell, ...moves[event.key]);
      if (next) { event.preventDefault(); next.focus(); }
    });
  });
})();
