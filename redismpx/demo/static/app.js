// The page: the numbers and the faults, chat clients, the feed, promises and counters. Data from the network is only ever shown as text, never as
// HTML. protocol.py describes the messages.

const MAX_LINES = 200;
const MAX_OUTCOMES = 5;
const MAX_CELLS = 60;
const MAX_DRAWN_CLIENTS = 5;
const LONG_TEXT = 140; // characters; a longer message is folded
const NARROW = "(max-width: 40rem)";
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
    this.path = path; // a function: the path may change from one WebSocket to the next
    this.onMessage = onMessage;
    this.onStateChange = onStateChange;
    this.delay = 500;
    this.open();
  }

  open() {
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${this.path()}`);
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

  // Return whether the request was sent: the demo's server may be unreachable.
  send(request) {
    const open = this.socket.readyState === WebSocket.OPEN;
    if (open) this.socket.send(JSON.stringify(request));
    return open;
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
    const line = document.createElement("p");
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
    let shown = element("span", "text", text);
    if (text.length > LONG_TEXT) {
      shown = element("details", "text", text);
      shown.prepend(element("summary", "", `${text.slice(0, LONG_TEXT)}…`));
    }
    this.add("message", element("span", "where", room), element("span", "who", from), shown);
  }

  event(kind, title, detail) {
    this.add(kind, element("span", "event", title), element("span", "detail", detail));
  }
}

function setBadge(badge, state, text) {
  badge.dataset.state = state;
  badge.textContent = text;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
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
    this.missed = 0;
    this.name = "";
    this.refusal = this.card.querySelector(".refusal");
    for (const label of this.card.querySelectorAll("label")) {
      label.htmlFor = label.nextElementSibling.id = `field-${++labels}`;
    }
    this.refusal.id = `refusal-${labels}`;
    const [join, say] = this.card.querySelectorAll("form");
    this.fields = { join: join.room, say: say.text };
    join.addEventListener("submit", (event) => {
      event.preventDefault();
      this.choice = join.room.value.trim();
      this.ask("join", { room: this.choice });
    });
    say.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask("say", { room: say.room.value, text: say.text.value });
    });
    this.card.querySelector(".remove").addEventListener("click", () => this.remove());
    byId("clients").append(this.card);
    this.connection = new Connection(() => `/chat?name=${encodeURIComponent(this.name)}`, (message) => this[`on_${message.type}`]?.(message), (open) => this.onStateChange(open));
  }

  onStateChange(open) {
    if (open) return;
    setBadge(this.badge, "lost", "WebSocket closed");
    for (const room of this.rooms.keys()) this.rooms.set(room, "waiting");
    this.draw();
  }

  // Send what a field has, and empty it; an error puts it back.
  ask(verb, request) {
    const field = this.fields[verb];
    if (!this.connection.send({ do: verb, ...request })) return this.refuse(verb, "not sent: the demo's server cannot be reached");
    this.asked = { ...this.asked, [verb]: field.value };
    this.accept(verb);
    field.value = "";
  }

  refuse(verb, text) {
    const field = this.fields[verb];
    field.value ||= this.asked?.[verb] ?? "";
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", this.refusal.id);
    this.explain(verb, text);
  }

  accept(verb) {
    this.fields[verb].removeAttribute("aria-invalid");
    this.fields[verb].removeAttribute("aria-describedby");
    this.explain(verb, "");
  }

  // Show for each field why its text was refused.
  explain(verb, text) {
    this.reasons = { ...this.reasons, [verb]: text };
    this.refusal.textContent = Object.values(this.reasons).filter(Boolean).join("; ");
  }

  on_welcome({ name }) {
    this.name = name;
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

  on_missed({ numbers }) {
    this.missed += numbers;
    this.card.querySelector(".missed strong").textContent = this.missed;
  }

  on_error({ text, do: verb }) {
    if (verb in this.fields) this.refuse(verb, text);
    else this.log.event("rejection", "Rejected", text);
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

// The numbers that one subscription has got: a cell for each, and for each that is missing. The topic has no cells.
class Strip {
  constructor(kind) {
    [this.cells, this.missedCount, this.lastNumber] = ["cells", "missed", "last"].map((part) => byId(`${part}-${kind}`));
    this.missed = 0;
    this.reset();
  }

  // The page had no connection to the demo: the numbers of that time are not missing.
  reset() {
    this.last = null;
    this.interrupted = false;
    this.cells?.replaceChildren();
  }

  number(number) {
    if (this.last !== null && number > this.last + 1) {
      this.missed += number - this.last - 1;
      const newest = this.cells?.lastElementChild;
      const before = newest?.className === "back" ? newest : null; // the missing numbers were published before it
      for (let lost = Math.max(this.last + 1, number - MAX_CELLS); lost < number; lost++) this.cell("missing", lost, before);
    }
    const now = performance.now();
    this.cell(now - this.arrived < 60 ? "late" : "", number);
    this.arrived = now;
    this.last = number;
    this.missedCount.textContent = this.missed;
    this.lastNumber.textContent = number;
  }

  cell(kind, text, before = null) {
    if (!this.cells) return;
    this.cells.insertBefore(element("li", kind, text), before);
    while (this.cells.childElementCount > MAX_CELLS) this.cells.firstElementChild.remove();
  }
}

class Watch {
  constructor() {
    this.feed = new Log(byId("feed"));
    this.strips = { channel: new Strip("channel"), topic: new Strip("topic"), stream: new Strip("stream") };
    this.outage = null; // { start, missed by kind } from the Disconnect until channel and stream have caught up
    this.isLost = false; // from the Disconnect to the Activation
    this.topic = { count: 0, offline: 0 }; // offline: how many came while the connection was lost, the last time
    this.requests = { count: 0, failed: 0, inRow: 0, isPending: false }; // isPending: none was answered since the last loss
    this.promises = new Map(); // from channel to { row, start, seconds }
    this.connection = new Connection(() => "/watch", (message) => this[`on_${message.type}`]?.(message), (open) => this.onStateChange(open));
    for (const button of document.querySelectorAll("[data-fault]")) {
      const { fault, seconds } = button.dataset;
      button.addEventListener("click", () => {
        byId("fault-error").textContent = "";
        this.connection.send({ do: "fault", fault, seconds: Number(seconds) });
      });
    }
    byId("copy").addEventListener("click", () => this.copy());
    byId("promise-form").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("watch-error").textContent = "";
      this.connection.send({ do: "promise", seconds: byId("promise-seconds").valueAsNumber });
    });
    setInterval(() => this.tick(), 100);
  }

  onStateChange(open) {
    this.wire(open ? "up" : "down", open ? "one connection" : "demo unreachable");
    if (!open) this.say("The demo's server cannot be reached. Reconnecting.");
    else if (this.wasLost) this.say("Connected to the demo.");
    this.wasLost = !open;
    for (const strip of Object.values(this.strips)) strip.reset();
    this.outage = this.counted = null;
    this.isLost = this.requests.isPending = false;
    if (open) return;
    setBadge(byId("feed-state"), "lost", "WebSocket closed");
    for (const channel of [...this.promises.keys()]) {
      this.on_promise({ promise: channel, state: "interrupted", detail: "the WebSocket closed" });
    }
  }

  say(text) {
    byId("connection-status").textContent = text;
  }

  wire(state, text) {
    byId("picture").dataset.wire = state;
    byId("picture-state").textContent = text;
  }

  async copy() {
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("copy").textContent = "Copied";
    setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
  }

  on_facts({ command, embedded, channel, stream }) {
    byId("command").textContent = command;
    byId("code-channel").textContent = channel;
    byId("code-stream").textContent = stream;
    for (const button of document.querySelectorAll(".embedded")) button.hidden = !embedded;
  }

  on_number({ of: kind, number }) {
    this.strips[kind].number(number);
    if (kind === "channel") byId("picture-number").textContent = number;
    if (kind === "topic") this.countTopic();
    const { channel, stream } = this.strips;
    if (!this.outage || channel.interrupted || stream.interrupted || stream.last < channel.last) return;
    if (this.outage.fresh && kind !== "channel") return; // the next number on the channel shows what it has missed
    this.outage.fresh = false;
    if (kind !== "stream") return;
    const [lost, local, kept] = ["channel", "topic", "stream"].map((each) => this.strips[each].missed - this.outage[each]);
    this.say(`Connected again after ${this.outage.took}. The channel subscription missed ${lost} numbers, the topic ${local}, the stream subscription ${kept}.`);
    this.outage = null;
  }

  countTopic() {
    byId("count-topic").textContent = ++this.topic.count;
    if (this.isLost) this.showOffline(this.topic.offline + 1);
  }

  showOffline(count) {
    this.topic.offline = count;
    byId("note-topic").textContent = `${count} came while the connection was lost.`;
  }

  on_reply({ number, reply }) {
    const { requests } = this;
    byId("count-requests").textContent = ++requests.count;
    if (reply === null) {
      byId("failed-requests").textContent = ++requests.failed;
      byId("note-requests").textContent = `${++requests.inRow} failed in a row.`;
      return;
    }
    byId("last-reply").textContent = `${number}² = ${reply}`;
    if (requests.inRow) byId("note-requests").textContent = `Answered again after ${requests.inRow} failed.`;
    else if (requests.isPending && !this.isLost) byId("note-requests").textContent = "None failed while the connection was lost.";
    else return;
    requests.inRow = 0;
    requests.isPending = false;
  }

  on_interrupted({ of: kind }) {
    const { channel, topic, stream } = this.strips;
    this.outage ??= { start: performance.now(), channel: channel.missed, topic: topic.missed, stream: stream.missed, fresh: true };
    if (!this.isLost) this.showOffline(0);
    this.isLost = this.requests.isPending = true;
    this.strips[kind].interrupted = true;
    this.strips[kind].cell("lost", "Disconnect");
    this.wire("down", "lost, reconnecting");
    this.say("The connection is lost. Each subscription gets a Disconnect.");
  }

  on_resumed({ of: kind }) {
    if (!this.strips[kind].interrupted) return; // the first activation
    this.strips[kind].interrupted = false;
    this.strips[kind].cell("back", "Activation");
    this.outage.took = elapsed(this.outage.start);
    this.isLost = false;
    this.wire("up", "one connection");
  }

  on_gap({ of: kind }) {
    this.strips[kind].cell("missing", "gap");
  }

  drawClients(count) {
    const group = byId("picture-clients");
    if (group.dataset.count === String(count)) return;
    group.dataset.count = count;
    group.replaceChildren();
    const drawn = Math.min(count, MAX_DRAWN_CLIENTS);
    for (let index = 0; index < drawn; index++) {
      const y = 66 + (index - (drawn - 1) / 2) * 20;
      group.append(svg("line", { class: "client-line", x1: 24, y1: y, x2: 76, y2: 66 }), svg("circle", { cx: 18, cy: y, r: 7 }));
    }
    if (count > drawn) {
      const more = svg("text", { class: "soft", x: 50, y: 128 });
      more.textContent = `and ${count - drawn} more`;
      group.append(more);
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

  on_counters(counters) {
    for (const name of ["clients", "rooms", "subscriptions", "connections", "reconnects"]) {
      byId(`count-${name}`).textContent = counters[name] ?? "?";
    }
    const now = performance.now();
    if (this.counted) {
      const rate = ((counters.messages - this.counted.messages) * 1000) / (now - this.counted.at);
      byId("count-rate").textContent = Math.round(rate);
    }
    this.counted = { messages: counters.messages, at: now };
    if (counters.published > (this.strips.channel.last ?? 0)) byId("picture-number").textContent = counters.published;
    this.drawClients(counters.clients);
    if (counters.fault === "freeze") this.wire("frozen", "frozen");
    else if (byId("picture").dataset.wire === "frozen") this.wire("up", "one connection");
  }

  on_error({ text, do: verb }) {
    byId(verb === "fault" ? "fault-error" : "watch-error").textContent = text;
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
for (let count = matchMedia(NARROW).matches ? 2 : 3; count > 0; count--) new Client();
byId("add-client").addEventListener("click", () => new Client());
