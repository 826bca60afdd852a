// ioredis: PREFIX and JSON of how to connect. Prints how often it sent what.
"use strict";

const Redis = require("ioredis");

const [prefix, where] = process.argv.slice(2);
const sent = {};

async function main() {
  const client = new Redis(JSON.parse(where));
  const send = async (name, ...words) => {
    sent[name] = (sent[name] || 0) + 1;
    return client.call(name, ...words);
  };
  await send("PING");
  // Commands given at once are sent without waiting for the answers.
  const all = [];
  for (let n = 0; n < 100; n++) {
    all.push(send("SET", `${prefix}:${n}`, `value ${n}`));
    all.push(send("GET", `${prefix}:${n}`));
  }
  await Promise.all(all);
  await send("LPUSH", `${prefix}:0`, "1").catch(() => null);
  await client.multi().incr(`${prefix}:count`).incr(`${prefix}:count`).exec();
  for (const [name, count] of [["MULTI", 1], ["INCR", 2], ["EXEC", 1]]) sent[name] = count;
  await send("SELECT", "2");
  await send("GET", `${prefix}:0`);
  await client.quit();
  sent.QUIT = 1;
  console.log(JSON.stringify(sent));
}

main();
