// The quiz by keyboard. Everything here is convenience: the forms work without it.

import { close, isNotForUs, showKeys } from "./keys.js";

const radios = [...document.querySelectorAll("input[name=answer]")];

function choose(radio) {
  radio.checked = true;
  radio.focus({ preventScroll: true });
}

function step(by) {
  const at = radios.findIndex((radio) => radio.checked);
  const to = at >= 0 ? at + by : by < 0 ? 0 : radios.length - 1;
  choose(radios[Math.max(0, Math.min(radios.length - 1, to))]);
}

function goOn() {
  const next = document.querySelector("[data-next]");
  if (next) next.click();
  else radios[0]?.form.requestSubmit();
}

document.addEventListener("keydown", (event) => {
  if (isNotForUs(event) || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("textarea, select")) return;
  // Enter on a link, button or summary means that one.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const radio = radios.find((each) => each.dataset.key === event.key);
  const rubric = document.getElementById("rubric");
  if (radio) choose(radio);
  else if (event.key === "ArrowLeft" && radios.length) step(-1);
  else if (event.key === "ArrowRight" && radios.length) step(1);
  else if (event.key === "Enter") goOn();
  else if (event.key === "r" && rubric?.open) close(rubric);
  else if (event.key === "r" && rubric) rubric.open = true;
  else if (event.key === "?") showKeys();
  else return;
  event.preventDefault();
});

document.documentElement.classList.add("js");
