// A link may bring the API key behind "#", which no browser sends. It is taken out of the address at once.
"use strict";
(() => {
  const form = document.getElementById("sign-in");
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  if (key) {
    form.elements.key.value = key;
    if (form.dataset.trusted === "yes") form.requestSubmit();
    return;
  }
  if (form.dataset.refused === "yes") return;
  // A link from another site arrives without the strict cookie, although there may be a session.
  fetch("/session", { headers: { "HX-Request": "true" } }).then((answer) => {
    if (answer.status === 204) location.replace(form.elements.next.value);
  });
})();
