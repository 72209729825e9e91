// What must outlive the page: values in localStorage. Where that is full or switched off they live as long as the page:
// it then forgets when it is closed, but loses nothing before.

const PREFIX = "prefloop.label.";
const OLDEST_MS = 7 * 24 * 3600 * 1000;
const unkept = new Map();

export function read(key) {
  if (unkept.has(key)) return unkept.get(key);
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
    unkept.delete(key);
  } catch {
    unkept.set(key, value);
  }
}

// Drafts of what never came back.
export function forgetOld(kind) {
  try {
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(PREFIX + kind)) continue;
      const at = JSON.parse(localStorage.getItem(key))?.at ?? 0;
      if (Date.now() - at > OLDEST_MS) localStorage.removeItem(key);
    }
  } catch {
    // Switched off: nothing is there.
  }
}
