// SPDX-License-Identifier: Apache-2.0
//
// Node's own http server and client for the root tests.
//
//   node node_http.js serve                          prints its port
//   node node_http.js get URL REQUESTS CONNECTIONS   prints: path method status sent received
//
// The server reads the body whole and answers with ?status= and ?size=, chunked in several
// writes when ?size= is over 5000.
"use strict";
const http = require("node:http");

function serve() {
  const server = http.createServer((request, response) => {
    const query = new URL(request.url, "http://local").searchParams;
    const status = Number(query.get("status"));
    const size = Number(query.get("size"));
    request.resume();
    request.on("end", () => {
      if (size <= 5000) {
        response.writeHead(status, { "Content-Length": size });
        response.end("n".repeat(size));
        return;
      }
      response.writeHead(status);
      for (let left = size; left > 0; left -= 1000) {
        response.write("n".repeat(Math.min(left, 1000)));
      }
      response.end();
    });
  });
  server.keepAliveTimeout = 60000;
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

function once(agent, base, n) {
  const sent = (n % 7) * 300;
  const size = (n % 11) * 900;
  const method = sent ? "POST" : "GET";
  const url = new URL(`${base}/${n}?status=${[200, 404, 503][n % 3]}&size=${size}`);
  return new Promise((resolve, reject) => {
    const request = http.request(url, { agent, method }, (response) => {
      let received = 0;
      response.on("data", (data) => (received += data.length));
      response.on("end", () => {
        console.log(`${url.pathname} ${method} ${response.statusCode} ${sent} ${received}`);
        resolve();
      });
    });
    request.on("error", reject);
    // Without a length given, a body is chunked.
    if (sent) request.write("c".repeat(100));
    if (sent) request.write("c".repeat(sent - 100));
    request.end();
  });
}

async function get(base, requests, connections) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: connections });
  const all = [];
  for (let n = 0; n < requests; n++) all.push(once(agent, base, n));
  await Promise.all(all);
  agent.destroy();
}

if (process.argv[2] === "serve") serve();
else get(process.argv[3], Number(process.argv[4]), Number(process.argv[5]));
