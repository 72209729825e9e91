// Formulas: app.markup marks their TeX, KaTeX draws them. What KaTeX does not understand stays as it was written.

const MOST_FORMULAS = 1000;
const LONGEST = 5000;
const MOST_TIME = 1000; // ms for all of them: nobody waits for formulas that are meant to take long
const DEEPEST = 150; // elements within elements: to lay out a few hundred fractions in each other crashes the browser

function load(tag, attributes) {
  const element = Object.assign(document.createElement(tag), attributes);
  document.head.append(element);
  return new Promise((resolve, reject) => Object.assign(element, { onload: resolve, onerror: reject }));
}

await Promise.all([
  load("link", { rel: "stylesheet", href: new URL("../vendor/katex.min.css", import.meta.url) }),
  load("script", { src: new URL("../vendor/katex.min.js", import.meta.url) }),
]);

// KaTeX sets some styles as attributes, which the content security policy refuses; set as properties they hold.
function withStylesAsProperties(draw) {
  const { setAttribute } = Element.prototype;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
  try {
    draw();
  } finally {
    Element.prototype.setAttribute = setAttribute;
  }
}

function isTooDeep(element) {
  let level = [element];
  for (let depth = 0; level.length; depth++) {
    if (depth > DEEPEST) return true;
    level = level.flatMap((each) => [...each.children]);
  }
  return false;
}

function draw(place) {
  const tex = place.textContent;
  place.classList.add("drawn");
  if (tex.length > LONGEST) return;
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
    return; // it stays as it was written
  }
  if (!isTooDeep(drawn)) place.replaceChildren(...drawn.childNodes);
}

export function drawMath(root) {
  const places = [...root.querySelectorAll(".math:not(.drawn)")].slice(0, MOST_FORMULAS);
  const end = performance.now() + MOST_TIME;
  withStylesAsProperties(() => {
    for (const place of places) if (performance.now() < end) draw(place);
  });
}
