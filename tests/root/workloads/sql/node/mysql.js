// mysql2: TABLE FILE and JSON of how to connect; statements as a JSON list on standard input.
// Prints a JSON list of steps: verb, returned rows, affected rows, error.
"use strict";

const fs = require("node:fs");
const mysql = require("mysql2/promise");

const [table, file, where] = process.argv.slice(2);
const statements = JSON.parse(fs.readFileSync(0, "utf8"));
const steps = [];

const rowsOf = (result) => (Array.isArray(result) ? result : []);

async function run(connection, text, parameters) {
  const verb = text.split(/\s/, 1)[0].toUpperCase();
  try {
    const options = { sql: text, rowsAsArray: true, infileStreamFactory: () => fs.createReadStream(file) };
    const [result] = await (parameters
      ? connection.execute(options, parameters)
      : connection.query(options));
    if (!Array.isArray(result)) {
      const changes = ["INSERT", "UPDATE", "DELETE", "LOAD"].includes(verb);
      steps.push([verb, null, changes ? result.affectedRows : null, null]);
    } else if (verb === "CALL" || text.includes(";")) {
      steps.push([verb, result.reduce((sum, one) => sum + rowsOf(one).length, 0), null, null]);
    } else {
      steps.push([verb, result.length, null, null]);
    }
  } catch (error) {
    if (!error.errno) throw error;
    steps.push([verb, null, null, String(error.errno)]);
  }
}

async function main() {
  const connection = await mysql.createConnection({
    ...JSON.parse(where),
    multipleStatements: true,
    flags: ["+LOCAL_FILES"],
  });
  await connection.ping();
  for (const text of statements) await run(connection, text);
  const prepared = `SELECT id, name FROM ${table} WHERE id = ?`;
  for (const id of [1, 2, 99]) await run(connection, prepared, [id]);
  connection.unprepare(prepared);
  await run(connection, `INSERT INTO ${table} (id, name) VALUES (?, ?)`, [70, "Päul"]);
  await run(connection, "SELECT n FROM ten WHERE n < 4; SELECT n AS inner_n FROM ten WHERE n < 2");
  await run(connection, "CALL two()");
  await run(connection, `LOAD DATA LOCAL INFILE '${file}' INTO TABLE ${table} (id, name)`);
  await connection.changeUser({ database: "other" });
  await run(connection, "SELECT n FROM shop.ten");
  await connection.end();
  console.log(JSON.stringify(steps));
}

main();
