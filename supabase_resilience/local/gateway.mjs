// The process that owns the stack's URL: it passes every call on to REST or to Realtime, and
// misbehaves when told to.
//
// It is apart from the servers behind it so that each of them can be killed without taking the URL
// along. A call is sent on at most once: when the server behind breaks off, nobody here knows
// whether it did the work, so the caller is told (502) and may decide. Connections to the servers
// are kept, but closed well before the servers would, so that none breaks by being old.

import http from "node:http";
import net from "node:net";
import { createInterface } from "node:readline";

const UNREACHABLE = JSON.stringify({
  message: "An invalid response was received from the upstream server",
});
const JSON_TYPE = { "Content-Type": "application/json; charset=utf-8" };
const LONGEST_HEADERS = 1024 * 1024; // how long a URL may be is for REST to say
const IDLE_TO_CLIENTS = 75_000; // ms; longer than clients keep one: none is closed under a request
const IDLE_TO_SERVERS = 2_000; // ms; shorter than any server keeps one
const REMEMBERED_REQUESTS = 100_000;

// --- Where calls go ------------------------------------------------------------------------------

class Upstream {
  #agent;
  port = null;

  route(port) {
    this.#agent?.destroy();
    const keeping = { keepAlive: true, maxFreeSockets: 1024, timeout: IDLE_TO_SERVERS };
    this.#agent = new http.Agent(keeping);
    this.port = port;
  }

  /** Send a request on; `answer` gets the response, `fail` is called when there is none. */
  send(request, body, answer, fail) {
    if (this.port === null) return fail();
    const onward = http.request({
      host: "127.0.0.1",
      port: this.port,
      agent: this.#agent,
      method: request.method,
      path: request.url,
      headers: forHop(request.rawHeaders),
      maxHeaderSize: LONGEST_HEADERS,
    });
    onward.on("response", answer);
    onward.on("error", fail);
    if (body) onward.end(body);
    else request.pipe(onward);
    return onward;
  }

  connect() {
    return net.connect({ host: "127.0.0.1", port: this.port ?? 0 });
  }
}

const upstreams = { rest: new Upstream(), realtime: new Upstream() };

function upstreamOf(request) {
  return request.url.startsWith("/realtime/") ? upstreams.realtime : upstreams.rest;
}

const OF_ONE_CONNECTION = new Set(["connection", "keep-alive", "expect"]);

function forHop(rawHeaders) {
  const kept = [];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (OF_ONE_CONNECTION.has(rawHeaders[i].toLowerCase())) continue;
    kept.push(rawHeaders[i], rawHeaders[i + 1]);
  }
  return kept;
}

// --- Faults --------------------------------------------------------------------------------------

class Faults {
  #active = new Map();
  #counts = new Map();
  #lastId = 0;

  add(description) {
    const id = ++this.#lastId;
    const { times, match, seed, ...fault } = description;
    const ready = { left: times ?? Infinity, pattern: new RegExp(match), draw: randomFrom(seed) };
    this.#active.set(id, { ...fault, id, ...ready });
    this.#counts.set(id, 0);
    return id;
  }

  remove(id) {
    this.#active.delete(id);
  }

  clear() {
    this.#active.clear();
  }

  count(id) {
    return this.#counts.get(id) ?? 0;
  }

  /** What is wrong with a fault that Python could not see; null when nothing is. */
  problem({ match, headers }) {
    try {
      new RegExp(match);
    } catch {
      return `match='${match}' is no plain regular expression: leave out Python's extras`;
    }
    try {
      for (const [name, value] of Object.entries(headers)) {
        http.validateHeaderName(name);
        http.validateHeaderValue(name, value);
      }
    } catch (error) {
      return error.message;
    }
    return null;
  }

  /** The oldest fault that applies to this request, used up by one; or undefined. */
  take(request) {
    for (const fault of this.#active.values()) {
      if (fault.method && fault.method !== request.method) continue;
      if (!fault.pattern.test(request.url)) continue;
      if (fault.draw() >= fault.share) continue;
      if (--fault.left === 0) this.#active.delete(fault.id);
      this.#counts.set(fault.id, this.#counts.get(fault.id) + 1);
      return fault;
    }
  }
}

/** Numbers from 0 to 1 that are the same for the same seed (a Weyl sequence, mixed). */
function randomFrom(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  };
}

const faults = new Faults();

// --- What has arrived ----------------------------------------------------------------------------

const arrived = new Map(); // "METHOD path?query" -> how often

function remember(request) {
  const line = `${request.method} ${request.url}`;
  arrived.set(line, (arrived.get(line) ?? 0) + 1);
  if (arrived.size > REMEMBERED_REQUESTS) arrived.delete(arrived.keys().next().value);
}

function countArrived({ match, method }) {
  const pattern = new RegExp(match);
  let total = 0;
  for (const [line, times] of arrived) {
    const space = line.indexOf(" ");
    const wanted = !method || line.slice(0, space) === method;
    if (wanted && pattern.test(line.slice(space + 1))) total += times;
  }
  return total;
}

// --- Requests ------------------------------------------------------------------------------------

function onRequest(request, response) {
  remember(request);
  const fault = faults.take(request);
  if (fault) misbehave(fault, request, response);
  else pass(request, null, response);
}

function pass(request, body, response) {
  const onward = upstreamOf(request).send(
    request,
    body,
    (answer) => {
      response.writeHead(answer.statusCode, answer.statusMessage, forHop(answer.rawHeaders));
      answer.pipe(response);
      // Half an answer must look like half an answer.
      answer.on("close", () => answer.complete || response.destroy());
    },
    () => (response.headersSent ? response.destroy() : refuse(response)),
  );
  // A caller that leaves frees the server. A request that was held back goes on without its caller,
  // as it would in a slow server.
  if (!body) response.on("close", () => response.writableFinished || onward?.destroy());
}

function refuse(response) {
  if (response.destroyed) return;
  response.writeHead(502, { ...JSON_TYPE, "Content-Length": UNREACHABLE.length });
  response.end(UNREACHABLE);
}

async function misbehave(fault, request, response) {
  const body = await wholeOf(request);
  if (body === null) return;
  if (fault.delay) await pause(fault.delay);
  if (fault.stall) return;
  if (fault.status) return answerWith(fault, response);
  if (fault.drop === "before") return request.socket.destroy();
  if (fault.drop === "after") return passAndDrop(request, body, () => request.socket.destroy());
  if (fault.drop === "body") return passAndDrop(request, body, sendHalf(response));
  pass(request, body, response);
}

function answerWith(fault, response) {
  response.statusCode = fault.status;
  for (const [name, value] of Object.entries(fault.headers)) response.setHeader(name, value);
  response.end(fault.body);
}

/** Let the server do all of the work, then call `drop`. If the server fails, so does the caller. */
function passAndDrop(request, body, drop) {
  const vanish = () => request.socket.destroy();
  upstreamOf(request).send(
    request,
    body,
    async (answer) => {
      const content = await wholeOf(answer);
      if (content === null) vanish();
      else drop(answer, content);
    },
    vanish,
  );
}

const sendHalf = (response) => (answer, content) => {
  response.writeHead(answer.statusCode, answer.statusMessage, forHop(answer.rawHeaders));
  response.write(content.subarray(0, content.length >> 1), () => response.destroy());
};

/** Everything in a stream; null when it breaks off. */
function wholeOf(stream) {
  return new Promise((resolve) => {
    const chunks = [];
    stream.on("data", (chunk) => chunks.push(chunk));
    stream.on("end", () => resolve(Buffer.concat(chunks)));
    stream.on("error", () => resolve(null));
    stream.on("close", () => resolve(null));
  });
}

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

// --- WebSockets ----------------------------------------------------------------------------------

async function onUpgrade(request, socket, head) {
  remember(request);
  socket.on("error", () => socket.destroy());
  const fault = faults.take(request) ?? {};
  if (fault.delay) await pause(fault.delay);
  if (fault.stall) return socket.resume(); // else its end would go unnoticed
  if (socket.destroyed) return;
  if (fault.status) socket.end(rawAnswer(fault.status, fault.headers, fault.body));
  else if (fault.drop === "before") socket.destroy();
  else join(request, socket, head, fault.drop);
}

/** Tie the two sockets together; with `drop` only until the server has answered the handshake. */
function join(request, socket, head, drop) {
  const onward = upstreamOf(request).connect();
  let answered = false;
  onward.on("connect", () => {
    onward.write(rawRequest(request));
    onward.write(head);
    socket.setNoDelay(true);
    onward.setNoDelay(true);
    if (!drop) return socket.pipe(onward).pipe(socket);
    onward.once("data", (handshake) => {
      if (drop === "body") socket.write(handshake, () => socket.destroy());
      else socket.destroy();
      onward.destroy();
    });
  });
  onward.once("data", () => (answered = true));
  onward.on("error", () => {
    if (answered) socket.destroy();
    else socket.end(rawAnswer(502, JSON_TYPE, UNREACHABLE));
  });
  onward.on("close", () => socket.writableEnded || socket.destroy());
  socket.on("close", () => onward.destroy());
}

function rawRequest(request) {
  const { method, url, rawHeaders } = request;
  const lines = [`${method} ${url} HTTP/1.1`];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    lines.push(`${rawHeaders[i]}: ${rawHeaders[i + 1]}`);
  }
  return lines.join("\r\n") + "\r\n\r\n";
}

function rawAnswer(status, headers, body = "") {
  const all = { ...headers, "Content-Length": Buffer.byteLength(body), Connection: "close" };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? ""}\r\n${lines.join("")}\r\n${body}`;
}

// --- The owner -----------------------------------------------------------------------------------

const commands = {
  route: ({ service, port }) => upstreams[service].route(port),
  add_fault: ({ fault }) => {
    const problem = faults.problem(fault);
    return problem ? [null, problem] : [faults.add(fault), null];
  },
  remove_fault: ({ fault }) => faults.remove(fault),
  clear_faults: () => faults.clear(),
  fault_count: ({ fault }) => faults.count(fault),
  requests: countArrived,
};

function start(config) {
  for (const [service, port] of Object.entries(config.upstreams)) commands.route({ service, port });
  const options = { maxHeaderSize: LONGEST_HEADERS, requestTimeout: 0 };
  const server = http.createServer(options, onRequest);
  server.keepAliveTimeout = IDLE_TO_CLIENTS;
  server.on("upgrade", onUpgrade);
  server.on("error", (error) => say({ error: whyNot(error, config.port) }, () => process.exit(1)));
  server.listen(config.port, "127.0.0.1", () => say({ ready: { port: server.address().port } }));
}

function whyNot(error, port) {
  const advice = {
    EADDRINUSE: `port ${port} is in use: stop what listens there, or choose another (0 is any)`,
    EACCES: `port ${port} needs special rights: choose one above 1023`,
  };
  return advice[error.code] ?? error.message;
}

function obey(line) {
  const { id, do: name, ...fields } = JSON.parse(line);
  try {
    say({ id, ok: commands[name](fields) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}

function say(message, then) {
  process.stdout.write(JSON.stringify(message) + "\n", then);
}

process.on("SIGTERM", () => process.exit(0));
process.on("SIGINT", () => {}); // Ctrl-C is for the owner, which ends its children in order
const lines = createInterface({ input: process.stdin });
lines.once("line", (line) => {
  start(JSON.parse(line));
  lines.on("line", obey);
});
lines.on("close", () => process.exit(0)); // the owner is gone
