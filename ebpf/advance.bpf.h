/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * advance.bpf.h - the bytes of a connection to its parser: recognise the protocol, take steps,
 * and act on what each came to.
 */
#ifndef WIRESPAN_ADVANCE_H
#define WIRESPAN_ADVANCE_H

#include "exchange.bpf.h"

#define STEPS_AT_ONCE 8 /* parser steps without a look at the connection */

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
