/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * emit.bpf.h - records are handed to user space. Part of exchange.bpf.h.
 */
#ifndef WIRESPAN_EMIT_H
#define WIRESPAN_EMIT_H

#include "maps.bpf.h"

#define RING_WAKE (2 << 20) /* bytes waiting at which the reader is woken */
#define RING_LOOK 16	    /* records between two looks at that */
#define UNIX_PATH_AT 280    /* text up to here leaves room for a Unix socket's path */

/*
 * How a record is handed over. The reader polls by time; it is woken only if it lags, by an exec
 * (exec_flags()), and where it sleeps because nothing came for a while.
 */
static __always_inline __u64 ring_flags(void)
{
	struct io *io = io_get();

	if (ring_awaited) {
		ring_awaited = 0;
		return BPF_RB_FORCE_WAKEUP;
	}
	/* to look costs as much as to hand over, so not each time */
	if (!io || io->handed_over++ % RING_LOOK)
		return BPF_RB_NO_WAKEUP;
	/* about once as the mark is passed: a wake-up costs an interrupt of several microseconds */
	if (bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) - RING_WAKE <
	    4 * RING_LOOK * sizeof(struct flow_record))
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

/*
 * Hand a record to user space, of its text only what is in use: what is copied costs more than
 * all else here, and what the ring holds beyond it means nothing. flags: BPF_RB_*. Returns 0 if it
 * is lost.
 */
static __always_inline int hand_over_by(const struct flow_record *r, __u64 flags)
{
	struct flow_record *to;
	__u32 n, i;

	to = bpf_ringbuf_reserve(&records, sizeof(*to), 0);
	if (!to) {
		lose(r->kind == FLOW_EXCHANGE ? FLOW_LOSS_RING_FULL : FLOW_LOSS_NOTE_FULL);
		return 0;
	}
	__builtin_memcpy(to, r, __builtin_offsetof(struct flow_record, text));
	n = r->text_len;
	for (i = 0; i < FLOW_TEXT_BYTES / 8; i++) {
		if (8 * i >= n)
			break;
		((struct word *)to->text)[i].v = ((const struct word *)r->text)[i].v;
		barrier(); /* no call of memcpy() */
	}
	bpf_ringbuf_submit(to, flags);
	return 1;
}

static __always_inline int hand_over(const struct flow_record *r)
{
	return hand_over_by(r, ring_flags());
}

/* The strings so far are over with. */
static __always_inline void part_begin(struct flow_record *r)
{
	r->text_len = 0;
	__builtin_memset(r->fields, 0, sizeof(r->fields));
}

/* The strings of an exchange fill its record: hand them over ahead of it. */
static __always_inline void emit_part(struct flow_record *r)
{
	r->kind = FLOW_PART;
	r->version++; /* how many parts there are: user space sees it if one is lost */
	if (!(r->level & FATE_SHED))
		hand_over(r);
	r->kind = FLOW_EXCHANGE;
	part_begin(r);
}

/* Hand a whole exchange to user space. */
static __always_inline int emit_whole(struct flow_record *r, __u64 sk)
{
	if (r->level & FATE_SHED) {
		lose(FLOW_LOSS_SHED);
		return 0;
	}
	if (r->family == AF_UNIX) {
		if (r->protocol != FLOW_PROTO_HTTP1 && r->text_len > UNIX_PATH_AT)
			emit_part(r);
		sock_unix_path((void *)sk, r);
	}
	if (r->protocol == FLOW_PROTO_HTTP1 && r->method == FLOW_METHOD_OTHER)
		r->text_len = H1_METHOD_OFF + H1_METHOD_MAX; /* its text lies at the end */
	if (hand_over(r))
		count(FLOW_COUNT_EXCHANGES, 1);
	return 0;
}

/* `r`: the record of the oldest one in flight. */
#ifdef OLD_KERNEL
GLOBAL_CONN(emit_oldest, ())
{
	struct flow_record *r = slot_of(c, sk, c->answered);

	return r ? emit_whole(r, sk) : 0;
}
#define emit(c, sk, r) emit_oldest(c, sk)
#else
__noinline int emit_record(struct flow_record *r, __u64 sk)
{
	return r ? emit_whole(r, sk) : 0;
}
#define emit(c, sk, r) emit_record(r, sk)
#endif

#endif
