// Answers on their way to the service. They are sent one after the other, in the order given; while the service does
// not answer they wait in localStorage, through reloads too, and are tried again with the same idempotency key, so that
// none is lost and none is counted twice. Tabs share the storage; each sends what it was given, and what it found there
// when it was opened.

import { read, write } from "./label-store.js";

const LONGEST_WAIT_MS = 15_000;
const SLOW_MS = 1_500;

export class Outbox {
  // key: of the labeler's own outbox in this project. post(entry) -> Promise<Response>. taken(entry, response, body) is
  // called for every answer of the service that is not "try again". changed(unsent, problem) when the number of entries
  // that wait visibly changes; problem is what the service said where trying again will not help.
  constructor(key, { post, taken, changed }) {
    Object.assign(this, { key, post, taken, changed });
    this.mine = new Set(this.all.map((entry) => entry.id));
    this.sending = null;
    this.wait = 500;
    addEventListener("online", () => this.retryNow());
  }

  get all() {
    return read(this.key) ?? [];
  }

  get entries() {
    return this.all.filter((entry) => this.mine.has(entry.id));
  }

  add(entry) {
    this.mine.add(entry.id);
    write(this.key, [...this.all, entry]);
    return this.send();
  }

  has(lease) {
    return this.entries.some((entry) => entry.lease === lease);
  }

  remove(entry) {
    const left = this.all.filter((other) => other.id !== entry.id);
    write(this.key, left.length ? left : null);
  }

  // Resolves when nothing is left, or nothing more can be sent now.
  send() {
    this.sending ??= this.sendAll().finally(() => (this.sending = null));
    return this.sending;
  }

  retryNow() {
    clearTimeout(this.timer);
    this.wait = 500;
    if (this.entries.length) this.send();
  }

  async sendAll() {
    await null; // whoever added an entry shows the next card first, and then says which one
    for (let entry = this.entries[0]; entry; entry = this.entries[0]) {
      const slow = setTimeout(() => this.changed(this.entries.length, ""), SLOW_MS);
      let response = null;
      let body = null;
      try {
        response = await this.post(entry);
        body = await response.json();
      } catch {
        // No connection, or it broke off: `response` may be there all the same.
      }
      clearTimeout(slow);
      if (!response || response.status >= 500 || response.status === 429 || (response.ok && !body)) {
        this.changed(this.entries.length, "");
        this.timer = setTimeout(() => this.send(), this.wait);
        this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
        return;
      }
      this.wait = 500;
      if ([401, 403].includes(response.status) && !body?.desk) {
        // Signed out, or signed in anew in another tab: nothing is wrong with the answer, so it is kept for the next page.
        this.changed(this.entries.length, body?.error ?? "You are signed out.");
        return;
      }
      this.remove(entry);
      this.changed(0, "");
      await this.taken(entry, response, body ?? {});
    }
  }
}
