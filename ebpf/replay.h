/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * replay.h - the kernel programs' own connections, exchanges and parsers as a host library:
 * what a socket's owner would have sent and received goes in, records come out.
 *
 * One engine per process and one thread; replay_reset() begins anew.
 */
#ifndef WIRESPAN_REPLAY_H
#define WIRESPAN_REPLAY_H

#include "flow.h"

/* A connection, seen from its local end. */
struct replay_conn {
	__u64 id;	  /* not 0; becomes flow_record.conn_id */
	__u32 tx_seq;	  /* sequence number of the first byte local sends, if fresh */
	__u32 rx_seq;	  /* and of the first it receives */
	__u16 family;	  /* enum flow_family */
	__u16 local_port; /* host order */
	__u16 remote_port;
	__u8 fresh; /* its first bytes are known: the SYN was seen */
	__u8 pad;
	__u8 local_addr[16]; /* network order; IPv4 in the first four bytes */
	__u8 remote_addr[16];
};

enum replay_end {
	REPLAY_FIN_SENT = 1,	 /* local will send no more */
	REPLAY_FIN_RECEIVED = 2, /* remote will send no more */
	REPLAY_RESET = 3,	 /* RST either way */
	REPLAY_CLOSED = 4,	 /* over, or the capture is: forget it */
};

/* What became of a stream: the first thing that went wrong with it, if any did. */
enum replay_outcome {
	REPLAY_WELL = 0,
	REPLAY_OTHER = 1,   /* the connection speaks something else: nothing of it is read */
	REPLAY_TUNNEL = 2,  /* it speaks something else from here on: 101, or 2xx to CONNECT */
	REPLAY_INVALID = 3, /* a message that its protocol does not allow */
	REPLAY_GAP = 4,	    /* unseen bytes where they mattered */
	REPLAY_ORPHAN = 5,  /* a response to no request */
	REPLAY_LEFT = 6,    /* left alone from here on: subscriptions, replication */
	REPLAY_ENCRYPTED = 7,
	REPLAY_COMPRESSED = 8,
};

struct replay_state {
	__u32 in_flight; /* exchanges begun and not ended */
	__u8 request;	 /* enum replay_outcome */
	__u8 response;
	__u8 protocol; /* enum flow_protocol; 0 where none is known, or the connection is gone */
	__u8 role;     /* enum flow_role */
};

void replay_reset(void);
/* Present at most so many fresh bytes at once to the parsers; 0: as many as in the kernel. */
void replay_window(__u32 bytes);
/* Returns 0, or -1 if there is no room. */
int replay_open(const struct replay_conn *conn);
/*
 * Local sent (tx) or received `len` bytes that stand at `seq`. Bytes seen already are passed
 * over; a gap before them counts as bytes unseen. at_ns: any clock, never going back.
 */
void replay_bytes(__u64 id, __u32 tx, __u32 seq, __u64 at_ns, const void *data, __u64 len);
/* Likewise, but the bytes themselves are not known (sendfile in the kernel's terms). */
void replay_unseen(__u64 id, __u32 tx, __u32 seq, __u64 at_ns, __u64 len);
void replay_end(__u64 id, __u32 how, __u64 at_ns);
void replay_state(__u64 id, struct replay_state *state);
/* Take up to `most` records out, oldest first; returns how many. */
__u32 replay_take(struct flow_record *out, __u32 most);
/* Counters by enum flow_loss and enum flow_count since the reset. */
__u64 replay_loss(__u32 which);
__u64 replay_count(__u32 which);

#endif
