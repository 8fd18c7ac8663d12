// Keys 1, 2 and t press the buttons; everything else works without this file.
"use strict";
const form = document.getElementById("vote");
const shown = performance.now();
const UNREAD = 300; // milliseconds: the second half of a double click is no vote on this pair

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = form.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (button && !button.disabled) form.requestSubmit(button);
});

form.addEventListener("submit", (event) => {
  if (performance.now() - shown < UNREAD) {
    event.preventDefault();
    return;
  }
  // After the form's data has been collected, or the choice would not be sent.
  setTimeout(() => form.querySelectorAll("button").forEach((b) => (b.disabled = true)));
});

// A page that the back button brings back from memory would keep its buttons disabled.
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
