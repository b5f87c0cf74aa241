// Finding words in a text without touching it: the browser paints over the places.
"use strict";
window.finder = (text, input, output) => {
  const MOST = 1000;
  const paint = window.CSS?.highlights && window.Highlight;
  let places = [], at = -1;

  function search() {
    const wanted = input.value.toLowerCase();
    places = [];
    if (wanted.length > 1) {
      for (const node of text.childNodes) {
        const words = (node.textContent || "").toLowerCase();
        const inner = node.nodeType === Node.TEXT_NODE ? node : node.firstChild;
        for (let i = words.indexOf(wanted); i >= 0 && places.length < MOST; i = words.indexOf(wanted, i + wanted.length)) {
          const range = new Range();
          range.setStart(inner, i);
          range.setEnd(inner, Math.min(inner.length, i + wanted.length));
          places.push(range);
        }
      }
    }
    if (paint) CSS.highlights.set("found", new Highlight(...places));
  }

  function tell() {
    const count = places.length >= MOST ? `${MOST}+` : places.length;
    output.textContent = input.value.length < 2 ? "" : places.length ? `${at + 1} of ${count}` : "none";
  }

  function go(step) {
    if (!places.length) return;
    at = (at + step + places.length) % places.length;
    if (paint) CSS.highlights.set("present", new Highlight(places[at]));
    const box = places[at].getBoundingClientRect(), frame = text.getBoundingClientRect();
    text.scrollTop += box.top - frame.top - frame.height / 3;
    if (!paint) getSelection().setBaseAndExtent(places[at].startContainer, places[at].startOffset, places[at].endContainer, places[at].endOffset);
  }

  input.addEventListener("input", () => {
    search();
    at = -1;
    if (paint) CSS.highlights.delete("present");
    go(1);
    tell();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    search(); // the log may have moved on
    go(event.shiftKey ? -1 : 1);
    tell();
  });
};
