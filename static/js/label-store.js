// What must outlive the page: values in localStorage, which may be full or switched off.

const PREFIX = "prefloop.label.";
const OLDEST_MS = 7 * 24 * 3600 * 1000;

export function read(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key))?.value ?? null;
  } catch {
    return null;
  }
}

export function write(key, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, JSON.stringify({ value, at: Date.now() }));
  } catch {
    // Full or switched off: the page still works, it only forgets.
  }
}

// Drafts of cards that never came back.
export function forgetOld(kind) {
  try {
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(PREFIX + kind)) continue;
      const at = JSON.parse(localStorage.getItem(key))?.at ?? 0;
      if (Date.now() - at > OLDEST_MS) localStorage.removeItem(key);
    }
  } catch {
    // As above.
  }
}
