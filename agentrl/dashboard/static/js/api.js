// Requests to the server, and the stream of one run's events.

export async function get(path, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, v]) => v !== null && v !== undefined));
  const response = await fetch(`api/${path}?${query}`, { headers: { Accept: "application/json" } });
  return answer(response);
}

export async function post(path, body) {
  return answer(await fetch(`api/${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

async function answer(response) {
  let body = null;
  try { body = await response.json(); } catch { /* no JSON: the status says enough */ }
  if (!response.ok) throw new Error(body?.error ?? `the server answered ${response.status}`);
  return body;
}

// Follows a run from `cursor` on. While the tab is hidden nothing is open: browsers allow few connections per host.
export class Stream {
  constructor(run, cursor, handlers) {
    Object.assign(this, { run, cursor, handlers, source: null, closed: false });
    this.onvisible = () => (document.hidden ? this.stop() : this.start());
    document.addEventListener("visibilitychange", this.onvisible);
    if (!document.hidden) this.start();
  }

  start() {
    if (this.source || this.closed) return;
    const source = new EventSource(`api/events?${new URLSearchParams({ run: this.run, after: this.cursor })}`);
    this.source = source;
    source.onopen = () => this.handlers.state?.("live");
    source.onerror = () => {
      this.handlers.state?.("lost");
      if (source.readyState === EventSource.CLOSED && this.source === source) {
        this.stop();
        setTimeout(() => this.start(), 2000);
      }
    };
    for (const name of ["rows", "alarms", "status", "reset", "gone"]) {
      source.addEventListener(name, (event) => {
        if (this.source !== source) return;
        if (event.lastEventId) this.cursor = event.lastEventId;
        this.handlers[name]?.(JSON.parse(event.data));
      });
    }
  }

  stop() {
    this.source?.close();
    this.source = null;
  }

  close() {
    this.closed = true;
    this.stop();
    document.removeEventListener("visibilitychange", this.onvisible);
  }
}
