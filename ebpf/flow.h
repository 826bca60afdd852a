/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * flow.h - everything that crosses from the kernel to user space.
 *
 * The one source of the record's layout: tracer/kernel/layout.py reads it back
 * from the BTF of the very object that is loaded. Fields are ordered by size, so
 * that no padding hides in the record. Enum values are never renumbered or reused.
 *
 * Times are CLOCK_MONOTONIC nanoseconds. 0 means "did not happen".
 */
#ifndef WIRESPAN_FLOW_H
#define WIRESPAN_FLOW_H

#include <linux/types.h>

enum flow_kind {
	FLOW_EXCHANGE = 1, /* a request and its response, as one side saw them */
	FLOW_EXEC = 2,	   /* a process has a new image: its file name and argv */
	FLOW_PART = 3,	 /* the strings of an exchange under way, so far as they filled a record */
	FLOW_BLOCK = 4,	 /* HTTP/2: a header block or a part of one, in the order of its stream */
	FLOW_CLOSED = 5, /* a connection is over: what was kept of it can be forgotten */
	FLOW_HANDOVER = 6, /* what a request was made for, as it turned out after its response */
};

enum flow_protocol {
	FLOW_PROTO_UNKNOWN = 0,
	FLOW_PROTO_HTTP1 = 1,
	FLOW_PROTO_HTTP2 = 2, /* gRPC too */
	FLOW_PROTO_MYSQL = 3, /* MariaDB too */
	FLOW_PROTO_REDIS = 4,
	FLOW_PROTO_POSTGRESQL = 5,
};

enum flow_role {
	FLOW_CLIENT = 1, /* sent the request */
	FLOW_SERVER = 2, /* received the request */
};

/* Why an exchange was over. */
enum flow_end {
	FLOW_END_RESPONSE = 0, /* the response's own framing ended it */
	FLOW_END_EOF = 1,      /* a close-delimited response: the close is its end */
	FLOW_END_UPGRADE = 2, /* 101, or 2xx to CONNECT: the connection is another protocol's now */
	FLOW_END_PEER = 3,    /* the peer closed before the response was whole */
	FLOW_END_LOCAL = 4,   /* this side closed before the response was whole */
	FLOW_END_RESET = 5,   /* ECONNRESET or EPIPE before the response was whole */
	FLOW_END_TIMEOUT = 6, /* ETIMEDOUT before the response was whole */
	FLOW_END_GAP = 7,     /* bytes went by unseen where the parser needed them */
	FLOW_END_INVALID = 8, /* the response was not what its protocol allows */
};

enum flow_method {
	FLOW_METHOD_OTHER = 0, /* its text is in FLOW_TEXT_METHOD */
	FLOW_METHOD_GET = 1,
	FLOW_METHOD_HEAD = 2,
	FLOW_METHOD_POST = 3,
	FLOW_METHOD_PUT = 4,
	FLOW_METHOD_DELETE = 5,
	FLOW_METHOD_CONNECT = 6,
	FLOW_METHOD_OPTIONS = 7,
	FLOW_METHOD_TRACE = 8,
	FLOW_METHOD_PATCH = 9,
	FLOW_METHOD_QUERY = 10,
};

/* Bits of flow_record.flags. */
enum flow_flag {
	FLOW_FLAG_IDS_PRIVATE = 1, /* request_seq/response_seq are not known to the peer alike */
	FLOW_FLAG_PIPELINED = 2,   /* sent before the response to the one before it had ended */
	FLOW_FLAG_EARLY = 4,	   /* the response ended before the request did */
	FLOW_FLAG_ONE_WAY = 8,	   /* a request that gets no response */
	FLOW_FLAG_OLD = 16, /* the connection is older than the tracer, or was lost track of */
	/* FLOW_BLOCK */
	FLOW_FLAG_MORE = 32,	   /* the block goes on in the next record */
	FLOW_FLAG_END_STREAM = 64, /* RFC 9113 section 5.1 */
	FLOW_FLAG_RESPONSE = 128,  /* the server sent it */
	FLOW_FLAG_SPANLESS = 256,  /* of a PUSH_PROMISE, or of a stream that found no room */
	FLOW_FLAG_BROKEN = 512,	   /* blocks before this one were lost: the HPACK state with them */
	FLOW_FLAG_IN_HAND = 1024,  /* a server's: its thread was noted as having it in hand */
};

/*
 * What says that a request was made for the exchange flow_record.parent. From 32 on the
 * evidence is user space's (tracer/link/).
 */
enum flow_evidence {
	FLOW_EVIDENCE_NONE = 0,
	FLOW_EVIDENCE_THREAD = 1,    /* the only request that its thread had in hand */
	FLOW_EVIDENCE_LOOP = 2,	     /* event loop: nobody else can have sent it */
	FLOW_EVIDENCE_CONNECT = 3,   /* its connection was opened for that exchange */
	FLOW_EVIDENCE_CONTEXT = 4,   /* context of CPython's contextvars */
	FLOW_EVIDENCE_GOROUTINE = 5, /* Go's goroutine, or the one that started it */
	FLOW_EVIDENCE_WAKEUP = 6,    /* its thread then woke the one that waited for it; with
				      * no parent: that may yet come, as a FLOW_HANDOVER */
	FLOW_EVIDENCE_ASYNC = 7,     /* the runtime said so: Node's preload, the JVM's agent */
	FLOW_EVIDENCE_QUEUE = 8,     /* its thread took it from a pool's queue, where it was put for
				      * that exchange */
	FLOW_EVIDENCE_CHECKOUT = 9,  /* the thread that had only that one in hand looked at its
				      * connection last, as who takes one from a pool does */
};

/* Slots of flow_record.fields: where in text[] a string lies. */
enum flow_text {
	/* FLOW_EXCHANGE of FLOW_PROTO_HTTP1 */
	FLOW_TEXT_TARGET = 0, /* request-target, RFC 9112 section 3.2; always at offset 0 */
	FLOW_TEXT_HOST = 1,
	FLOW_TEXT_USER_AGENT = 2,
	FLOW_TEXT_TRACEPARENT = 3,
	FLOW_TEXT_FORWARDED_FOR = 4,   /* X-Forwarded-For */
	FLOW_TEXT_FORWARDED_PROTO = 5, /* X-Forwarded-Proto */
	FLOW_TEXT_METHOD = 6,	       /* only for FLOW_METHOD_OTHER */
	FLOW_TEXT_UNIX_PATH = 7,       /* path the Unix socket is bound to, server side's */
	FLOW_TEXT_FIELDS = 8,	       /* how many slots there are */
	/* FLOW_EXCHANGE of a database's protocol */
	FLOW_TEXT_QUERY = 0,	 /* SQL; Redis: the command's name */
	FLOW_TEXT_DATABASE = 1,	 /* as named by this message */
	FLOW_TEXT_ERROR = 2,	 /* the server's message */
	FLOW_TEXT_SQLSTATE = 3,	 /* five characters */
	FLOW_TEXT_VERSION = 4,	 /* the server's, from its greeting */
	FLOW_TEXT_STATEMENT = 5, /* name of a prepared statement */
	FLOW_TEXT_PORTAL = 6,	 /* name of what a statement was bound to */
	/* FLOW_BLOCK */
	FLOW_TEXT_BLOCK = 0, /* field block fragment, RFC 9113 section 4.3 */
	/* FLOW_EXEC */
	FLOW_TEXT_EXE = 0,  /* the file name given to execve */
	FLOW_TEXT_ARGV = 1, /* arguments, each ended by a NUL */
};

/* Address families as the kernel numbers them. */
enum flow_family {
	FLOW_FAMILY_UNIX = 1,
	FLOW_FAMILY_INET = 2,
	FLOW_FAMILY_INET6 = 10,
};

#define FLOW_TEXT_BYTES 432

struct flow_field {
	__u16 off;
	__u16 len; /* bytes kept; bit n of flow_record.truncated: slot n had more */
};

struct flow_record {
	__u64 start_ns;	      /* first byte of the request; FLOW_EXEC: time of the exec */
	__u64 request_end_ns; /* last byte of the request */
	__u64 first_byte_ns;  /* first byte of the response */
	__u64 end_ns;	      /* last byte of the response */
	__u64 conn_id; /* the socket's inode number, unique among live sockets; FLOW_HANDOVER:
			* flow_exchange_id() of the request */
	__u64 request_body_bytes;  /* without the transfer coding's own bytes */
	__u64 response_body_bytes; /* likewise */
	__u64 task_start_ns; /* the process's start, CLOCK_BOOTTIME: with tgid it names a process */
	__u64 cgroup_id;     /* cgroup v2 id; 0 where unknown */
	__u64 rows_returned; /* databases */
	__u64 rows_affected; /* databases */
	__u64 parent; /* client: flow_exchange_id() of the server's exchange it was made for, or 0 */
	__u32 request_seq;  /* TCP sequence number of the request's first byte */
	__u32 response_seq; /* the same of the response */
	__u32 tgid;	    /* process that sent or received the request's first byte */
	__u32 request_tid;  /* thread that did; of a server's: that read the end of its head */
	__u32 response_tid; /* thread that sent or received the response's first byte */
	__u32 netns;	    /* inode number of the socket's network namespace */
	__u32 flags;	    /* enum flow_flag */
	__u32 status;	    /* HTTP status code; 0 where no response came */
	__u32 code; /* HTTP/2: error code of RST_STREAM; databases: the server's error number */
	__u32 stream_id;	 /* HTTP/2: stream; MySQL: prepared statement; PostgreSQL: Sync */
	__u32 request_messages;	 /* gRPC: whole ones; Redis: arguments; PostgreSQL: Binds, 0 or 1 */
	__u32 response_messages; /* gRPC: whole messages */
	__u8 local_addr[16];	 /* network order; IPv4 in the first four bytes */
	__u8 remote_addr[16];
	char comm[16];	   /* of the thread that handled the request's first byte */
	__u16 family;	   /* enum flow_family */
	__u16 local_port;  /* host order; 0 for Unix sockets */
	__u16 remote_port; /* host order */
	__u8 kind;	   /* enum flow_kind */
	__u8 protocol;	   /* enum flow_protocol */
	__u8 role;	   /* enum flow_role */
	__u8 end;	   /* enum flow_end */
	__u8 method;	   /* enum flow_method; MySQL: command byte; PostgreSQL: message type */
	__u8 version;	   /* HTTP: major * 10 + minor, of the response, else of the request */
	__u16 truncated;   /* bit n: field n was longer than what is kept */
	__u16 text_len;	   /* bytes of text[] in use */
	__u32 calls;	   /* the kernel's own: a server's, requests made for it under way */
	__u8 evidence;	   /* enum flow_evidence: what says so of `parent` */
	__u8 level;	   /* one trace in 2^level was kept, as this one begun; bit 7: it wasn't */
	__u16 lot;	   /* with a level: what decided, 16 bits that all of a trace have */
	struct flow_field fields[FLOW_TEXT_FIELDS];
	char text[FLOW_TEXT_BYTES];
};

/* The number by which the process's own requests refer to an exchange of a server. Never 0. */
static inline __attribute__((unused)) __u64 flow_exchange_id(__u64 conn_id, __u64 start_ns,
							     __u32 request_seq)
{
	__u64 id = conn_id * 0x9E3779B97F4A7C15ULL ^ start_ns ^ (__u64)request_seq << 32;

	return id ? id : 1;
}

/*
 * What can be lost or passed over in the kernel, each counted in the map `losses`.
 * The meaning shown to users stands in tracer/losses.py; a test keeps both equal.
 */
enum flow_loss {
	FLOW_LOSS_RING_FULL = 0,      /* a record found no room in the ring: one span less */
	FLOW_LOSS_CONNS_FULL = 1,     /* a connection found no room in the map: all its spans */
	FLOW_LOSS_PIPELINE_FULL = 2,  /* a pipelined request found no room: one span less */
	FLOW_LOSS_GAP = 3,	      /* bytes unseen where the parser needed them */
	FLOW_LOSS_UNREADABLE = 4,     /* a user buffer could not be read (not resident) */
	FLOW_LOSS_TOO_MANY_PARTS = 5, /* one call carried more pieces than a program may walk */
	FLOW_LOSS_ORPHAN = 6,	      /* a response with no request seen before it */
	FLOW_LOSS_INVALID = 7,	      /* a message that its protocol does not allow */
	FLOW_LOSS_PENDING_FULL = 8,   /* a send awaiting its result found no room */
	FLOW_LOSS_STREAMS_FULL = 9,   /* an HTTP/2 stream found no room: one span less */
	FLOW_LOSS_NOTE_FULL = 10, /* another record than an exchange found no room in the ring */
	FLOW_LOSS_SHED = 11,	  /* overload: an exchange of a trace that was let go */
	FLOW_LOSSES = 12,
};

/* Things worth counting that are no loss, in the map `counts`. */
enum flow_count {
	FLOW_COUNT_EXCHANGES = 0,    /* records of kind FLOW_EXCHANGE that entered the ring */
	FLOW_COUNT_CONNS = 1,	     /* connections recognised */
	FLOW_COUNT_CONNS_FREED = 2,  /* connections closed and forgotten */
	FLOW_COUNT_OTHER = 3,	     /* connections that speak something else */
	FLOW_COUNT_OPAQUE_BYTES = 4, /* content bytes that were not looked at */
	FLOW_COUNT_DEFERRED = 5,     /* sends parsed at their exit, for they could be cut short */
	FLOW_COUNT_EXECS = 6,	     /* images that processes took on */
	FLOW_COUNT_RETRIED = 7,	     /* sends that repeated bytes already seen */
	FLOW_COUNT_ENCRYPTED = 8, /* connections that went on encrypted: TLS of MySQL, PostgreSQL */
	FLOW_COUNT_COMPRESSED = 9, /* connections that went on compressed */
	FLOW_COUNT_LEFT = 10,	   /* connections left alone: subscriptions, replication */
	FLOW_COUNT_UPGRADED = 11,  /* connections that HTTP/1 handed over: 101, or 2xx to CONNECT */
	FLOW_COUNTS = 12,
};

_Static_assert(sizeof(struct flow_record) == 680, "flow_record: every byte is accounted for");

#endif
