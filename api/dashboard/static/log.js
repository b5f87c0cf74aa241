// The log as it is written: the end stays in view until the reader scrolls up, and the oldest lines make room.
"use strict";
(() => {
  const MOST_CHARACTERS = 1024 * 1024;
  const NEAR_pixels = 24;
  const log = document.getElementById("log"), latest = document.getElementById("latest");
  const wrap = document.getElementById("wrap");
  let follows = true, last = log.dataset.after, characters = log.textContent.length, source = null;
  let waiting = [];

  function toEnd() {
    log.scrollTop = log.scrollHeight;
  }

  function atEnd() {
    return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_pixels;
  }

  function follow(wanted) {
    follows = wanted;
    latest.hidden = wanted || !log.dataset.live;
    if (wanted) toEnd();
  }

  // While somebody reads, nothing is taken away under their eyes; a flood still has a bound.
  function trim() {
    const most = follows ? MOST_CHARACTERS : 2 * MOST_CHARACTERS;
    while (characters > most && log.childNodes.length > 1) {
      characters -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
  }

  function write() {
    for (const text of waiting) {
      log.append(document.createTextNode(text)); // one a piece, so that the oldest can go by themselves
      characters += text.length;
    }
    waiting = [];
    document.getElementById("silent").hidden = true;
    trim();
    if (follows) toEnd();
  }

  function open() {
    source = new EventSource(`${log.dataset.live}&after=${last}`);
    source.onmessage = (event) => {
      last = event.lastEventId;
      if (!waiting.length) requestAnimationFrame(write);
      waiting.push(JSON.parse(event.data).text);
    };
    source.addEventListener("end", () => source.close());
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) location.reload(); // refused: the server knows what to show
    };
  }

  // A browser grants a host few connections: a page that nobody sees gives its own back.
  function mind() {
    if (document.hidden) {
      source.close();
    } else if (source.readyState === EventSource.CLOSED) {
      open();
    }
  }

  log.addEventListener("scroll", () => {
    if (atEnd() !== follows) follow(atEnd());
  });
  latest.addEventListener("click", () => follow(true));
  wrap.addEventListener("change", () => {
    if (follows) toEnd();
  });
  for (const select of document.querySelectorAll(".tools select")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }
  document.getElementById("show").hidden = true;
  document.getElementById("find-box").hidden = false;
  window.finder(log, document.getElementById("find"), document.getElementById("found"));
  toEnd();
  if (log.dataset.live) {
    open();
    document.addEventListener("visibilitychange", mind);
  }
})();
