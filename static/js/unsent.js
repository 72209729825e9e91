// What was typed into an ordinary form that did not arrive, or was refused because its sender was signed out or had
// signed in anew: the page with it is gone. Kept in this tab, and put back when the form is on a page again.

const KEY = "prefloop.unsent";
const NOT_TYPED = ["hidden", "password", "file", "submit", "button", "reset", "fieldset", "output"];

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}

function keep(entry) {
  try {
    if (entry) sessionStorage.setItem(KEY, JSON.stringify(entry));
    else sessionStorage.removeItem(KEY);
  } catch {
    // Full or switched off.
  }
}

// Which form it is: by where it is sent, without the query, and by what it is about where that does not say.
const nameOf = (form) => `${(form.getAttribute("action") ?? "").split("?")[0]} ${form.dataset.about ?? ""}`;
const typed = (form) => [...form.elements].filter(({ name, type }) => name && !NOT_TYPED.includes(type));
const isTicked = ({ type }) => type === "radio" || type === "checkbox";

// Puts the fields back, those of one name in their order. Returns the texts that have no place any more.
function fill(form, fields) {
  const left = new Map();
  for (const [name, value] of fields) left.set(name, [...(left.get(name) ?? []), value]);
  for (const control of typed(form)) {
    const values = left.get(control.name) ?? [];
    if (isTicked(control)) control.checked = values.includes(control.value);
    else if (values.length) control.value = values.shift();
  }
  for (const control of typed(form)) if (isTicked(control)) left.delete(control.name);
  form.dispatchEvent(new Event("input", { bubbles: true }));
  return [...left.values()].flat().filter((text) => text.trim());
}

function tell(form, why, texts) {
  const box = document.createElement("div");
  box.className = "message message-warn";
  box.role = "status";
  box.append(`${why} What you typed is back in it: check it and send it again.`);
  for (const text of texts) {
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.dir = "auto";
    area.value = text;
    area.ariaLabel = "What you typed in a field that is not there any more";
    box.append(area);
  }
  form.before(box);
  box.scrollIntoView({ block: "center" });
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  const { user } = document.body.dataset;
  if (!user || event.defaultPrevented || form.method !== "post" || form.enctype === "multipart/form-data") return;
  const fields = typed(form)
    .filter((control) => !isTicked(control) || control.checked)
    .map(({ name, value }) => [name, value]);
  if (fields.length) keep({ user, form: nameOf(form), fields, refused: false });
  // What a script sends, it also keeps.
  setTimeout(() => event.defaultPrevented && keep(null));
});

// To be called once a page is there.
export function putBack() {
  const entry = kept();
  if (!entry) return;
  const isRefused = document.querySelector("[data-kept]");
  if (isRefused) {
    isRefused.hidden = false;
    return keep({ ...entry, refused: true });
  }
  const { user } = document.body.dataset;
  if (!user && entry.refused) return; // the page where one signs in
  // Any page of ours that came after the form has dropped it. So whoever comes back to it has seen none.
  const isBack = performance.getEntriesByType("navigation")[0]?.type === "back_forward";
  if ((!entry.refused && !isBack) || user !== entry.user) return keep(null);
  const form = [...document.forms].find((each) => each.method === "post" && nameOf(each) === entry.form);
  if (!form) return;
  keep(null);
  const why = entry.refused ? "This form was not sent, since you were signed out." : "This form did not arrive.";
  tell(form, why, fill(form, entry.fields));
}
