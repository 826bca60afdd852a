// SPDX-License-Identifier: Apache-2.0

// A front service of the linking benchmark; ../../workload.py says what one is asked.
// MODE says how it calls:
//
//   agent     awaits each call; a keep-alive agent without a limit
//   sockets   the same with 8 connections at most: calls wait for one
//   timer     the same as agent, after 0 to 5 ms of a timer
//   parallel  all calls at once
//   fetch     awaits each call by the global fetch

'use strict'

const http = require('node:http')
const { setTimeout: sleep } = require('node:timers/promises')

const upstream = process.env.UPSTREAM
const calls = Number(process.env.CALLS || 1)
const mode = process.env.MODE || 'agent'

const agent = new http.Agent({
  keepAlive: true,
  maxSockets: mode === 'sockets' ? 8 : Infinity,
})

function byAgent (url) {
  return new Promise((resolve, reject) => {
    http.get(url, { agent }, (response) => {
      response.resume()
      response.on('error', reject)
      response.on('end', () => {
        if (response.statusCode === 200) resolve()
        else reject(new Error(`upstream: ${response.statusCode}`))
      })
    }).on('error', reject)
  })
}

async function byTimer (url) {
  await sleep(Math.random() * 5)
  await byAgent(url)
}

async function byFetch (url) {
  const response = await fetch(url)
  await response.text()
  if (!response.ok) throw new Error(`upstream: ${response.status}`)
}

const ways = {
  agent: byAgent,
  sockets: byAgent,
  parallel: byAgent,
  timer: byTimer,
  fetch: byFetch,
}
const call = ways[mode]
if (call === undefined) throw new Error(`no such MODE: ${mode}`)

async function serve (asked) {
  const { pathname, searchParams } = new URL(asked, 'http://front')
  const id = pathname.slice('/t/'.length)
  const delays = (searchParams.get('d') || '').split(',')
  const urls = Array.from(
    { length: calls }, (_, k) => `${upstream}/u/${id}/${k}?d=${delays[k] || 0}`)
  if (mode === 'parallel') {
    await Promise.all(urls.map(call))
  } else {
    for (const url of urls) await call(url)
  }
  return id
}

const server = http.createServer(async (request, response) => {
  try {
    response.end(await serve(request.url))
  } catch (error) {
    console.error(error)
    response.statusCode = 502
    response.end()
  }
})
// Idle connections stay for as long as a run takes.
server.keepAliveTimeout = 60000
server.listen(Number(process.env.PORT), '127.0.0.1', 1024, () => console.log('ready'))
