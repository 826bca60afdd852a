// SPDX-License-Identifier: Apache-2.0

// Tells wirespan for which request this process makes a call:
//
//   NODE_OPTIONS="--require /path/wirespan.cjs"
//
// What waits for a timer or for a free connection can't be told from outside: Node runs
// everything on one thread. Node itself knows, by AsyncLocalStorage. Each request that is
// served gets a number here; as its calls are about to be sent, the kernel is told that number.
//
// Nothing that is sent or received changes. The kernel is told by preadv() from /dev/null at
// an offset that no one else reads at. It reads nothing; wirespan's hook of that system call
// finds in its first buffer (struct node_mark, ebpf/runtime.bpf.h), as 32-bit words:
//
//   0  "wsn1"
//   1  what follows: SERVE, this request is being served; CALL, a request is about to be sent
//   2  the socket's descriptor
//   3  HTTP/2: the stream; 0: none
//   4  the number of the request that is served; 0: none, this call is nobody's
//   5  the thread that gave the number
//
// Whatever fails here fails silently, and the application goes on without it.

'use strict'

const OFFSET = 0x574952455350 // "WIRESP": 96 TB
const MAGIC = 0x77736e31
const SERVE = 1
const CALL = 2
// Events of a server with a request in them that is to be answered.
const REQUESTS = new Set(['request', 'checkContinue', 'checkExpectation', 'connect', 'upgrade'])

function install () {
  const { AsyncLocalStorage } = require('node:async_hooks')
  const { subscribe } = require('node:diagnostics_channel')
  const { openSync, readvSync } = require('node:fs')
  const http = require('node:http')
  const net = require('node:net')
  const { threadId } = require('node:worker_threads')

  const words = new Uint32Array([MAGIC, 0, 0, 0, 0, threadId])
  // Two, for libuv reads into one by pread(), which others use too often to be hooked.
  const buffers = [words, new Uint8Array(1)]
  const nothing = openSync('/dev/null')

  const serving = new AsyncLocalStorage() // the number of the request that is served
  const served = new WeakMap() // request or response of a server -> its number
  const callers = new WeakMap() // request of a client -> the number it is made for
  let last = 0

  function tell (what, socket, stream, number) {
    try {
      const fd = socket._handle?.fd
      if (!(fd >= 0)) return
      words[1] = what
      words[2] = fd
      words[3] = stream
      words[4] = number
      readvSync(nothing, buffers, OFFSET)
    } catch {}
  }

  function serve (socket, stream) {
    last = last + 1 >>> 0 || 1
    tell(SERVE, socket, stream, last)
    return last
  }

  const caller = () => serving.getStore() ?? 0

  // Servers of HTTP/1 and HTTP/2, with and without TLS: net.Server is the parent of them all.
  wrap(net.Server.prototype, 'emit', (emit) => function (event, first, second) {
    let number = 0
    try {
      // HTTP/2 emits 'request' within 'stream', which has done it.
      if (REQUESTS.has(event) && first instanceof http.IncomingMessage) {
        number = serve(first.socket, 0)
        served.set(first, number)
        if (second instanceof http.ServerResponse) served.set(second, number)
      } else if (event === 'stream' && first?.session) {
        number = serve(first.session.socket, first.id)
      }
    } catch {}
    return number
      ? serving.run(number, Reflect.apply, emit, this, arguments)
      : Reflect.apply(emit, this, arguments)
  })

  // A request's body comes, and its connection closes, on behalf of the connection: the
  // handlers are the request's all the same.
  for (const { prototype } of [http.IncomingMessage, http.ServerResponse]) {
    wrap(prototype, 'emit', (emit) => function () {
      const number = served.get(this)
      return number === undefined || number === serving.getStore()
        ? Reflect.apply(emit, this, arguments)
        : serving.run(number, Reflect.apply, emit, this, arguments)
    })
  }

  // A call is its maker's, whoever returns the connection that it waited for: ask before it
  // waits. The constructor of ClientRequest hands itself to the agent.
  wrap(http.Agent.prototype, 'addRequest', (addRequest) => function (request) {
    try {
      if (!callers.has(request)) callers.set(request, caller())
    } catch {}
    return Reflect.apply(addRequest, this, arguments)
  })

  // It has its connection; its head is sent in a later tick, or when that is open.
  wrap(http.ClientRequest.prototype, 'onSocket', (onSocket) => function (socket) {
    try {
      const number = callers.get(this) ?? caller()
      if (socket?.connecting) {
        socket.prependOnceListener('connect', () => tell(CALL, socket, 0, number))
      } else if (socket) {
        tell(CALL, socket, 0, number)
      }
    } catch {}
    return Reflect.apply(onSocket, this, arguments)
  })

  // fetch() and undici: made here, and here about to be written.
  subscribe('undici:request:create', ({ request }) => callers.set(request, caller()))
  subscribe('undici:client:sendHeaders', ({ request, socket }) => {
    // of HTTP/2 the stream isn't told
    if (socket.alpnProtocol !== 'h2') tell(CALL, socket, 0, callers.get(request) ?? 0)
  })

  installHttp2(tell, caller)
}

// Clients of HTTP/2, grpc-js among them.
function installHttp2 (tell, caller) {
  let http2
  try {
    http2 = require('node:http2')
  } catch {
    return // Node built without OpenSSL
  }
  const settled = new WeakSet() // sessions that took all that had waited for them
  let found = false

  // It has its stream as it is made, and is sent when this tick is over.
  const asked = (request) => function () {
    const stream = Reflect.apply(request, this, arguments)
    try {
      const send = (number) => tell(CALL, this.socket, stream.id, number)
      if (stream.pending) {
        const number = caller()
        stream.prependOnceListener('ready', () => send(number))
      } else {
        // grpc-js has calls wait for a connection and then makes them all at once, on behalf
        // of whoever had it opened: whose they are is not known.
        send(settled.has(this) ? caller() : 0)
      }
    } catch {}
    return stream
  }

  wrap(http2, 'connect', (connect) => function () {
    const session = Reflect.apply(connect, this, arguments)
    try {
      session.once('remoteSettings', () => setImmediate(() => settled.add(session)))
      if (!found) {
        found = true
        wrap(Object.getPrototypeOf(session), 'request', asked)
      }
    } catch {}
    return session
  })
  require('node:module').syncBuiltinESMExports()
}

// Replace a method by one that looks the same from outside.
function wrap (object, name, make) {
  const original = object[name]
  const made = make(original)
  Object.defineProperty(made, 'name', { value: original.name })
  Object.defineProperty(made, 'length', { value: original.length })
  const { enumerable } = Object.getOwnPropertyDescriptor(object, name) ?? {}
  Object.defineProperty(object, name,
    { value: made, writable: true, configurable: true, enumerable: enumerable ?? true })
}

if (process.platform === 'linux') {
  try {
    install()
  } catch {}
}
