/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * exchange.bpf.h - connections and the exchanges on them: recognise, pair requests with
 * responses in order, emit one record when an exchange is over, forget at close.
 *
 * A connection has a request stream and a response stream; which of them is sent and which
 * received makes this side its client or its server. Requests are numbered from 0. The one
 * that found no other in flight lives in conn.rec, those pipelined behind it in a map.
 */
#ifndef WIRESPAN_EXCHANGE_H
#define WIRESPAN_EXCHANGE_H

#include "filter.bpf.h"
#include "global.bpf.h"
#include "sock.bpf.h"

#define MAX_PIPELINED 1024  /* requests in flight that are accounted for when a connection ends */
#define STEPS_AT_ONCE 8	    /* parser steps without a look at the connection */
#define STEPS_FAST 32	    /* steps of one I/O that are taken in a plain loop */
#define STEPS_MOST 65536    /* and those in bpf_loop(): Linux 5.17 */
#define STEPS_OLD 1024	    /* or without it */
#define STREAMS_OLD 512	    /* streams of a connection that are looked for as it ends */
#define RING_WAKE (2 << 20) /* bytes waiting at which the reader is woken */
#define RING_LOOK 16	    /* records between two looks at that */
#define UNIX_PATH_AT 280    /* text up to here leaves room for a Unix socket's path */

/* The record of request `index`, or NULL if it found no room. */
static __always_inline struct flow_record *slot_of(struct conn *c, __u64 sk, __u32 index)
{
#ifdef OLD_KERNEL
	struct flow_record *r = index == c->inline_index ? &c->rec : NULL;

	(void)sk;
	asm volatile("" : "+r"(r)); /* the verifier must see it compared with NULL */
	return r;
#else
	struct pipelined_key key = { .sk = sk, .index = index };

	if (index == c->inline_index)
		return &c->rec;
	return bpf_map_lookup_elem(&pipelined, &key);
#endif
}

/*
 * A record that belongs to no exchange. Older verifiers follow each path by itself for each place
 * that a record can be at: there is one place only, that is known by a number.
 */
#ifdef OLD_KERNEL
#define is_spare(c, io, r) ((io)->place & 1)
static __always_inline struct flow_record *record_at(struct conn *c, struct io *io, __u32 spare)
{
	__u32 place;

	io->place = spare;
	barrier();
	place = *(volatile __u32 *)&io->place;
	return (void *)&c->rec + (__u64)(place & 1) * RECORD_PLACE;
}
#else
#define is_spare(c, io, r) ((r) == &(io)->spare)
#endif

static __always_inline struct stream_entry *stream_of(__u64 sk, __u32 id)
{
	struct stream_key key = { .sk = sk, .id = id };

	return bpf_map_lookup_elem(&streams, &key);
}

#include "shed.bpf.h"

#include "link.bpf.h"

/* Request `index` is over: its slot, and whom it counted for. */
GLOBAL_CONN(slot_free, (index), __u32 index)
{
	struct flow_record *r;

	r = cfg_link ? slot_of(c, sk, index) : NULL;
	if (r && r->flags & FLOW_FLAG_IN_HAND)
		link_served(sk, fate_index(index, fate_of(r)), exchange_id(r), r->request_tid,
			    r->calls);
	else if (r && r->parent && index == c->inline_index)
		link_calls(&c->cause, 0);
	if (index == c->inline_index)
		c->inline_index = ~0U;
#ifndef OLD_KERNEL
	else {
		struct pipelined_key key = { .sk = sk, .index = index };

		bpf_map_delete_elem(&pipelined, &key);
	}
#endif
	return 0;
}

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

/* The oldest exchange in flight is over. */
static __always_inline void answer(struct conn *c, __u64 sk, struct flow_record *r, __u8 end,
				   __u64 now)
{
	r->end = end;
	r->end_ns = now;
	r->response_body_bytes = c->t.resp.body_bytes;
	if (!r->request_end_ns) {
		if (end <= FLOW_END_UPGRADE) /* a whole response */
			r->flags |= FLOW_FLAG_EARLY;
		if (c->started - c->answered == 1)
			r->request_body_bytes = c->t.req.body_bytes;
	}
	if (c->t.sure)
		emit(c, sk, r);
	slot_free(c, sk, c->answered);
	c->answered++;
}

/*
 * End the oldest exchange in flight for the reason given. A response that was framed by the
 * close is whole if the side that sends it closed.
 */
GLOBAL_CONN(end_oldest, (end, now), __u32 end, __u64 now)
{
	struct flow_record *r;

	/* what has not ended its head is no request yet */
	if (c->started - c->answered == 1 && c->t.req.head) {
		slot_free(c, sk, c->answered);
		c->answered++;
		return 0;
	}
	r = slot_of(c, sk, c->answered);
	if (!r) {
		c->answered++;
		return 0;
	}
	if (r->flags & FLOW_FLAG_ONE_WAY) {
		answer(c, sk, r, FLOW_END_RESPONSE, r->request_end_ns);
		return 0;
	}
	if (!r->first_byte_ns)
		c->t.resp.body_bytes = 0; /* of the one before */
	if (r->first_byte_ns && c->t.resp.skip == SKIP_ALL &&
	    (end == FLOW_END_PEER || (end == FLOW_END_LOCAL && c->role == FLOW_SERVER)))
		answer(c, sk, r, FLOW_END_EOF, r->end_ns); /* kept at the last byte seen */
	else
		answer(c, sk, r, end, now);
	return 0;
}

static __always_inline void stream_lost(struct stream *s)
{
	s->state = STATE_SYNC;
	s->skip = 0;
	s->carry_len = 0;
	s->head = 0;
}

/* A message begins: nothing of the one before counts. */
static __always_inline void stream_begin(struct stream *s)
{
	s->number = 0;
	s->length = 0;
	s->body_bytes = 0;
	s->flags = 0;
	s->digits = 0;
	s->next = 0;
	s->head = 1;
	s->state = STATE_START + 1;
	__builtin_memset(s->own, 0, sizeof(s->own));
}

/* No more responses will come: end all that is in flight. */
GLOBAL_CONN(end_all, (end, now), __u32 end, __u64 now)
{
	__u32 i;

	for (i = 0; i < MAX_PIPELINED && c->answered != c->started; i++)
		end_oldest(c, sk, end, now);
	stream_lost(&c->t.resp);
	return 0;
}

/* What user space keeps of a connection it can forget. */
GLOBAL_CONN(emit_closed, ())
{
	struct flow_record *r = &c->rec;

	r->kind = FLOW_CLOSED;
	r->text_len = 0;
	hand_over(r);
	return 0;
}

/* The state of a socket, if it has any and the address isn't another socket's by now. */
static __always_inline struct conn *conn_of(__u64 sk, __u64 ino)
{
	struct conn *c = bpf_map_lookup_elem(&conns, &sk);

	return c && c->ino == ino ? c : NULL;
}

static __always_inline void forget(struct conn *c, __u64 sk)
{
	if (c->confirmed) {
		count(FLOW_COUNT_CONNS_FREED, 1);
		if (c->rec.protocol != FLOW_PROTO_HTTP1)
			emit_closed(c, sk);
	}
	bpf_map_delete_elem(&conns, &sk);
}

/* HTTP/2: no stream's end is certain any more. process() ends them all. */
static __always_inline void streams_lost(struct conn *c, struct io *io)
{
	io->lost = 1;
	c->lost |= io->request ? 1 : 2;
	stream_lost(io->request ? &c->t.req : &c->t.resp);
}

/* Bytes went by unseen where they mattered. */
GLOBAL_CONN_IO(lost_track, (reason), __u32 reason)
{
	lose(reason);
	if (c->rec.protocol == FLOW_PROTO_HTTP2) {
		streams_lost(c, io);
		return 0;
	}
	if (io->request) {
		if (c->t.req.head && c->started != c->answered) {
			c->started--;
			slot_free(c, io->sk, c->started);
			if (c->started == c->answered)
				stream_lost(&c->t.resp); /* it may have been answered in part */
		}
		stream_lost(&c->t.req);
	} else {
		end_all(c, io->sk, FLOW_END_GAP, io->end_ns);
	}
	return 0;
}

/* Drop what is in flight: none of it is an exchange. */
GLOBAL_CONN(drop_all, ())
{
	__u32 i;

	for (i = 0; i < MAX_PIPELINED && c->answered != c->started; i++)
		slot_free(c, sk, c->answered++);
	return 0;
}

/* Forget a connection that turned out to be none of ours, or not recognisable yet. */
static __always_inline void forget_all(struct conn *c, struct io *io)
{
	drop_all(c, io->sk);
	forget(c, io->sk);
	io->gone = 1;
}

/* This connection is none of ours from here on. */
static __always_inline void disown(struct conn *c, struct io *io)
{
	__u64 sk = io->sk, ino = io->ino;

	forget_all(c, io);
	bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
}

/* HTTP/1 handed the connection over, may be to HTTP/2 (h2c, RFC 7540 section 3.2). */
static __always_inline void upgrade(struct conn *c, struct io *io)
{
	drop_all(c, io->sk);
	__builtin_memset(&c->t, 0, sizeof(c->t));
	c->rec.protocol = 0;
	c->upgraded = 1;
	c->confirmed = 0;
	count(FLOW_COUNT_CONNS_FREED, 1);
	count(FLOW_COUNT_UPGRADED, 1);
}

/*
 * A request begins: did an answer go by unseen? The place in the response stream tells, unless
 * I/O is under way that will yet be parsed: a send left to its exit, or the receive of an
 * answer by another thread than the one that sends requests ahead.
 */
static __always_inline void notice_unseen_answer(struct conn *c, struct io *io)
{
	__u32 at;

	if (!c->is_tcp || c->deferred || c->t.resp.skip)
		return;
	if (io->tx && c->started != c->answered && c->started - c->answered < MAX_PIPELINED)
		return;
	at = io->tx ? sock_copied_seq(io) : sock_write_seq(io);
	if ((__s32)(at - (io->tx ? c->rx_seq : c->tx_seq)) <= 0)
		return;
	lose(FLOW_LOSS_GAP);
	end_all(c, io->sk, FLOW_END_GAP, io->start_ns);
	if (io->tx)
		c->rx_seq = at;
	else
		c->tx_seq = at;
}

/* Whose this I/O is. */
static __always_inline void tell_process(struct io *io, struct flow_record *r)
{
	void *task = (void *)bpf_get_current_task();

	r->tgid = io->pid_tgid >> 32;
	r->task_start_ns = LOAD(struct task_struct, LOAD(struct task_struct, task, group_leader),
				start_boottime);
	task_comm(r->comm);
}

/* And its cgroup, which is asked for only if it isn't the one that is known already. */
static __always_inline void tell_cgroup(struct conn *c, struct flow_record *r)
{
	__u64 groups = task_cgroups();

	if (!groups || groups != c->cgroups) {
		c->cgroup_id = bpf_get_current_cgroup_id();
		c->cgroups = groups;
	}
	r->cgroup_id = c->cgroup_id;
}

static __always_inline void begin_request(struct conn *c, struct io *io)
{
	struct flow_record *r = &c->rec;
	__u32 flags = c->rec.flags & FLOW_FLAG_IDS_PRIVATE;

	if (io->request) { /* and not a server's greeting */
		notice_unseen_answer(c, io);
		stream_begin(&c->t.req);
	}
	if (c->started == c->answered && c->t.resp.state == STATE_SYNC)
		c->t.resp.state = STATE_START;
	if (c->t.old)
		flags |= FLOW_FLAG_OLD;
	if (c->started != c->answered)
		flags |= FLOW_FLAG_PIPELINED;
#ifdef OLD_KERNEL
	if (c->inline_index != ~0U)
		lose(FLOW_LOSS_PIPELINE_FULL);
	r = record_at(c, io, c->inline_index != ~0U);
	if (c->inline_index == ~0U)
		c->inline_index = c->started;
#else
	if (c->inline_index == ~0U) {
		c->inline_index = c->started;
	} else {
		struct pipelined_key key = { .sk = io->sk, .index = c->started };
		/* not `r`: on 6.1 no pointer that a function was given is a map's value */
		__u64 sk = io->sk;
		struct conn *own = bpf_map_lookup_elem(&conns, &sk);

		if (own && c->started - c->answered < MAX_PIPELINED)
			bpf_map_update_elem(&pipelined, &key, &own->rec, BPF_ANY);
		r = bpf_map_lookup_elem(&pipelined, &key);
		if (!r) {
			lose(FLOW_LOSS_PIPELINE_FULL);
			r = &io->spare;
		}
	}
#endif
	c->started++;
	r->start_ns = c->first_ns ? c->first_ns : io->start_ns;
	c->first_ns = 0;
	r->request_end_ns = 0;
	r->first_byte_ns = 0;
	r->end_ns = 0;
	r->request_body_bytes = 0;
	r->response_body_bytes = 0;
	r->rows_returned = 0;
	r->rows_affected = 0;
	r->request_seq = io->seq - (io->win.end - io->win.pos);
	r->response_seq = io->tx ? c->rx_seq : c->tx_seq; /* until it comes */
	r->status = 0;
	r->code = 0;
	r->stream_id = 0;
	r->request_messages = 0;
	r->response_messages = 0;
	r->method = 0;
	r->flags = flags;
	r->truncated = 0;
	r->text_len = 0;
	r->parent = 0;
	r->evidence = 0;
	r->calls = 0;
	r->level = 0;
	r->lot = 0;
	r->request_tid = (__u32)io->pid_tgid;
	r->response_tid = 0;
	r->kind = FLOW_EXCHANGE;
	r->end = 0;
	r->version = 0;
	tell_process(io, r);
	tell_cgroup(c, r);
	__builtin_memset(r->fields, 0, sizeof(r->fields));
	if (c->role == FLOW_CLIENT && r == &c->rec) {
		r->evidence = link_call(io, c->rec.protocol, 0, exchange_id(r));
		if (r->evidence) {
			r->parent = io->cause.id;
			c->cause = io->cause;
		}
	}
	if (cfg_shed) {
		__u32 fate = fate_begin(io, r->request_seq, c->base, c->role == FLOW_CLIENT,
					r->parent != 0);

		r->level = fate;
		r->lot = fate >> 8;
	}
}

static __always_inline void begin_response(struct conn *c, struct io *io)
{
	struct flow_record *r;
	int i;

	for (i = 0; i < STRIDE && c->answered != c->started; i++) {
		r = slot_of(c, io->sk, c->answered);
		if (!r || !(r->flags & FLOW_FLAG_ONE_WAY))
			break;
		answer(c, io->sk, r, FLOW_END_RESPONSE, r->request_end_ns);
	}
	if (c->answered == c->started) {
		if (c->t.sure)
			lose(FLOW_LOSS_ORPHAN);
		stream_lost(&c->t.resp);
		return;
	}
	stream_begin(&c->t.resp);
	r = slot_of(c, io->sk, c->answered);
	if (!r)
		return;
	if (!r->first_byte_ns) {
		r->first_byte_ns = io->start_ns;
		r->response_seq = io->seq - (io->win.end - io->win.pos);
		r->response_tid = (__u32)io->pid_tgid;
	}
	if (c->role == FLOW_CLIENT && r == &c->rec) {
		if (r->parent)
			link_heard(io, &c->cause);
		else if (r->evidence == FLOW_EVIDENCE_WAKEUP && !(r->level & FATE_SHED))
			link_answered(io, exchange_id(r));
	}
}

/* A server has read the head of a request. */
static __always_inline void serve(struct conn *c, struct io *io, struct flow_record *r)
{
	if (c->role != FLOW_SERVER || c->rec.protocol != FLOW_PROTO_HTTP1 || is_spare(c, io, r) ||
	    r->flags & FLOW_FLAG_IN_HAND)
		return;
	r->request_tid = (__u32)io->pid_tgid;
	if (link_serve(io, fate_index(c->started - 1, fate_of(r)), exchange_id(r),
		       c->started - c->answered))
		r->flags |= FLOW_FLAG_IN_HAND;
}

static __always_inline void end_request(struct conn *c, struct io *io)
{
	__u32 index = c->started - 1;
	struct flow_record *r;

	if (c->answered == c->started) /* answered before it ended */
		return;
	r = slot_of(c, io->sk, index);
	if (!r)
		return;
	r->request_end_ns = io->end_ns;
	r->request_body_bytes = c->t.req.body_bytes;
	c->t.req.head = 0;
	serve(c, io, r);
}

/* A request that gets no response: it is over if none is in flight before it. */
static __always_inline void end_alone(struct conn *c, struct io *io)
{
	struct flow_record *r = slot_of(c, io->sk, c->started - 1);

	end_request(c, io);
	if (!r)
		return;
	r->flags |= FLOW_FLAG_ONE_WAY;
	if (c->started - c->answered == 1) {
		c->t.resp.body_bytes = 0;
		answer(c, io->sk, r, FLOW_END_RESPONSE, io->end_ns);
	}
}

/*
 * The server speaks first: an exchange begins with its greeting, that the connecting of both
 * sides belongs to.
 */
static __always_inline void open_exchange(struct conn *c, struct io *io)
{
	c->t.old = 0;
	begin_request(c, io);
	begin_response(c, io);
	c->rec.request_seq = io->tx ? c->rx_seq : c->tx_seq;
}

static __always_inline void end_response(struct conn *c, struct io *io, __u8 end)
{
	struct flow_record *r;

	if (c->answered == c->started)
		return;
	r = slot_of(c, io->sk, c->answered);
	if (r)
		answer(c, io->sk, r, end, io->end_ns);
	else
		c->answered++;
}

/* It looked like a protocol of ours at first, and was something else. */
static __always_inline void mistaken(struct conn *c, struct io *io)
{
	if (!c->upgraded && !c->fresh) {
		forget_all(c, io);
		return;
	}
	if (!c->upgraded)
		count(FLOW_COUNT_OTHER, 1);
	disown(c, io);
}

static __always_inline void invalid(struct conn *c, struct io *io)
{
	if (!c->t.sure) {
		mistaken(c, io);
		return;
	}
	if (io->request) {
		lost_track(c, io, FLOW_LOSS_INVALID);
	} else {
		lose(FLOW_LOSS_INVALID);
		end_all(c, io->sk, FLOW_END_INVALID, io->end_ns);
	}
}

/*
 * The record that a stream's bytes are of. One that is nobody's holds what another connection left
 * in it: the method, which tells a parser that a response has no content, is none.
 */
static __always_inline struct flow_record *record_of(struct conn *c, struct io *io)
{
	struct flow_record *r = NULL;

	if (c->started != c->answered)
		r = slot_of(c, io->sk, io->request ? c->started - 1 : c->answered);
#ifdef OLD_KERNEL
	if (!r && c->rec.protocol == FLOW_PROTO_HTTP1)
		c->spare.method = 0;
	return record_at(c, io, !r);
#else
	if (!r && c->rec.protocol == FLOW_PROTO_HTTP1)
		io->spare.method = 0;
	return r ? r : &io->spare;
#endif
}

/* One parser step of each protocol, as functions that the verifier looks at by themselves. */
#ifndef OLD_KERNEL
#define STEP_FUNCTION(id, name)                                                                    \
	__noinline int name##_one(struct conn *c, struct io *io, struct flow_record *r)            \
	{                                                                                          \
		if (!c || !io || !r)                                                               \
			return STEP_INVALID;                                                       \
		return name##_step(&c->t, io->request ? &c->t.req : &c->t.resp, r, &io->win);      \
	}
#else
#define STEP_FUNCTION(id, name)                                                                    \
	GLOBAL_CONN_IO(name##_again, ())                                                           \
	{                                                                                          \
		return name##_step(&c->t, io->request ? &c->t.req : &c->t.resp, record_of(c, io),  \
				   &io->win);                                                      \
	}                                                                                          \
	static __always_inline int name##_one(struct conn *c, struct io *io,                       \
					      struct flow_record *r)                               \
	{                                                                                          \
		(void)r;                                                                           \
		return name##_again(c, io);                                                        \
	}
#endif
PROTOCOLS(STEP_FUNCTION)

static __always_inline int step(struct conn *c, struct io *io, struct flow_record *r)
{
	switch (c->rec.protocol) {
#define STEP_CASE(id, name)                                                                        \
	case id:                                                                                   \
		return name##_one(c, io, r);
		PROTOCOLS(STEP_CASE)
	}
	return STEP_INVALID;
}

/* Parser steps up to one that the connection must hear of. */
static __always_inline int steps(struct conn *c, struct stream *s, struct io *io,
				 struct flow_record *r)
{
	int result = STEP_INVALID, i;

	for (i = 0; i < STEPS_AT_ONCE; i++) {
		result = step(c, io, r);
		if (result != STEP_AGAIN || s->skip)
			return result;
	}
	/* what needs no further byte does not wait for one */
	if (io->win.pos >= io->win.end)
		result = step(c, io, r);
	return result;
}

static __always_inline int passed_one(struct conn *c, struct stream *s, struct flow_record *r)
{
	switch (c->rec.protocol) {
#define PASSED_CASE(id, name)                                                                      \
	case id:                                                                                   \
		return name##_passed(&c->t, s, r);
		PROTOCOLS(PASSED_CASE)
	}
	return STEP_INVALID;
}

/* What a step came to, beside STEP_BEGIN and the windows. Returns 0 when this I/O is done with. */
static __always_inline int heard(struct conn *c, struct io *io, struct stream *s,
				 struct flow_record *r, int result, __u8 end)
{
	switch (result) {
	case STEP_OPEN:
		open_exchange(c, io);
		return 1;
	case STEP_FULL:
		if (is_spare(c, io, r))
			part_begin(r); /* of no exchange */
		else
			emit_part(r);
		return 1;
	case STEP_END:
		if (io->request)
			end_request(c, io);
		else
			end_response(c, io, end);
		return 1;
	case STEP_ALONE:
		end_alone(c, io);
		return 1;
	case STEP_HEAD_END:
		if (s->skip == SKIP_ALL)
			r->end_ns = io->end_ns; /* if nothing follows */
		if (io->request)
			serve(c, io, r);
		return 1;
	case STEP_TUNNEL:
		end_response(c, io, FLOW_END_UPGRADE);
		upgrade(c, io);
		return !io->gone;
	case STEP_LEAVE:
		count(FLOW_COUNT_LEFT, 1);
		disown(c, io);
		return 0;
	case STEP_ENCRYPTED:
		count(FLOW_COUNT_ENCRYPTED, 1);
		disown(c, io);
		return 0;
	case STEP_COMPRESSED:
		count(FLOW_COUNT_COMPRESSED, 1);
		disown(c, io);
		return 0;
	case STEP_INVALID:
		invalid(c, io);
		return 1;
	}
	return 1;
}

/* n bytes of content went by. Returns what that comes to. */
static __always_inline int passed(struct conn *c, struct io *io, struct stream *s, __u64 n)
{
	struct flow_record *r;

	s->body_bytes += n;
	if (s->skip == SKIP_ALL) {
		r = record_of(c, io);
		r->end_ns = io->end_ns;
		return STEP_AGAIN;
	}
	s->skip -= n;
	if (s->skip)
		return STEP_AGAIN;
	return passed_one(c, s, record_of(c, io));
}

/* Pass over content in the window or, unread, in the user's buffer: how much. 0: none left. */
static __always_inline __u64 pass_bytes(struct io *io, __u64 most)
{
	__u64 n = io->win.end - io->win.pos;

	if (n) {
		if (n > most)
			n = most;
		io->win.pos += n;
		return n;
	}
	return io->left ? io_skip(io, most) : 0;
}

/* Are there pieces yet to come, behind an empty one? */
static __always_inline int more_pieces(const struct io *io)
{
	return io->left && (io->batch_at < io->batch_n || io->iov_left);
}

/* Present fresh bytes if the window is empty. Returns 1 if there are any, else 0. */
static __always_inline int present(struct conn *c, struct io *io, struct stream *s)
{
	if (io->win.pos < io->win.end)
		return 1;
	if (!io->left)
		return 0;
	if (io_load(io, s)) {
		if (io->early) {
			/* pages not there yet: the call itself will bring them in */
			io->unread = 1;
			return 0;
		}
		lost_track(c, io, FLOW_LOSS_UNREADABLE);
		io_skip(io, io->left);
		return 0;
	}
	return 1;
}

/* Count a connection once no other protocol can be meant. */
static __always_inline void confirm(struct conn *c)
{
	if (c->t.sure && !c->confirmed) {
		c->confirmed = 1;
		count(FLOW_COUNT_CONNS, 1);
	}
}

#include "streams.bpf.h"

/* No more responses will come, whatever the protocol. */
static __always_inline void end_exchanges(struct conn *c, __u64 sk, __u32 end, __u64 now)
{
	if (c->rec.protocol == FLOW_PROTO_HTTP2)
		streams_end(c, sk, end, now);
	else
		end_all(c, sk, end, now);
}

/* Each detector as a function that the verifier looks at by itself. */
#define DETECT_FUNCTION(id, name)                                                                  \
	GLOBAL_IO(name##_found, ())                                                                \
	{                                                                                          \
		return name##_detect(&io->win, io->left + (io->win.end - io->win.pos), io->fresh); \
	}
DETECT_FUNCTION(FLOW_PROTO_HTTP2, http2)
PROTOCOLS(DETECT_FUNCTION)

/* What do these first bytes speak? enum flow_protocol << 8 | enum detect. */
GLOBAL_IO(detect, (fresh), __u32 fresh)
{
	int found;

	io->fresh = fresh;
#define DETECT_CASE(id, name)                                                                      \
	found = name##_found(io);                                                                  \
	if (found)                                                                                 \
		return id << 8 | found;
	DETECT_CASE(FLOW_PROTO_HTTP2, http2)
	PROTOCOLS(DETECT_CASE)
	return DETECT_NO;
}

/* A connection's protocol is found out: who is who? */
static __always_inline void decided(struct conn *c, struct io *io, int found)
{
	io->request = (found & 0xff) == DETECT_REQUEST;
	c->role = io->tx == io->request ? FLOW_CLIENT : FLOW_SERVER;
	c->rec.protocol = found >> 8;
	c->rec.role = c->role;
	c->rec.kind = FLOW_EXCHANGE;
	__builtin_memset(&c->t, 0, sizeof(c->t));
	c->t.resp.response = 1;
	c->t.old = !io->fresh; /* as the detector was told */
	c->t.req.state = io->request || !c->t.old ? STATE_START : STATE_SYNC;
	/* a response is waited for when a request begins; HTTP/2 servers need none to begin */
	if (!io->request || (c->rec.protocol == FLOW_PROTO_HTTP2 && !c->t.old))
		c->t.resp.state = STATE_START;
	c->upgraded = 0;
	if (c->is_tcp)
		c->base = sock_first_seq(io, c->role == FLOW_SERVER);
}

/* A connection whose first bytes were too few to tell what it speaks. */
static __always_inline int decide(struct conn *c, struct io *io)
{
	struct stream *s = io->tx ? &c->t.req : &c->t.resp; /* for the carry alone */
	int found;

	if (!present(c, io, s))
		return 0;
	found = detect(io, c->fresh || c->upgraded || !c->is_tcp);
	if (!found && !c->is_tcp && !c->upgraded) /* as recognise() */
		found = detect(io, 0);
	if (found && c->upgraded && found >> 8 != FLOW_PROTO_HTTP2)
		found = DETECT_NO;
	if ((found & 0xff) == DETECT_MORE && window_left(&io->win) < CARRY) {
		io_carry(io, s);
		return 1;
	}
	if (!found || (found & 0xff) == DETECT_MORE) {
		mistaken(c, io);
		return 0;
	}
	decided(c, io, found);
	return 1;
}

/* A lost stream takes up again where a buffer begins like a message of its protocol. */
static __always_inline int resync(struct conn *c, struct io *io, struct stream *s)
{
	int found;

	if ((!io->request && c->rec.protocol != FLOW_PROTO_HTTP2) || io->win.pos != io->win.end)
		goto drop;
	if (!RESYNC || !present(c, io, s))
		goto drop;
	if (c->rec.protocol == FLOW_PROTO_HTTP2) {
		if (window_left(&io->win) < H2_HEADER || !h2_plausible(&io->win, io->win.pos))
			goto drop;
	} else {
		found = detect(io, 0);
		if (found >> 8 != c->rec.protocol || (found & 0xff) == DETECT_RESPONSE)
			goto drop;
	}
	s->state = STATE_START;
	return 1;
drop:
	io_empty_window(io);
	if (io->left)
		io_skip(io, io->left);
	return 0;
}

/* Take one step on the connection. Returns 0 when this I/O is done with. */
GLOBAL_CONN_IO(advance, ())
{
	struct stream *s;
	int result;

	if (io->gone)
		return 0;
	if (!c->rec.protocol)
		return decide(c, io);
	s = io->request ? &c->t.req : &c->t.resp;
	if (s->state == STATE_SYNC)
		return resync(c, io, s);
	if (c->rec.protocol == FLOW_PROTO_HTTP2)
		return streams_advance(c, io);
	c->t.in_flight = c->started - c->answered;
	if (s->skip) {
		__u64 n = pass_bytes(io, s->skip);

		if (!n) /* an empty piece, or no piece where there should be one */
			return more_pieces(io);
		result = passed(c, io, s, n);
	} else {
		if (!present(c, io, s))
			return 0;
		if (io->win.pos >= io->win.end) /* an empty piece */
			return 1;
		result = steps(c, s, io, record_of(c, io));
		if (result == STEP_BEGIN) {
			if (io->request)
				begin_request(c, io);
			else
				begin_response(c, io);
			if (s->state == STATE_SYNC) /* a response to nothing */
				return 1;
			c->t.in_flight = c->started - c->answered;
			result = steps(c, s, io, record_of(c, io));
		}
	}
	confirm(c);
	if (result == STEP_MORE)
		io_carry(io, s);
	else if (!heard(c, io, s, record_of(c, io), result, FLOW_END_RESPONSE))
		return 0;
	return io->left || io->win.pos < io->win.end;
}

#endif
