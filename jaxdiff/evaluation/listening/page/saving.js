// How the page talks to the server: what must arrive is sent again until it does, and only the latest rating is sent.

const token = new URLSearchParams(location.hash.slice(1)).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const LONGEST_WAIT = 8000; // milliseconds
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The response to a request. A network that fails, a busy server and a limit are waited out.
async function ask(method, path, body, onWait) {
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    let response = null;
    try {
      response = await fetch(path, {
        method,
        headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
        keepalive: body !== undefined,
      });
    } catch {
      // no network: wait
    }
    if (response?.ok) return response;
    const waiting = response === null || response.status === 429 || response.status === 408 || response.status >= 500;
    if (!waiting) {
      const said = await response.json().catch(() => ({}));
      throw new Refused(response.status, said.error ?? `the server answered ${response.status}`);
    }
    onWait?.();
    await pause(wait);
  }
}

// The title of the test and its number of screens.
export async function about() {
  return (await ask("GET", "/test")).json();
}

export async function sound(name, onWait) {
  return (await ask("GET", `/sounds/${name}.wav`, undefined, onWait)).arrayBuffer();
}

export class Session {
  // `onState` is called with "idle", "saving", "waiting" or "saved".
  constructor(name, onState) {
    this.path = `/sessions/${name}`;
    this.onState = onState;
    this.waiting = new Map(); // ratings that are not saved yet, by page and sound
    this.sending = null;
    this.change = 0;
  }

  begin(listener) {
    return this.#ask("PUT", "", { listener });
  }

  tell() {
    return this.#ask("GET", "");
  }

  // A rating with the number of its change, larger than those of all changes before it.
  numbered(value, seconds) {
    this.change = Math.max(this.change + 1, Date.now());
    return { value, seconds, change: this.change };
  }

  // Keep a rating; a promise of the moment when all that wait are saved.
  save(page, sound, answer) {
    this.waiting.set(`${page} ${sound}`, { page, sound, answer });
    this.sending ??= this.#send().finally(() => (this.sending = null));
    return this.sending;
  }

  get unsaved() {
    return this.waiting.size > 0;
  }

  async leave(page, answers, seconds, heard) {
    await this.sending;
    return this.#ask("POST", "/pages", { page, answers, seconds, heard });
  }

  finish(choices) {
    return this.#ask("POST", "/finish", { choices });
  }

  async #send() {
    while (this.waiting.size) {
      const [{ page }] = this.waiting.values();
      const sent = [...this.waiting].filter(([, one]) => one.page === page);
      const answers = Object.fromEntries(sent.map(([, one]) => [one.sound, one.answer]));
      try {
        await this.#ask("POST", "/answers", { page, answers });
      } catch (error) {
        if (error.status !== 409) throw error; // 409: the page was left with its ratings
      } finally {
        for (const [key, one] of sent) if (this.waiting.get(key) === one) this.waiting.delete(key);
      }
    }
    this.onState("saved");
  }

  async #ask(method, path, body) {
    const saves = method !== "GET";
    this.onState(saves ? "saving" : "idle");
    const response = await ask(method, this.path + path, body, () => this.onState("waiting"));
    this.onState(this.unsaved ? "saving" : saves ? "saved" : "idle");
    return response.json();
  }
}
