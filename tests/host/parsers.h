/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * parsers.h - the kernel's parsers as a host library: a whole connection goes in as
 * segments, the exchanges on it come out as the records the kernel would emit.
 */
#ifndef WIRESPAN_HOST_PARSERS_H
#define WIRESPAN_HOST_PARSERS_H

#include "../../ebpf/protocols/parser.h"
#include "../../ebpf/replay.h"

enum host_kind {
	HOST_BYTES = 0,	 /* seen by the tracer */
	HOST_UNSEEN = 1, /* sent past it, as sendfile does: only their number is known */
	HOST_CLOSE = 2,	 /* the sender of this direction closed the connection */
};

enum host_limit {
	HOST_WINDOW = WINDOW, /* most fresh bytes the kernel looks at in one go */
};

struct host_segment {
	__u64 len;
	__u32 at; /* time, kept in the records as ns */
	__u8 response;
	__u8 kind; /* enum host_kind */
	__u16 pad;
};

struct host_options {
	__u32 window; /* most fresh bytes presented at once, 1 to WINDOW */
	__u8 role;    /* enum flow_role: which side looks on */
	__u8 resync;  /* a lost stream takes up again at a segment, as in the kernel */
	__u8 old;     /* the connection is older than the tracer */
	__u8 pad;
};

struct host_result {
	__u32 records;	 /* that were handed over */
	__u32 in_flight; /* requests begun and not ended by a response or a close */
	__u8 request;	 /* enum replay_outcome */
	__u8 response;
	__u8 protocol; /* enum flow_protocol; 0: none, or given up */
	__u8 pad;
};

/*
 * Run a connection. `bytes` holds the bytes of all HOST_BYTES segments one behind the other.
 * The first `most` records are stored in `out`; the result says how many there were.
 */
void host_run(const __u8 *bytes, const struct host_segment *segments, __u32 n,
	      const struct host_options *options, struct flow_record *out, __u32 most,
	      struct host_result *result);

/* What the first n <= WINDOW of `total` bytes speak: enum flow_protocol << 8 | enum detect. */
__u32 host_detect(const __u8 *bytes, __u32 n, __u64 total, __u32 fresh);

#endif
