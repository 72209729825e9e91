// The switch between texts as Markdown and as they were written, on pages that show both.

document.querySelector("[data-written]")?.addEventListener("click", (event) => {
  const on = event.currentTarget.closest("article").classList.toggle("as-written");
  event.currentTarget.setAttribute("aria-pressed", String(on));
});
