// The form for a new job: after each edit the server is asked for the fields, the YAML and what is wrong, all anew.
"use strict";
(() => {
  const form = document.getElementById("new-job");
  const news = document.getElementById("draft-news");
  const text = document.getElementById("recipe");
  const kept = `lathe:draft:${location.pathname}${location.search}`;
  const opened = text.value;
  let edition = 0;
  let timer = 0;
  let leaving = false;

  function tell(words) {
    if (news.textContent !== words) news.textContent = words;
  }

  // Anything that can change the draft. An answer to an older edition is thrown away, so typing is never undone.
  function edited(wait, action = "") {
    const own = ++edition;
    clearTimeout(timer);
    timer = setTimeout(() => ask(own, action), wait);
  }

  async function ask(own, action) {
    const body = new URLSearchParams(new FormData(form));
    body.set("do", action);
    let answer;
    try {
      answer = await fetch("/new/draft", { method: "POST", body, headers: { "HX-Request": "true" } });
    } catch {
      if (own === edition) tell("The service cannot be reached. What you typed is kept here.");
      return;
    }
    const page = await answer.text();
    if (own !== edition) return;
    const elsewhere = answer.headers.get("HX-Redirect");
    if (elsewhere) {
      leaving = true;
      location.assign(elsewhere);
    } else if (answer.ok) {
      show(new DOMParser().parseFromString(page, "text/html"), action);
    } else {
      tell("The form could not be brought up to date.");
    }
  }

  function show(made, action) {
    const focus = document.activeElement;
    const place = { id: focus && focus.id, start: focus && focus.selectionStart, end: focus && focus.selectionEnd };
    const open = new Map([...form.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
    const items = new Set([...form.querySelectorAll(".item > fieldset")].map(itemName));
    for (const id of ["fields", "verdict"]) document.getElementById(id).replaceWith(made.getElementById(id));
    for (const [id, was] of open) {
      const now = document.getElementById(id);
      if (now && id !== "palette") now.open = was || now.open;
    }
    showText(made);
    if (action) focusAfter(action, items);
    else if (place.id && document.activeElement !== focus) focusAgain(place);
    tell(document.getElementById("verdict").dataset.news);
    document.body.dispatchEvent(new CustomEvent("draft-changed"));
  }

  function showText(made) {
    const theirs = made.getElementById("recipe");
    if (text.value !== theirs.value) text.value = theirs.value;
    for (const name of ["aria-invalid", "aria-describedby"]) {
      if (theirs.hasAttribute(name)) text.setAttribute(name, theirs.getAttribute(name));
      else text.removeAttribute(name);
    }
    form.elements.shown.value = made.querySelector("[name=shown]").value;
    form.querySelector(".gutter").replaceWith(made.querySelector(".gutter"));
    roll();
    keep();
  }

  function focusAgain({ id, start, end }) {
    const found = document.getElementById(id);
    if (!found) return;
    found.focus({ preventScroll: true });
    if (found.type === "text" && typeof start === "number") found.setSelectionRange(start, end);
  }

  // A button that was pressed is gone: what it made, or where that was, is next.
  function focusAfter(action, before) {
    const [verb, pointer = ""] = action.split(" ");
    const [, holder, number] = pointer.match(/^(.*)\/([^/]*)$/) || [];
    const made = [...form.querySelectorAll(".item > fieldset")].find((each) => !before.has(itemName(each)));
    const next = {
      up: `f${holder}/${Number(number) - 1}-item`,
      down: `f${holder}/${Number(number) + 1}-item`,
      drop: `f${holder}`,
      set: `f${pointer}`,
      add: made ? made.id : `f${pointer}`,
    }[verb];
    const found = next && document.getElementById(next);
    if (found) found.focus();
  }

  function itemName(item) {
    return `${item.id} ${item.querySelector("legend").textContent}`;
  }

  function keep() {
    try {
      if (text.value === opened) sessionStorage.removeItem(kept);
      else sessionStorage.setItem(kept, text.value);
    } catch {
      tell("This browser keeps no draft: the page must stay open.");
    }
  }

  function number() {
    const gutter = form.querySelector(".gutter");
    const lines = text.value.split("\n").length;
    while (gutter.children.length > lines) gutter.lastElementChild.remove();
    while (gutter.children.length < lines) {
      gutter.append(document.createElement("span"), "\n");
      gutter.lastElementChild.textContent = gutter.children.length;
    }
  }

  function roll() {
    form.querySelector(".gutter").scrollTop = text.scrollTop;
  }

  function showLine(line) {
    const lines = text.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
    text.focus();
    text.setSelectionRange(start, start + (lines[line - 1] || "").length);
    text.scrollTop = Math.max(0, (line - 4) * parseFloat(getComputedStyle(text).lineHeight));
  }

  function showField(id) {
    const found = document.getElementById(id) || document.getElementById(`${id}-kind`);
    if (!found) return;
    for (let each = found.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    found.focus();
    found.scrollIntoView({ block: "center" });
  }

  form.addEventListener("input", (event) => {
    if (event.target === text) number();
    edited(event.target === text ? 500 : 350);
  });
  form.addEventListener("click", (event) => {
    const pressed = event.target.closest("button, a");
    if (!pressed) return;
    if (pressed.dataset.line) showLine(Number(pressed.dataset.line));
    if (pressed.dataset.field) {
      event.preventDefault();
      showField(pressed.dataset.field);
    }
    if (pressed.getAttribute("formaction") === "/new/draft") {
      event.preventDefault();
      edited(0, pressed.value);
    }
  });
  form.addEventListener("submit", () => {
    leaving = true;
    sessionStorage.removeItem(kept);
  });
  text.addEventListener("scroll", roll);
  addEventListener("beforeunload", (event) => {
    if (!leaving && text.value !== opened) event.preventDefault();
  });
  addEventListener("pageshow", () => {
    leaving = false;
  });

  const before = sessionStorage.getItem(kept);
  const [arrival] = performance.getEntriesByType("navigation");
  if (before !== null && arrival && arrival.type !== "navigate" && form.dataset.refused === "no") {
    text.value = before;
    number();
    edited(0);
  }
})();
