// The page: chat clients, the feed, promises and counters. Data from the network is only ever shown as text, never as
// HTML. protocol.py describes the messages.

const MAX_LINES = 200;
const MAX_OUTCOMES = 5;
const FIRST_ROOM = "lobby";

const byId = (id) => document.getElementById(id);
const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);
let labels = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// A WebSocket that reconnects. `onMessage` gets each message; `onStateChange` gets true when it opens, false when it closes.
class Connection {
  constructor(path, onMessage, onStateChange) {
    this.url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;
    this.onMessage = onMessage;
    this.onStateChange = onStateChange;
    this.delay = 500;
    this.open();
  }

  open() {
    this.socket = new WebSocket(this.url);
    this.socket.onopen = () => {
      this.delay = 500;
      this.onStateChange(true);
    };
    this.socket.onmessage = (event) => this.onMessage(JSON.parse(event.data));
    this.socket.onclose = () => {
      if (this.closed) return;
      this.onStateChange(false);
      this.timer = setTimeout(() => this.open(), this.delay);
      this.delay = Math.min(this.delay * 2, 8000);
    };
  }

  send(request) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(request));
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}

// A list of lines, the newest last. It scrolls to a new line, unless the user has scrolled up.
class Log {
  constructor(list) {
    this.list = list;
  }

  add(kind, ...parts) {
    const list = this.list;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
    const line = document.createElement("li");
    line.className = kind;
    const now = new Date();
    const time = element("time", "", now.toLocaleTimeString([], { hourCycle: "h23" }));
    time.dateTime = now.toISOString();
    line.append(time, ...parts);
    list.append(line);
    while (list.childElementCount > MAX_LINES) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  message({ room, from, text }) {
    this.add("message", element("span", "where", room), element("span", "who", from), element("span", "text", text));
  }

  event(kind, title, detail) {
    this.add(kind, element("span", "event", title), element("span", "detail", detail));
  }
}

function setBadge(badge, state, text) {
  badge.dataset.state = state;
  badge.textContent = text;
}

function elapsed(start) {
  const milliseconds = performance.now() - start;
  return milliseconds < 1000 ? `${Math.max(1, Math.round(milliseconds))}\u00a0ms` : `${(milliseconds / 1000).toFixed(1)}\u00a0s`;
}

class Client {
  constructor() {
    this.card = fromTemplate("client-template");
    this.badge = this.card.querySelector(".state");
    this.log = new Log(this.card.querySelector(".log"));
    this.rooms = new Map([[FIRST_ROOM, "waiting"]]); // from room to "waiting" or "active"
    this.lostAt = null;
    for (const label of this.card.querySelectorAll("label")) {
      label.htmlFor = label.nextElementSibling.id = `field-${++labels}`;
    }
    const [join, say] = this.card.querySelectorAll("form");
    join.addEventListener("submit", (event) => {
      event.preventDefault();
      this.connection.send({ do: "join", room: join.room.value.trim() });
      this.choice = join.room.value.trim();
      join.reset();
    });
    say.addEventListener("submit", (event) => {
      event.preventDefault();
      this.connection.send({ do: "say", room: say.room.value, text: say.text.value });
      say.text.value = "";
    });
    this.card.querySelector(".remove").addEventListener("click", () => this.remove());
    byId("clients").append(this.card);
    this.connection = new Connection("/chat", (message) => this[`on_${message.type}`]?.(message), (open) => this.onStateChange(open));
  }

  onStateChange(open) {
    if (open) return;
    setBadge(this.badge, "lost", "WebSocket closed");
    for (const room of this.rooms.keys()) this.rooms.set(room, "waiting");
    this.draw();
  }

  on_welcome({ name }) {
    this.card.querySelector("h3").textContent = name;
    this.card.setAttribute("aria-label", name);
    this.card.querySelector(".remove").setAttribute("aria-label", `Remove ${name}`);
    this.log.list.setAttribute("aria-label", `Log of ${name}`);
    const rooms = [...this.rooms.keys()];
    this.rooms.clear();
    for (const room of rooms) this.connection.send({ do: "join", room });
    this.draw();
  }

  on_rooms({ rooms }) {
    this.rooms = new Map(rooms.map((room) => [room, this.rooms.get(room) ?? "waiting"]));
    this.draw();
  }

  on_activation({ room }) {
    const gap = this.lostAt === null ? "" : `, reconnected after ${elapsed(this.lostAt)}`;
    this.log.event("activation", "Activation", room + gap);
    if (this.rooms.has(room)) this.rooms.set(room, "active");
    if (![...this.rooms.values()].includes("waiting")) this.lostAt = null;
    this.draw();
  }

  on_disconnect({ reason }) {
    this.lostAt = performance.now();
    for (const room of this.rooms.keys()) this.rooms.set(room, "waiting");
    this.log.event("disconnect", "Disconnect", reason);
    this.draw();
  }

  on_message(message) {
    this.log.message(message);
  }

  on_error({ text }) {
    this.log.event("rejection", "Rejected", text);
  }

  draw() {
    const states = [...this.rooms.values()];
    if (this.connection?.socket.readyState === WebSocket.OPEN) {
      if (this.lostAt !== null && states.includes("waiting")) setBadge(this.badge, "lost", "reconnecting");
      else if (states.includes("waiting")) setBadge(this.badge, "waiting", "joining");
      else setBadge(this.badge, "active", "connected");
    }
    const list = this.card.querySelector(".rooms");
    const hadFocus = list.contains(document.activeElement);
    list.replaceChildren();
    for (const [room, state] of this.rooms) {
      const chip = document.createElement("li");
      chip.dataset.state = state;
      const leave = element("button", "", "×");
      leave.type = "button";
      leave.setAttribute("aria-label", `Leave ${room}`);
      leave.addEventListener("click", () => this.connection.send({ do: "leave", room }));
      chip.append(element("span", "", room), leave);
      list.append(chip);
    }
    if (!this.rooms.size) list.append(element("li", "none", "In no room yet"));
    if (hadFocus) (list.querySelector("button") ?? this.card.querySelector(".join input")).focus();

    const say = this.card.querySelector(".say");
    const chosen = this.rooms.has(this.choice) ? this.choice : say.room.value;
    this.choice = null;
    say.room.replaceChildren(...[...this.rooms.keys()].map((room) => new Option(room, room)));
    if (this.rooms.has(chosen)) say.room.value = chosen;
    for (const field of say.elements) field.disabled = !this.rooms.size;
  }

  remove() {
    this.connection.close();
    this.card.remove();
    byId("add-client").focus();
  }
}

class Watch {
  constructor() {
    this.feed = new Log(byId("feed"));
    this.promises = new Map(); // from channel to { row, start, seconds }
    this.connection = new Connection("/watch", (message) => this[`on_${message.type}`]?.(message), (open) => this.onStateChange(open));
    byId("cut").addEventListener("click", () => this.connection.send({ do: "cut" }));
    byId("promise-form").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("watch-error").textContent = "";
      this.connection.send({ do: "promise", seconds: byId("promise-seconds").valueAsNumber });
    });
    setInterval(() => this.tick(), 100);
  }

  onStateChange(open) {
    if (open) return;
    setBadge(byId("feed-state"), "lost", "WebSocket closed");
    byId("connection-status").textContent = "The demo's server cannot be reached. Reconnecting.";
    for (const channel of [...this.promises.keys()]) {
      this.on_promise({ promise: channel, state: "interrupted", detail: "the WebSocket closed" });
    }
  }

  on_activation({ pattern }) {
    setBadge(byId("feed-state"), "active", "connected");
    this.feed.event("activation", "Activation", pattern);
  }

  on_disconnect({ reason }) {
    setBadge(byId("feed-state"), "lost", "reconnecting");
    this.feed.event("disconnect", "Disconnect", reason);
  }

  on_message(message) {
    this.feed.message(message);
  }

  on_cut({ connections }) {
    byId("connection-status").textContent =
      connections === 1 ? "Redis has killed 1 connection." : `Redis has killed ${connections} connections.`;
  }

  on_counters(counters) {
    for (const name of ["clients", "rooms", "subscriptions", "connections", "reconnects"]) {
      byId(`count-${name}`).textContent = counters[name] ?? "?";
    }
  }

  on_error({ text }) {
    byId("watch-error").textContent = text;
  }

  on_promise({ promise, state, seconds, detail }) {
    if (state === "waiting") {
      const row = fromTemplate("promise-template");
      row.querySelector("code").textContent = promise;
      row.querySelector(".keep").addEventListener("click", () => this.connection.send({ do: "keep", promise }));
      byId("promises").prepend(row);
      const start = performance.now();
      this.promises.set(promise, { row, start, seconds });
      this.tick();
      return;
    }
    const { row, start } = this.promises.get(promise);
    this.promises.delete(promise);
    const keep = row.querySelector(".keep");
    const hadFocus = keep === document.activeElement;
    keep.remove();
    row.querySelector("progress").remove();
    row.dataset.state = state;
    row.querySelector(".outcome").textContent = state;
    const time = row.querySelector(".time");
    time.removeAttribute("role");
    time.textContent = `after ${elapsed(start)}${detail && `: ${detail}`}`;
    if (hadFocus) byId("promise-form").querySelector("button").focus();
    const done = byId("promises").querySelectorAll('.promise:not([data-state="waiting"])');
    for (const old of [...done].slice(MAX_OUTCOMES)) old.remove();
  }

  tick() {
    for (const { row, start, seconds } of this.promises.values()) {
      const left = Math.max(0, seconds - (performance.now() - start) / 1000);
      row.querySelector(".time").textContent = `${left.toFixed(1)} s left`;
      row.querySelector("progress").value = left / seconds;
    }
  }
}

new Watch();
for (let count = 0; count < 3; count++) new Client();
byId("add-client").addEventListener("click", () => new Client());
