// What somebody is typing, kept in this browser until it has been sent: a reload, a closed tab or a lost connection
// costs nothing. A draft is named by what it answers; see data-draft and data-sent in the templates.

const PREFIX = "prefloop.draft.";
const KEPT_DAYS = 30;

function storage() {
  try {
    return window.localStorage;
  } catch {
    return null; // switched off by the person: then there are no drafts
  }
}

export function forget(name) {
  storage()?.removeItem(PREFIX + name);
}

// Keeps what is typed into a text area under its data-draft name; puts back what was left there.
// Returns whether something was put back.
export function keep(area) {
  const name = PREFIX + area.dataset.draft;
  area.addEventListener("input", () => {
    try {
      if (area.value === area.defaultValue) storage()?.removeItem(name);
      else storage()?.setItem(name, JSON.stringify({ text: area.value, at: Date.now() }));
    } catch {
      // No room left: the text is still on the page.
    }
  });
  const left = read(name);
  if (left === null || left.text === area.value) return false;
  area.value = left.text;
  return true;
}

function read(name) {
  try {
    return JSON.parse(storage()?.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

// Drops what has been sent, and what nobody came back for.
export function tidy(root) {
  for (const { dataset } of root.querySelectorAll("[data-sent]")) {
    // Where the same name is used again and again, only what was sent is dropped, not what was begun since.
    if (dataset.sentText === undefined || read(PREFIX + dataset.sent)?.text.trim() === dataset.sentText) forget(dataset.sent);
  }
  const store = storage();
  if (!store) return;
  const oldest = Date.now() - KEPT_DAYS * 86_400_000;
  for (const name of Object.keys(store)) {
    if (name.startsWith(PREFIX) && (read(name)?.at ?? 0) < oldest) store.removeItem(name);
  }
}
