// SPDX-License-Identifier: Apache-2.0
//
// @grpc/grpc-js's server and client of the service that ../README.md describes.
//
//   node echo.js serve
//   node echo.js call PORT CONNECTIONS
"use strict";
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");

const SERVICE = "wirespan.test.Echo";
const same = (message) => message;
const UNLIMITED = { "grpc.max_receive_message_length": -1 };

function definition(name, requestStream, responseStream) {
  return {
    path: `/${SERVICE}/${name}`,
    requestStream,
    responseStream,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  };
}

const definitions = {
  Say: definition("Say", false, false),
  Spread: definition("Spread", false, true),
  Gather: definition("Gather", true, false),
  Chat: definition("Chat", true, true),
  Fail: definition("Fail", false, false),
  Late: definition("Late", false, true),
  Slow: definition("Slow", false, false),
};

function failure(message, details) {
  return { code: Number(message.toString()), details };
}

const handlers = {
  Say: (call, reply) => reply(null, call.request),
  Fail: (call, reply) => reply(failure(call.request, "as asked for")),
  Slow: (call, reply) => {
    const timer = setTimeout(() => reply(null, Buffer.from("at last")), Number(call.request));
    call.on("cancelled", () => clearTimeout(timer));
  },
  Spread: (call) => {
    for (let n = 0; n < Number(call.request); n++) call.write(Buffer.from(String(n)));
    call.end();
  },
  Late: (call) => {
    call.write(Buffer.from("first"));
    call.write(Buffer.from("second"));
    call.emit("error", failure(call.request, "as asked for, but late"));
  },
  Gather: (call, reply) => {
    let n = 0;
    call.on("data", () => n++);
    call.on("end", () => reply(null, Buffer.from(String(n))));
  },
  Chat: (call) => {
    call.on("data", (message) => call.write(message));
    call.on("end", () => call.end());
    call.on("error", () => {});
  },
};

function serve() {
  const server = new grpc.Server(UNLIMITED);
  server.addService(definitions, handlers);
  server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    console.log(port);
  });
}

function plan(kind, n, size) {
  const payload = Buffer.alloc(size, "x");
  const code = Buffer.from(String(1 + (n % 16)));
  switch (kind) {
    case "unary":
      return ["Say", [payload]];
    case "server":
      return ["Spread", [Buffer.from(String(n % 5))]];
    case "client":
      return ["Gather", Array(n % 5).fill(payload)];
    case "bidi":
      return ["Chat", Array(n % 5).fill(payload)];
    case "fail":
      return ["Fail", [code]];
    case "late":
      return ["Late", [code]];
    case "unknown":
      return ["Unknown", [payload]];
    case "slow":
      return ["Slow", [Buffer.from("300")]];
    case "deadline":
      return ["Slow", [Buffer.from("10000")]];
    case "cancel":
      return ["Chat", [payload]];
  }
  throw new Error(`no such kind: ${kind}`);
}

// Make call number n of a kind.
function exchange(client, kind, n, size) {
  const [name, messages] = plan(kind, n, size);
  const deadline = Date.now() + (kind === "deadline" ? 100 : 30000);
  const done = { method: `${SERVICE}/${name}`, status: "", sent: messages.length, received: 0 };
  return new Promise((resolve) => {
    const call = client.makeBidiStreamRequest(`/${done.method}`, same, same, { deadline });
    call.on("data", () => {
      done.received++;
      if (kind === "cancel") call.cancel();
    });
    call.on("error", () => {});
    call.on("status", (status) => {
      done.status = grpc.status[status.code];
      resolve(done);
    });
    for (const message of messages) call.write(message);
    if (kind !== "cancel") call.end();
  });
}

function dial(port, connections) {
  const options = { ...UNLIMITED, "grpc.use_local_subchannel_pool": 1 };
  return Array.from(
    { length: connections },
    () => new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), options),
  );
}

async function call(port, connections) {
  let clients = dial(port, connections);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [kind, ...numbers] = line.split(" ");
    const [calls, concurrency, size] = numbers.map(Number);
    if (kind === "reconnect") {
      for (const client of clients) client.close();
      clients = dial(port, connections);
    }
    const results = [];
    let next = 0;
    const worker = async () => {
      while (next < calls) {
        const n = next++;
        results[n] = await exchange(clients[n % connections], kind, n, size);
      }
    };
    await Promise.all(Array.from({ length: concurrency }, worker));
    for (const result of results) console.log(JSON.stringify(result));
    console.log();
  }
  for (const client of clients) client.close();
}

if (process.argv[2] === "serve") serve();
else call(process.argv[3], Number(process.argv[4]));
