// An answer that is not sent yet outlives a reload, a lost connection and another card coming first. Kept by lease.

import { forgetOld, read, write } from "./label-store.js";

const OF_THE_CARD = new Set(["csrf_token", "idempotency_key", "rubric_id", "duration_ms", "desk", "reason", "other"]);
const key = (lease) => `draft.${lease}`;

export function keepDraft(lease, form) {
  write(key(lease), [...new FormData(form)].filter(([name]) => !OF_THE_CARD.has(name)));
}

export function forgetDraft(lease) {
  write(key(lease), null);
}

// Puts a kept draft into the form; tells whether there was one.
export function restoreDraft(lease, form) {
  const kept = read(key(lease));
  if (!kept) return false;
  const left = new Map();
  for (const [name, value] of kept) left.set(name, [...(left.get(name) ?? []), value]);
  for (const control of form.elements) {
    if (!control.name || OF_THE_CARD.has(control.name)) continue;
    const values = left.get(control.name) ?? [];
    if (control.type === "radio" || control.type === "checkbox") control.checked = values.includes(control.value);
    else if (values.length) control.value = values.shift();
  }
  return true;
}

forgetOld("draft.");
