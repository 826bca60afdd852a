/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * parsers.h - the kernel's parsers as a host library: a whole connection goes in as
 * segments, the exchanges on it come out as the records the kernel would emit.
 */
#ifndef WIRESPAN_HOST_PARSERS_H
#define WIRESPAN_HOST_PARSERS_H

#include "../../ebpf/protocols/http1.h"

enum host_kind {
	HOST_BYTES = 0,	 /* seen by the tracer */
	HOST_UNSEEN = 1, /* sent past it, as sendfile does: only their number is known */
	HOST_CLOSE = 2,	 /* the sender of this direction closed the connection */
};

/* What became of a stream: the first thing that went wrong with it, if any did. */
enum host_outcome {
	HOST_WELL = 0,
	HOST_OTHER = 1,	  /* the connection speaks something else: nothing of it is read */
	HOST_TUNNEL = 2,  /* it speaks something else from here on: 101, or 2xx to CONNECT */
	HOST_INVALID = 3, /* a message that HTTP/1 does not allow */
	HOST_GAP = 4,	  /* unseen bytes where they mattered */
	HOST_ORPHAN = 5,  /* a response to no request */
	HOST_BROKEN = 6,  /* the parser itself is wrong: no progress, or too much left over */
};

enum host_limit {
	HOST_WINDOW = H1_WINDOW, /* most fresh bytes the kernel looks at in one go */
};

struct host_segment {
	__u64 len;
	__u32 at; /* time, kept in the records as ns */
	__u8 response;
	__u8 kind; /* enum host_kind */
	__u16 pad;
};

struct host_options {
	__u32 window; /* most fresh bytes presented at once, 1 to H1_WINDOW */
	__u8 role;    /* enum flow_role: which side looks on */
	__u8 resync;  /* a lost request stream takes up again at a segment, as in the kernel */
	__u16 pad;
};

struct host_result {
	__u32 records;	  /* exchanges that ended */
	__u32 in_flight;  /* requests begun and not ended by a response or a close */
	__u32 most_steps; /* most parser steps that one segment took */
	__u8 request;	  /* enum host_outcome */
	__u8 response;
	__u8 request_state; /* enum h1_state at the end */
	__u8 response_state;
};

/*
 * Run a connection. `bytes` holds the bytes of all HOST_BYTES segments one behind the other.
 * The first `most` records are stored in `out`; the result says how many there were.
 */
void host_run(const __u8 *bytes, const struct host_segment *segments, __u32 n,
	      const struct host_options *options, struct flow_record *out, __u32 most,
	      struct host_result *result);

/* Take one step of a stream over n <= H1_WINDOW fresh bytes; `pos` says how far it came. */
int host_step(struct h1_stream *s, struct flow_record *r, const __u8 *bytes, __u32 n, __u32 *pos);

#endif
