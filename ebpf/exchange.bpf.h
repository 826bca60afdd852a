/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * exchange.bpf.h - the exchanges on a connection: pair requests with responses in order, emit
 * one record when an exchange is over, forget at close.
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

#define MAX_PIPELINED 1024 /* requests in flight that are accounted for when a connection ends */

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

#include "emit.bpf.h"

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

#endif
