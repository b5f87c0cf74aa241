// Jobs to compare, picked on several pages of the list; and the address that says what the list shows.
"use strict";
(() => {
  const MOST = 12;
  const KEY = "lathe.picks";
  const form = document.getElementById("pick");
  const count = form.querySelector("[data-count]");
  const [clear, compare] = form.querySelectorAll("button");
  const picks = new Set(JSON.parse(sessionStorage.getItem(KEY) || "[]"));

  function show() {
    for (const box of document.querySelectorAll("input[form=pick]")) {
      box.checked = picks.has(box.value);
      box.disabled = !box.checked && picks.size >= MOST;
    }
    const text = { 0: "Pick two or more jobs", 1: "1 job picked" }[picks.size] || `${picks.size} jobs picked`;
    if (count.textContent !== text) count.textContent = text;
    form.classList.toggle("picked", picks.size > 0);
    clear.hidden = picks.size === 0;
    compare.disabled = picks.size < 2;
    compare.classList.toggle("primary", picks.size > 1);
  }

  function keep() {
    sessionStorage.setItem(KEY, JSON.stringify([...picks]));
    show();
  }

  document.addEventListener("change", ({ target }) => {
    if (!target.matches("input[form=pick]")) return;
    if (target.checked) picks.add(target.value);
    else picks.delete(target.value);
    keep();
  });
  form.addEventListener("reset", () => {
    picks.clear();
    keep();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.assign(`/compare?${new URLSearchParams([...picks].map((id) => ["job", id]))}`);
  });
  document.addEventListener("htmx:after:swap", () => {
    const address = document.querySelector("[data-address]")?.dataset.address;
    if (address && !location.search.match(/[?&](after|before)=/)) history.replaceState(null, "", address);
    show();
  });
  show();
})();
