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
#include "sock.bpf.h"

#define MAX_PIPELINED 256   /* requests in flight that are accounted for when a connection ends */
#define STEPS_AT_ONCE 8	    /* parser steps without a look at the connection */
#define STEPS_FAST 32	    /* steps of one I/O that are taken in a plain loop */
#define STEPS_MOST 65536    /* and those in bpf_loop(): Linux 5.17 */
#define STEPS_OLD 1024	    /* or without it */
#define RING_WAKE (2 << 20) /* bytes waiting at which the reader is woken */

static __always_inline int in_head(const struct h1_stream *s)
{
	return s->state >= H1_METHOD && s->state <= H1_LINE && s->next != H1_CHUNK &&
	       s->next != H1_TRAILER;
}

/* The record of request `index`, or NULL if it found no room. */
static __always_inline struct flow_record *slot_of(struct conn *c, __u64 sk, __u32 index)
{
	struct pipelined_key key = { .sk = sk, .index = index };

	if (index == c->inline_index)
		return &c->rec;
	return bpf_map_lookup_elem(&pipelined, &key);
}

static __always_inline void slot_free(struct conn *c, __u64 sk, __u32 index)
{
	struct pipelined_key key = { .sk = sk, .index = index };

	if (index == c->inline_index)
		c->inline_index = ~0U;
	else
		bpf_map_delete_elem(&pipelined, &key);
}

/*
 * The functions that are __noinline and not static are verified once each, by themselves,
 * whoever calls them (Linux kernel commit 51c39bb1d5d1, in v5.6): this keeps loading quick.
 */

/* Hand a record to user space. The reader polls by time; it is woken only if it lags. */
__noinline int emit(struct flow_record *r, __u64 sk)
{
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (!r)
		return 0;
	if (r->family == AF_UNIX)
		sock_unix_path((void *)sk, r);
	if (r->method == FLOW_METHOD_OTHER)
		r->text_len = H1_METHOD_OFF + H1_METHOD_MAX; /* its text lies at the end */
	/* once as the mark is passed: a wake-up costs an interrupt of several microseconds */
	if (bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) - RING_WAKE < 2 * sizeof(*r))
		flags = BPF_RB_FORCE_WAKEUP;
	if (bpf_ringbuf_output(&records, r, sizeof(*r), flags))
		lose(FLOW_LOSS_RING_FULL);
	else
		count(FLOW_COUNT_EXCHANGES, 1);
	return 0;
}

/* The oldest exchange in flight is over. */
static __always_inline void answer(struct conn *c, __u64 sk, struct flow_record *r, __u8 end,
				   __u64 now)
{
	r->end = end;
	r->end_ns = now;
	r->response_body_bytes = c->resp.body_bytes;
	if (!r->request_end_ns) {
		if (end <= FLOW_END_UPGRADE) /* a whole response */
			r->flags |= FLOW_FLAG_EARLY;
		if (c->started - c->answered == 1)
			r->request_body_bytes = c->req.body_bytes;
	}
	emit(r, sk);
	slot_free(c, sk, c->answered);
	c->answered++;
}

/*
 * End the oldest exchange in flight for the reason given. A response that was framed by the
 * close is whole if the side that sends it closed.
 */
__noinline int end_oldest(struct conn *c, __u64 sk, __u32 end, __u64 now)
{
	struct flow_record *r;

	if (!c)
		return 0;
	/* what has not ended its head is no request yet */
	if (c->started - c->answered == 1 && in_head(&c->req)) {
		slot_free(c, sk, c->answered);
		c->answered++;
		return 0;
	}
	r = slot_of(c, sk, c->answered);
	if (!r) {
		c->answered++;
		return 0;
	}
	if (!r->first_byte_ns)
		c->resp.body_bytes = 0; /* of the one before */
	if (r->first_byte_ns && c->resp.state == H1_BODY_EOF &&
	    (end == FLOW_END_PEER || (end == FLOW_END_LOCAL && c->role == FLOW_SERVER)))
		answer(c, sk, r, FLOW_END_EOF, r->end_ns); /* kept at the last byte seen */
	else
		answer(c, sk, r, end, now);
	return 0;
}

/* No more responses will come: end all that is in flight. */
__noinline int end_all(struct conn *c, __u64 sk, __u32 end, __u64 now)
{
	__u32 i;

	if (!c)
		return 0;
	for (i = 0; i < MAX_PIPELINED && c->answered != c->started; i++)
		end_oldest(c, sk, end, now);
	c->resp.state = H1_SYNC;
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
	if (c->confirmed)
		count(FLOW_COUNT_CONNS_FREED, 1);
	bpf_map_delete_elem(&conns, &sk);
}

/* Bytes went by unseen where they mattered. */
__noinline int lost_track(struct conn *c, struct io *io, __u32 reason)
{
	if (!c || !io)
		return 0;
	lose(reason);
	if (io->request) {
		if (in_head(&c->req) && c->started != c->answered) {
			c->started--;
			slot_free(c, io->sk, c->started);
			if (c->started == c->answered)
				c->resp.state = H1_SYNC; /* it may have been answered in part */
		}
		c->req.state = H1_SYNC;
		c->req.carry_len = 0;
	} else {
		end_all(c, io->sk, FLOW_END_GAP, io->end_ns);
		c->resp.carry_len = 0;
	}
	return 0;
}

/* This connection is none of ours from here on. */
static __always_inline void disown(struct conn *c, struct io *io)
{
	__u64 sk = io->sk, ino = io->ino;
	__u32 i;

	/* what seemed to be requests behind was the other protocol's already */
	for (i = 0; i < MAX_PIPELINED && c->answered != c->started; i++)
		slot_free(c, sk, c->answered++);
	forget(c, sk);
	bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
	io->gone = 1;
}

/*
 * A request begins: did an answer go by unseen? The place in the response stream tells, unless
 * I/O is under way that will yet be parsed: a send left to its exit, or the receive of an
 * answer by another thread than the one that sends requests ahead.
 */
static __always_inline void notice_unseen_answer(struct conn *c, struct io *io)
{
	__u32 at;

	if (!c->is_tcp || c->deferred || h1_skippable(&c->resp))
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

static __always_inline void begin_request(struct conn *c, struct io *io)
{
	struct pipelined_key key = { .sk = io->sk };
	void *task = (void *)bpf_get_current_task();
	struct h1_stream *s = &c->req;
	struct flow_record *r = &c->rec;
	__u32 flags = c->rec.flags & FLOW_FLAG_IDS_PRIVATE;

	notice_unseen_answer(c, io);
	key.index = c->started;
	h1_reset(s);
	s->state = H1_METHOD;
	if (c->started == c->answered && c->resp.state == H1_SYNC)
		c->resp.state = H1_START;
	if (c->started != c->answered)
		flags |= FLOW_FLAG_PIPELINED;
	if (c->inline_index == ~0U) {
		c->inline_index = c->started;
	} else {
		if (c->started - c->answered < MAX_PIPELINED)
			bpf_map_update_elem(&pipelined, &key, r, BPF_ANY);
		r = bpf_map_lookup_elem(&pipelined, &key);
		if (!r) {
			lose(FLOW_LOSS_PIPELINE_FULL);
			r = &io->spare;
		}
	}
	c->started++;
	r->start_ns = io->start_ns;
	r->request_end_ns = 0;
	r->first_byte_ns = 0;
	r->end_ns = 0;
	r->request_body_bytes = 0;
	r->response_body_bytes = 0;
	r->request_seq = io->seq - (io->win.end - io->win.pos);
	r->response_seq = io->tx ? c->rx_seq : c->tx_seq; /* until it comes */
	r->status = 0;
	r->flags = flags;
	r->truncated = 0;
	r->text_len = 0;
	r->tgid = io->pid_tgid >> 32;
	r->request_tid = (__u32)io->pid_tgid;
	r->response_tid = 0;
	r->kind = FLOW_EXCHANGE;
	r->end = 0;
	r->version = 0;
	r->task_start_ns = LOAD(struct task_struct, LOAD(struct task_struct, task, group_leader),
				start_boottime);
	r->cgroup_id = bpf_get_current_cgroup_id();
	/* bpf_get_current_comm() takes 0.1 us, for it goes byte by byte */
	bpf_core_read(r->comm, sizeof(r->comm), &((struct task_struct *)task)->comm);
	__builtin_memset(r->fields, 0, sizeof(r->fields) + sizeof(r->text));
}

static __always_inline void begin_response(struct conn *c, struct io *io)
{
	struct flow_record *r;

	if (c->answered == c->started) {
		lose(FLOW_LOSS_ORPHAN);
		c->resp.state = H1_SYNC;
		return;
	}
	h1_reset(&c->resp);
	c->resp.state = H1_STATUS;
	r = slot_of(c, io->sk, c->answered);
	if (!r)
		return;
	if (!r->first_byte_ns) {
		r->first_byte_ns = io->start_ns;
		r->response_seq = io->seq - (io->win.end - io->win.pos);
		r->response_tid = (__u32)io->pid_tgid;
	}
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
	r->request_body_bytes = c->req.body_bytes;
}

static __always_inline void end_response(struct conn *c, struct io *io, __u8 end)
{
	struct flow_record *r = slot_of(c, io->sk, c->answered);

	if (r)
		answer(c, io->sk, r, end, io->end_ns);
	else
		c->answered++;
}

static __always_inline void invalid(struct conn *c, struct io *io)
{
	if (!c->confirmed) {
		/* it looked like a request at first, and was something else */
		slot_free(c, io->sk, c->started - 1);
		if (c->fresh) {
			count(FLOW_COUNT_OTHER, 1);
			disown(c, io);
		} else {
			forget(c, io->sk);
			io->gone = 1;
		}
		return;
	}
	if (io->request) {
		lost_track(c, io, FLOW_LOSS_INVALID);
	} else {
		lose(FLOW_LOSS_INVALID);
		end_all(c, io->sk, FLOW_END_INVALID, io->end_ns);
	}
}

/* One parser step, as a function that the verifier looks at by itself. */
__noinline int step(struct h1_stream *s, struct flow_record *r, struct h1_window *w)
{
	if (!s || !r || !w)
		return H1_INVALID;
	return h1_step(s, r, w);
}

/* Parser steps up to one that the connection must hear of. */
static __always_inline int steps(struct h1_stream *s, struct flow_record *r, struct h1_window *w)
{
	int result = H1_INVALID, i;

	for (i = 0; i < STEPS_AT_ONCE; i++) {
		result = step(s, r, w);
		if (result != H1_AGAIN || s->state == H1_CHUNK)
			break;
	}
	return result;
}

/* n bytes of content went by; `end` is what a response's end is called if this was it. */
static __always_inline void passed(struct conn *c, struct io *io, struct h1_stream *s, __u64 n,
				   __u8 end)
{
	if (s->state == H1_BODY_EOF) {
		struct flow_record *r = slot_of(c, io->sk, c->answered);

		if (r)
			r->end_ns = io->end_ns;
	}
	if (h1_skip(s, n) != H1_END)
		return;
	if (io->request)
		end_request(c, io);
	else
		end_response(c, io, end);
}

/* Pass over content in the window or, unread, in the user's buffer. */
static __always_inline int pass_content(struct conn *c, struct io *io, struct h1_stream *s,
					__u64 most)
{
	__u64 n = io->win.end - io->win.pos;

	if (n) {
		if (n > most)
			n = most;
		io->win.pos += n;
	} else {
		if (!io->left)
			return 0;
		n = io_skip(io, most);
		if (!n) /* an empty piece, or no piece where there should be one */
			return io->batch_at < io->batch_n || io->iov_left;
	}
	passed(c, io, s, n, FLOW_END_RESPONSE);
	return 1;
}

/* A lost request stream takes up again where a buffer begins like a request. */
static __always_inline int resync(struct conn *c, struct io *io)
{
	if (!io->request || io->win.pos != io->win.end)
		goto drop;
	if (io_load(io, &c->req))
		goto drop;
	if (!h1_detect(&io->win))
		goto drop;
	c->req.state = H1_START;
	return 1;
drop:
	io_empty_window(io);
	io_skip(io, io->left);
	return 0;
}

/* Take one step on the connection. Returns 0 when this I/O is done with. */
__noinline int advance(struct conn *c, struct io *io)
{
	struct flow_record *r;
	struct h1_stream *s;
	__u64 content;
	int result;

	if (!c || !io || io->gone)
		return 0;
	s = io->request ? &c->req : &c->resp;
	content = h1_skippable(s);
	if (content)
		return pass_content(c, io, s, content);
	if (s->state == H1_SYNC)
		return resync(c, io);
	if (io->win.pos >= io->win.end) {
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
		if (io->win.pos >= io->win.end) /* an empty piece */
			return 1;
	}
	r = slot_of(c, io->sk, io->request ? c->started - 1 : c->answered);
	if (!r)
		r = &io->spare;
	result = steps(s, r, &io->win);
	if (!c->confirmed && io->request &&
	    (s->state >= H1_NAME || result == H1_END || result == H1_HEAD_END)) {
		c->confirmed = 1;
		count(FLOW_COUNT_CONNS, 1);
	}
	switch (result) {
	case H1_MORE:
		io_carry(io, s);
		return 1;
	case H1_BEGIN:
		if (io->request)
			begin_request(c, io);
		else
			begin_response(c, io);
		return 1;
	case H1_END:
		if (io->request)
			end_request(c, io);
		else
			end_response(c, io, FLOW_END_RESPONSE);
		return 1;
	case H1_HEAD_END:
		if (s->state == H1_BODY_EOF)
			r->end_ns = io->end_ns; /* if nothing follows */
		return 1;
	case H1_TUNNEL:
		end_response(c, io, FLOW_END_UPGRADE);
		disown(c, io);
		return 0;
	case H1_INVALID:
		invalid(c, io);
		return 1;
	}
	return 1;
}

#endif
