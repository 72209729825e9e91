// What a browser gives and Node does not: as much of it as a test needs. Import it before the script under test.

class FakeStorage {
  #limit;

  constructor(limit) {
    this.#limit = limit;
  }

  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null;
  }

  setItem(key, value) {
    const others = Object.keys(this).filter((name) => name !== key);
    const size = others.reduce((sum, name) => sum + this[name].length, value.length);
    if (size > this.#limit) throw new Error("QuotaExceededError");
    this[key] = value;
  }

  removeItem(key) {
    delete this[key];
  }
}

// limit: the most characters that all values may have together. A write beyond it throws, as in a browser.
export function freshStorage(limit = Infinity) {
  globalThis.localStorage = new FakeStorage(limit);
  return globalThis.localStorage;
}

// A text area as `keep` sees it. type(text) is what a person does.
export class FakeArea extends EventTarget {
  constructor(draft, value = "") {
    super();
    this.dataset = { draft };
    this.defaultValue = this.value = value;
  }

  type(text) {
    this.value = text;
    this.dispatchEvent(new Event("input"));
  }
}

// A page's root that finds the elements given, whatever is asked for.
export const rootOf = (...datasets) => ({ querySelectorAll: () => datasets.map((dataset) => ({ dataset })) });

freshStorage();
globalThis.addEventListener ??= () => {};
