/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * table.h - the protocols, in the order in which they are asked whether first bytes are
 * theirs. A protocol is a line here, its header, and an entry in tracer/flows.py.
 */
#ifndef WIRESPAN_TABLE_H
#define WIRESPAN_TABLE_H

#include "http1.h"
#include "http2.h"
#include "mysql.h"
#include "postgresql.h"
#include "redis.h"

/* enum flow_protocol and the prefix of the parser's functions. HTTP/2 is driven by
 * streams.bpf.h, for it alone has several exchanges under way in no order. */
#define PROTOCOLS(X)                                                                               \
	X(FLOW_PROTO_HTTP1, http1)                                                                 \
	X(FLOW_PROTO_MYSQL, mysql)                                                                 \
	X(FLOW_PROTO_REDIS, redis)                                                                 \
	X(FLOW_PROTO_POSTGRESQL, postgresql)

#endif
