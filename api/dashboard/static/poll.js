// What changes by itself is asked for again, while somebody looks: every three seconds after the last answer.
"use strict";
(() => {
  const PAUSE_ms = 3000;
  let waiting = 0;

  function ask() {
    const parts = document.hidden ? [] : document.querySelectorAll("[data-poll][hx-get]");
    for (const part of parts) part.dispatchEvent(new CustomEvent("poll"));
    if (!parts.length) again();
  }

  function again() {
    clearTimeout(waiting);
    waiting = setTimeout(ask, PAUSE_ms);
  }

  document.addEventListener("htmx:finally:request", again);
  document.addEventListener("visibilitychange", () => document.hidden || ask());
  again();
})();
