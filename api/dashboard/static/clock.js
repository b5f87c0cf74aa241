// Times in the reader's own zone, and durations that tick.
"use strict";
(() => {
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const hour = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

  function localize() {
    const today = new Date().toDateString();
    for (const element of document.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const text = at.toDateString() === today ? hour.format(at) : day.format(at);
      if (element.textContent !== text) element.textContent = text;
      element.title = element.dateTime;
    }
  }

  function duration(seconds) {
    if (seconds < 60) return `${seconds} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} min ${String(seconds % 60).padStart(2, "0")} s`;
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }

  function tick() {
    for (const element of document.querySelectorAll("[data-since]")) {
      const since = Date.parse(element.dataset.since);
      element.textContent = duration(Math.max(0, Math.floor((Date.now() - since) / 1000)));
    }
  }

  function refresh() {
    localize();
    tick();
  }

  refresh();
  setInterval(tick, 1000);
  document.addEventListener("htmx:after:swap", refresh);
})();
