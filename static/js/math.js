// Formulas: app.markup marks their TeX, KaTeX draws them. What KaTeX does not understand stays as it was written.

const MOST_FORMULAS = 1000;
const LONGEST = 5000;

function load(tag, attributes) {
  const element = Object.assign(document.createElement(tag), attributes);
  document.head.append(element);
  return new Promise((resolve, reject) => Object.assign(element, { onload: resolve, onerror: reject }));
}

await Promise.all([
  load("link", { rel: "stylesheet", href: new URL("../vendor/katex.min.css", import.meta.url) }),
  load("script", { src: new URL("../vendor/katex.min.js", import.meta.url) }),
]);

export function drawMath(root) {
  for (const place of [...root.querySelectorAll(".math:not(.drawn)")].slice(0, MOST_FORMULAS)) {
    const tex = place.textContent;
    place.classList.add("drawn");
    if (tex.length > LONGEST) continue;
    const drawn = document.createElement("span");
    try {
      window.katex.render(tex, drawn, {
        displayMode: place.classList.contains("math-display"),
        throwOnError: true,
        trust: false,
        strict: "ignore",
        maxSize: 20,
        maxExpand: 100,
      });
    } catch {
      continue;
    }
    // The content security policy ignores style attributes; set from here they hold.
    for (const svg of drawn.querySelectorAll("svg[style]")) svg.style.cssText = svg.getAttribute("style");
    place.replaceChildren(...drawn.childNodes);
  }
}
