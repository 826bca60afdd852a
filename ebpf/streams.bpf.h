/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * streams.bpf.h - HTTP/2: several exchanges under way on one connection, in no order. Part of
 * advance.bpf.h.
 *
 * Header blocks cross to user space as they come, in the order of each direction, for HPACK
 * has its state there. What the kernel knows of an exchange (times, sizes, its end) follows
 * in one record when its stream is over.
 */
#ifndef WIRESPAN_STREAMS_H
#define WIRESPAN_STREAMS_H

#define STREAMS_OLD 512 /* streams of a connection that are looked for as it ends */

static __always_inline __u64 stream_exchange(const struct conn *c, const struct stream_entry *e)
{
	return flow_exchange_id(c->rec.conn_id, e->start_ns, e->request_seq);
}

/* As in global.bpf.h, of functions that are given a stream. */
#ifdef OLD_KERNEL
#define GLOBAL_STREAM(name, values, ...)                                                           \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__); \
	__noinline int name##_old(__u64 sk, __u32 id __VA_OPT__(, ) __VA_ARGS__)                   \
	{                                                                                          \
		struct conn *c = bpf_map_lookup_elem(&conns, &sk);                                 \
		struct stream_entry *e = stream_of(sk, id);                                        \
                                                                                                   \
		return c && e ? name##_body(c, e AND values) : 0;                                  \
	}                                                                                          \
	static __always_inline int name(struct conn *c,                                            \
					struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__)         \
	{                                                                                          \
		(void)c;                                                                           \
		return name##_old(e->sk, e->id AND values);                                        \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__)
#else
#define GLOBAL_STREAM(name, values, ...)                                                           \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__); \
	__noinline int name(struct conn *c, struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__)     \
	{                                                                                          \
		return c && e ? name##_body(c, e AND values) : 0;                                  \
	}                                                                                          \
	static __always_inline int name##_body(struct conn *c,                                     \
					       struct stream_entry *e __VA_OPT__(, ) __VA_ARGS__)
#endif

/* The record of a stream that is over, written in place in the ring. */
static __always_inline void stream_emit(const struct conn *c, const struct stream_entry *e,
					__u64 now)
{
	struct flow_record *r;

	if (!c->t.sure)
		return;
	r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);
	if (!r) {
		lose(FLOW_LOSS_RING_FULL);
		return;
	}
	__builtin_memcpy(r, &c->rec, __builtin_offsetof(struct flow_record, text));
	r->kind = FLOW_EXCHANGE;
	r->start_ns = e->start_ns;
	r->request_end_ns = e->request_end_ns;
	r->first_byte_ns = e->first_byte_ns;
	/* an answer that began just as the stream was reset did so before its end */
	r->end_ns = now > e->first_byte_ns ? now : e->first_byte_ns;
	r->request_body_bytes = e->request_bytes;
	r->response_body_bytes = e->response_bytes;
	r->request_seq = e->request_seq;
	r->response_seq = c->base;
	r->request_tid = e->request_tid;
	r->response_tid = e->response_tid;
	r->request_messages = e->request.digits == H2_NOT_GRPC ? 0 : e->request.count;
	r->response_messages = e->response.digits == H2_NOT_GRPC ? 0 : e->response.count;
	r->flags = (c->rec.flags & FLOW_FLAG_IDS_PRIVATE) | e->flags;
	r->stream_id = e->id;
	r->code = e->code;
	r->end = e->end;
	r->version = 20;
	r->parent = e->cause.id;
	r->evidence = e->evidence;
	r->level = e->fate;
	r->lot = e->fate >> 8;
	if (r->family == AF_UNIX)
		sock_unix_path((void *)e->sk, r);
	bpf_ringbuf_submit(r, ring_flags());
	/* user space has had its header blocks all the same, and is told that it can forget them */
	if (e->fate & FATE_SHED)
		lose(FLOW_LOSS_SHED);
	else
		count(FLOW_COUNT_EXCHANGES, 1);
}

/*
 * A stream is over. Both directions may end it at once, each on a CPU of its own, as where a
 * deadline passes just as the answer comes: it is over for the one that takes it from the map.
 */
GLOBAL_STREAM(stream_over, (end, now), __u32 end, __u64 now)
{
	struct stream_key key = {};
	struct stream_entry *last;
	struct io *own = io_get();

	if (!own)
		return 0;
	last = &own->stream; /* what leaves the map may be another stream's at once */
	*last = *e;
	key.sk = last->sk;
	key.id = last->id;
	if (bpf_map_delete_elem(&streams, &key))
		return 0;
	__sync_fetch_and_add(&c->open, -1);
	last->end = end;
	if (end == FLOW_END_RESPONSE && !last->request_end_ns)
		last->flags |= FLOW_FLAG_EARLY;
	stream_emit(c, last, now);
	if (last->flags & FLOW_FLAG_IN_HAND)
		link_served(last->sk, fate_index(last->id, last->fate), stream_exchange(c, last),
			    last->request_tid, last->calls);
	else if (last->cause.id)
		link_calls(&last->cause, 0);
	return 0;
}

#ifdef OLD_KERNEL

/* Before Linux 5.13 a map can't be walked: those that began last are looked for by number. */
GLOBAL_CONN(streams_end, (end, now), __u32 end, __u64 now)
{
	__u32 id = c->last_stream, i;

	for (i = 0; i < STREAMS_OLD && c->open; i++) {
		struct stream_entry *e = stream_of(sk, id);

		if (e)
			stream_over(c, e, end, now);
		id -= 2;
	}
	if (c->open)
		lose(FLOW_LOSS_GAP);
	return 0;
}

#else

struct streams_ending {
	struct conn *c;
	__u64 sk;
	__u64 now;
	__u32 end;
};

static long stream_ending(void *map __attribute__((unused)),
			  const void *key __attribute__((unused)), struct stream_entry *e,
			  struct streams_ending *ending)
{
	if (e->sk == ending->sk)
		stream_over(ending->c, e, ending->end, ending->now);
	return 0;
}

/* End all streams of a connection. */
GLOBAL_CONN(streams_end, (end, now), __u32 end, __u64 now)
{
	struct streams_ending ending = { c, sk, now, end };

	if (c->open) /* Linux 5.13 */
		bpf_for_each_map_elem(&streams, stream_ending, &ending, 0);
	return 0;
}

#endif

/* From then on a block may be of a stream that isn't there; the look-up is spared till then. */
__u32 streams_were_full = 0;

/* The record that fragments of blocks are gathered in; it lives no longer than the I/O. */
static __always_inline void block_reset(struct io *io)
{
	io->spare.text_len = 0;
	io->spare.truncated = 0;
	io->spare.fields[FLOW_TEXT_BLOCK].off = 0;
	io->spare.fields[FLOW_TEXT_BLOCK].len = 0;
}

/* Hand a fragment over. */
GLOBAL_CONN_IO(block_emit, (more), __u32 more)
{
	struct flow_record *r;
	struct stream *s;
	__u32 flags;
	__u8 bit;

	s = io->request ? &c->t.req : &c->t.resp;
	r = &io->spare;
	bit = io->request ? 1 : 2;
	flags = io->request ? 0 : FLOW_FLAG_RESPONSE;
	if (more)
		flags |= FLOW_FLAG_MORE;
	if (s->flags & H2_BLOCK_END)
		flags |= FLOW_FLAG_END_STREAM;
	if (s->flags & H2_BLOCK_PUSH ||
	    (streams_were_full && !stream_of(io->sk, s->own[H2_STREAM])))
		flags |= FLOW_FLAG_SPANLESS;
	if (c->t.old)
		flags |= FLOW_FLAG_OLD;
	if (c->lost & bit)
		flags |= FLOW_FLAG_BROKEN;
	__builtin_memcpy(r, &c->rec, __builtin_offsetof(struct flow_record, truncated));
	r->kind = FLOW_BLOCK;
	r->start_ns = io->start_ns;
	r->stream_id = s->own[H2_STREAM];
	r->flags = flags;
	if (hand_over(r))
		c->lost &= ~bit;
	else
		c->lost |= bit;
	block_reset(io);
	return 0;
}

/* The I/O ends within a block. */
static __always_inline void block_flush(struct conn *c, struct io *io, struct stream *s)
{
	if (io->spare.text_len && s->flags & H2_BLOCK_OPEN)
		block_emit(c, io, 1);
}

/* HEADERS of a client on a stream not seen before. */
static __always_inline void stream_begin_request(struct conn *c, struct io *io, struct stream *s)
{
	struct stream_key key = { .sk = io->sk, .id = s->own[H2_STREAM] };
	struct io *own =
		io_get(); /* as `io`, but fit to be a map's value, as begin_request() has it */
	struct stream_entry *e;

	if (!own || !(s->own[H2_STREAM] & 1))
		return;
	e = &own->stream;
	__builtin_memset(e, 0, sizeof(*e));
	e->sk = io->sk;
	e->id = s->own[H2_STREAM];
	e->start_ns = io->start_ns; /* the preface may have come long before */
	c->first_ns = 0;
	e->request_seq = io->seq - (io->win.end - io->win.pos);
	e->request_tid = (__u32)io->pid_tgid;
	if (c->t.old)
		e->flags = FLOW_FLAG_OLD;
	if (c->role == FLOW_CLIENT) {
		e->evidence = link_call(io, FLOW_PROTO_HTTP2, e->id, 0);
		if (e->evidence)
			e->cause = io->cause;
	}
	if (bpf_map_update_elem(&streams, &key, e, BPF_NOEXIST)) {
		lose(FLOW_LOSS_STREAMS_FULL);
		streams_were_full = 1;
		return;
	}
	if (cfg_link && c->role == FLOW_CLIENT && !e->cause.id) {
		struct stream_entry *begun = stream_of(io->sk, e->id);

		if (begun)
			hint_take(io->sk, begun);
	}
	if (cfg_shed) {
		struct stream_entry *begun = stream_of(io->sk, e->id);

		if (begun) {
			io->cause = begun->cause;
			begun->fate = fate_begin(io, e->request_seq, c->base,
						 c->role == FLOW_CLIENT, begun->cause.id != 0);
		}
	}
	__sync_fetch_and_add(&c->open, 1);
	c->last_stream = e->id;
	if (c->rec.tgid != io->pid_tgid >> 32) {
		tell_process(io, &c->rec);
		tell_cgroup(c, &c->rec);
	}
}

/* A frame's header was read. */
static __always_inline void frame_begin(struct conn *c, struct io *io, struct stream *s)
{
	struct stream_entry *e = stream_of(io->sk, s->own[H2_STREAM]);

	switch (h2_type(s)) {
	case H2_HEADERS:
		block_reset(io);
		if (io->request && !e) {
			stream_begin_request(c, io, s);
		} else if (!io->request && e && !e->first_byte_ns) {
			e->first_byte_ns = io->start_ns;
			e->response_tid = (__u32)io->pid_tgid;
			if (e->cause.id)
				link_heard(io, &e->cause);
		} else if (!e && c->t.old) {
			lose(FLOW_LOSS_ORPHAN);
		}
		return;
	case H2_DATA:
		s->body_bytes = 0;
		s->number = 0;
		s->digits = H2_NOT_GRPC;
		if (e)
			h2_messages_load(s, io->request ? &e->request : &e->response);
		return;
	}
}

/* One direction of a stream has ended. */
static __always_inline void stream_half(struct conn *c, struct io *io, struct stream_entry *e)
{
	if (io->request) {
		e->request_end_ns = io->end_ns;
		return;
	}
	if (c->role == FLOW_CLIENT)
		link_stream_answered(
			io, e->cause.id || e->fate & FATE_SHED ? 0 : stream_exchange(c, e));
	stream_over(c, e, FLOW_END_RESPONSE, io->end_ns);
}

/* A frame was read to its end. */
static __always_inline void frame_end(struct conn *c, struct io *io, struct stream *s)
{
	struct stream_entry *e;

	if (h2_type(s) != H2_DATA && h2_type(s) != H2_RST_STREAM)
		return;
	e = stream_of(io->sk, s->own[H2_STREAM]);
	if (!e)
		return;
	if (h2_type(s) == H2_RST_STREAM) {
		e->code = s->own[H2_VALUE];
		if (!io->request)
			e->flags |= FLOW_FLAG_RESPONSE;
		stream_over(c, e, FLOW_END_RESET, io->end_ns);
		return;
	}
	h2_messages_store(s, io->request ? &e->request : &e->response);
	if (io->request)
		e->request_bytes += s->body_bytes;
	else
		e->response_bytes += s->body_bytes;
	if (h2_flags(s) & H2_END_STREAM)
		stream_half(c, io, e);
}

GLOBAL_CONN_IO(http2_one, ())
{
	int result = STEP_INVALID, i;
	struct stream *s;

	s = io->request ? &c->t.req : &c->t.resp;
	for (i = 0; i < 4; i++) {
		result = http2_step(&c->t, s, &io->spare, &io->win);
		if (result != STEP_AGAIN || s->skip)
			break;
	}
	return result;
}

/* What a step came to. Returns 0 when this I/O is done with. */
GLOBAL_CONN_IO(streams_heard, (result), __u32 result)
{
	struct stream_entry *e;
	struct stream *s;

	s = io->request ? &c->t.req : &c->t.resp;
	switch (result) {
	case STEP_MORE:
		block_flush(c, io, s);
		io_carry(io, s);
		return io->left != 0;
	case STEP_BEGIN:
		frame_begin(c, io, s);
		return 1;
	case STEP_FULL:
		block_emit(c, io, 1);
		return 1;
	case STEP_HEAD_END:
		block_emit(c, io, 0);
		e = stream_of(io->sk, s->own[H2_STREAM]);
		if (e && io->request && c->role == FLOW_SERVER && !(e->flags & FLOW_FLAG_IN_HAND)) {
			e->request_tid = (__u32)io->pid_tgid;
			if (link_serve(io, fate_index(e->id, e->fate), stream_exchange(c, e), 0))
				e->flags |= FLOW_FLAG_IN_HAND;
		}
		if (e && s->flags & H2_BLOCK_END)
			stream_half(c, io, e);
		return 1;
	case STEP_END:
		frame_end(c, io, s);
		return 1;
	case STEP_INVALID:
		if (!c->t.sure) {
			mistaken(c, io);
			return 0;
		}
		lose(FLOW_LOSS_INVALID);
		streams_lost(c, io);
		return 1;
	}
	return 1;
}

/* n bytes of content went by. */
static __always_inline void streams_passed(struct conn *c, struct io *io, struct stream *s, __u64 n)
{
	s->skip -= n;
	streams_heard(c, io, http2_passed(s, n));
}

/* Take one step. Frames without a payload end without a byte, hence the step on none. */
static __always_inline int streams_advance(struct conn *c, struct io *io)
{
	struct stream *s = io->request ? &c->t.req : &c->t.resp;
	int result;

	if (s->skip) {
		__u64 n = pass_bytes(io, s->skip);

		if (!n) {
			block_flush(c, io, s);
			return more_pieces(io);
		}
		streams_passed(c, io, s, n);
		return !io->gone;
	}
	if (!present(c, io, s) && (io->unread || s->state == STATE_SYNC))
		return 0;
	result = http2_one(c, io);
	confirm(c);
	return streams_heard(c, io, result);
}

#endif
