// From a complaint to its line in the recipe.
"use strict";
(() => {
  const text = document.getElementById("recipe");

  function show(line) {
    const lines = text.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
    text.focus();
    text.setSelectionRange(start, start + (lines[line - 1] || "").length);
    const height = parseFloat(getComputedStyle(text).lineHeight);
    text.scrollTop = Math.max(0, (line - 4) * height);
  }

  for (const button of document.querySelectorAll("[data-line]")) {
    button.addEventListener("click", () => show(Number(button.dataset.line)));
  }
})();
