// A timeline that grows between two messages of the stream.
"use strict";
(() => {
  const THINNEST = 0.005; // as the server draws it
  let since = performance.now();

  function grow() {
    const grown = (performance.now() - since) / 1000;
    for (const table of document.querySelectorAll("[data-total][data-grows]")) {
      const total = Number(table.dataset.total) + grown;
      const share = (seconds) => `${(100 * seconds) / total}%`;
      for (const mark of table.querySelectorAll("[data-start]")) {
        const start = Number(mark.dataset.start), end = Number(mark.dataset.end);
        mark.setAttribute("x", share(start));
        if (mark.tagName === "text") continue;
        const length = end - start + ("grows" in mark.dataset ? grown : 0);
        mark.setAttribute("width", share(Math.max(length, THINNEST * total)));
      }
    }
  }

  setInterval(grow, 1000);
  document.addEventListener("htmx:after:swap", () => {
    since = performance.now();
  });
})();
