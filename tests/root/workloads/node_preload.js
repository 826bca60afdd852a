// SPDX-License-Identifier: Apache-2.0

// What only Node itself can tell: each request to a front service makes calls in ways that are
// not seen from outside. node_preload.js PREFIX REQUESTS
//
// It begins when a line comes on standard input, and in the end prints how many calls were
// nobody's.
//
// Front: PREFIX/r/ID, over HTTP/1.1 and HTTP/2. Upstream: PREFIX/u/ID/HOW. Nobody's calls:
// PREFIX/n/N. All in this process, for whoever sends a request to the front serves nobody.

'use strict'

const { once } = require('node:events')
const http = require('node:http')
const http2 = require('node:http2')
const { setTimeout: sleep } = require('node:timers/promises')

const [prefix, requests] = [process.argv[2], Number(process.argv[3])]
const jitter = () => sleep(Math.random() * 20)
const few = new http.Agent({ keepAlive: true, maxSockets: 3 })
const many = new http.Agent({ keepAlive: true })

function ask (port, path, options = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host: '127.0.0.1', port, path, agent: many, ...options })
    request.on('error', reject)
    request.on('response', (response) => {
      response.resume()
      response.on('end', resolve)
    })
    if (request.method === 'POST') {
      // its body comes by itself, when the request is being served
      request.flushHeaders()
      setTimeout(() => request.end('body'), 5)
    } else {
      request.end()
    }
  })
}

function ask2 (session, path) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path })
    stream.on('error', reject)
    stream.on('end', resolve)
    stream.resume()
    stream.end()
  })
}

function listen (server) {
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve(server.address().port))
  })
}

async function main () {
  const answer = (request, response) => setTimeout(() => response.end('ok'), Math.random() * 10)
  const upstream = await listen(http.createServer(answer))
  const upstream2 = await listen(http2.createServer(answer))
  const late = []

  console.log('ready')
  await once(process.stdin, 'data')
  const session = http2.connect(`http://127.0.0.1:${upstream2}`)
  await ask2(session, `${prefix}/n/http2`)

  async function calls (id) {
    const to = `${prefix}/u/${id}`
    await jitter()
    await Promise.all([
      ask(upstream, `${to}/few`, { agent: few }),
      fetch(`http://127.0.0.1:${upstream}${to}/fetch`).then((response) => response.text()),
    ])
    await ask2(session, `${to}/http2`)
    late.push(jitter().then(() => ask(upstream, `${to}/late`)))
  }

  function serve (request, response) {
    const id = request.url.split('/').pop()
    request.on('end', () => calls(id).then(() => response.end('ok')))
    request.resume()
  }

  const front = await listen(http.createServer(serve))
  const front2 = await listen(http2.createServer(serve))
  const session2 = http2.connect(`http://127.0.0.1:${front2}`)
  let nobody = 1
  const timer = setInterval(() => late.push(ask(upstream, `${prefix}/n/${nobody++}`)), 10)
  const one = async (id) => {
    await jitter()
    if (id % 2) await ask(front, `${prefix}/r/${id}`, { method: 'POST' })
    else await ask2(session2, `${prefix}/r/${id}`)
  }
  await Promise.all(Array.from({ length: requests }, (_, id) => one(id)))
  clearInterval(timer)
  await Promise.all(late)
  console.log(nobody)
  process.exit()
}

main()
