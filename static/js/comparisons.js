// The table of comparisons: one box selects the whole page, or none of it.

const all = document.querySelector("[data-all]");
const boxes = [...document.querySelectorAll('.comparisons [name="ids"]')];

function show() {
  const n = boxes.filter((box) => box.checked).length;
  all.checked = n === boxes.length;
  all.indeterminate = n > 0 && n < boxes.length;
}

if (all) {
  all.hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    show();
  });
  for (const box of boxes) box.addEventListener("change", show);
  show();
}
