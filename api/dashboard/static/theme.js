// Light, dark or as the system: at once, without loading the page again. The cookie is the server's.
"use strict";
(() => {
  const form = document.querySelector("form.theme");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = event.submitter.value;
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    for (const button of form.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button === event.submitter));
    }
    document.dispatchEvent(new CustomEvent("lathe:theme")); // what draws with colours draws again
    const fields = new URLSearchParams(new FormData(form, event.submitter));
    fetch(form.action, { method: "POST", body: fields, headers: { "HX-Request": "true" } });
  });
})();
