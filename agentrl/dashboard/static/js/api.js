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
  if (!response.ok) throw Object.assign(new Error(body?.error ?? `the server answered ${response.status}`), { status: response.status });
  return body;
}

const STREAMS = 3;  // of all windows together: browsers open six connections to one host, and pages need some
const POLL_MS = 2000, QUIET_MS = 4000;  // between looks at a run without a stream: while it runs, and after it

// Follows a run from `cursor` on. A running run has a stream, as long as fewer than `STREAMS` windows have one; the others,
// and runs that have ended, are asked for now and then. While the tab is hidden nothing is open.
export class Stream {
  constructor(run, cursor, handlers, running) {
    Object.assign(this, { run, cursor, handlers, running, active: null, closed: false, told: {} });
    this.onvisible = () => (document.hidden ? this.stop() : this.start());
    document.addEventListener("visibilitychange", this.onvisible);
    if (!document.hidden) this.start();
  }

  async start() {
    if (this.active || this.closed) return;
    const turn = (this.active = {});
    const placed = this.running && (await place(turn));
    if (this.active !== turn) turn.release?.();  // stopped meanwhile
    else if (placed) this.open(turn);
    else this.poll(turn);
  }

  open(turn) {
    const source = (turn.source = new EventSource(`api/events?${new URLSearchParams({ run: this.run, after: this.cursor })}`));
    source.onopen = () => this.handlers.state?.("live");
    source.onerror = () => {
      this.handlers.state?.("lost");
      if (source.readyState === EventSource.CLOSED && this.active === turn) this.again(2000);
    };
    for (const name of ["rows", "alarms", "status", "reset", "gone"]) {
      source.addEventListener(name, (event) => {
        if (this.active !== turn) return;
        if (event.lastEventId) this.cursor = event.lastEventId;
        const data = JSON.parse(event.data);
        this.handlers[name]?.(data);
        if (name === "status") this.nowRunning(data.status === "running");
      });
    }
  }

  async poll(turn) {
    try {
      const answer = await get("poll", { run: this.run, after: this.cursor });
      if (this.active !== turn) return;
      this.handlers.state?.("live");
      if (answer.reset || this.told.gone) {
        this.told = {};
        this.handlers.reset?.();
        return;  // whoever hears that follows from a new cursor
      }
      const moved = answer.cursor !== this.cursor;
      this.cursor = answer.cursor;
      const bands = { bands: answer.bands, phase: answer.phase };
      if (this.news("bands", bands) || moved) this.handlers.rows?.({ rows: answer.rows, ...bands });
      if (this.news("marks", answer.marks)) this.handlers.alarms?.(answer.marks);
      if (this.news("state", answer.state)) this.handlers.status?.(answer.state);
      this.nowRunning(answer.state.status === "running");
    } catch (error) {
      if (this.active !== turn) return;
      if (error.status === 404 && !this.told.gone) {
        this.told.gone = true;
        this.handlers.gone?.({ id: this.run });
      } else if (error.status === undefined) this.handlers.state?.("lost");
    }
    if (this.active === turn) turn.timer = setTimeout(() => this.poll(turn), this.running ? POLL_MS : QUIET_MS);
  }

  // Whether a part of the answer is another one than before.
  news(name, value) {
    const text = JSON.stringify(value), before = this.told[name];
    this.told[name] = text;
    return text !== before;
  }

  // A run that ended gives its stream back; one that was resumed may have one again.
  nowRunning(running) {
    if (running === this.running) return;
    this.running = running;
    this.again(0);
  }

  again(ms) {
    this.stop();
    setTimeout(() => { if (!document.hidden) this.start(); }, ms);
  }

  stop() {
    this.active?.source?.close();
    clearTimeout(this.active?.timer);
    this.active?.release?.();
    this.active = null;
  }

  close() {
    this.closed = true;
    this.stop();
    document.removeEventListener("visibilitychange", this.onvisible);
  }
}

// One of the places for streams that all windows of this browser share, until `turn.release()`; false where none is free,
// or the browser has no locks (addresses that are neither this machine's nor https).
async function place(turn) {
  if (!navigator.locks) return false;
  for (let i = 0; i < STREAMS; i++) {
    const got = await new Promise((resolve) => {
      navigator.locks.request(`agentrl-stream-${i}`, { ifAvailable: true }, (lock) => {
        resolve(Boolean(lock));
        return lock ? new Promise((release) => { turn.release = release; }) : undefined;
      }).catch(() => resolve(false));
    });
    if (got) return true;
  }
  return false;
}
