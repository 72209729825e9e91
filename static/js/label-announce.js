// Says something to whoever cannot see the page.
export function announce(text) {
  document.getElementById("announce").textContent = text;
}
