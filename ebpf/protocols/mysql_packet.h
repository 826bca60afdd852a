/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_packet.h - what packets are made of, whoever sends them: integers, strings, the end.
 */
#ifndef WIRESPAN_MYSQL_PACKET_H
#define WIRESPAN_MYSQL_PACKET_H

#include "mysql_types.h"

/* Bytes that a length-encoded integer of this first byte takes; 0 if it is none. */
static __always_inline __u32 mysql_int_size(__u8 first)
{
	if (first < 0xfb)
		return 1;
	return first == 0xfc ? 3 : first == 0xfd ? 4 : first == 0xfe ? 9 : 0;
}

static __always_inline __u64 mysql_int(const struct window *w, __u32 at, __u32 size)
{
	if (size == 1)
		return window_byte(w, at);
	return window_load(w, at + 1) & LOW_BYTES(size - 1);
}

/* n bytes of the packet at `pos` were read. */
static __always_inline void mysql_take(struct stream *s, struct window *w, __u32 n)
{
	w->pos += n;
	s->length -= n;
}

/* The packet has ended: what does that end? */
static __always_inline enum step mysql_packet_end(struct talk *t, struct stream *s,
						  struct flow_record *r)
{
	__u32 phase = t->own[MYSQL_PHASE];

	s->length = 0;
	s->state = MYSQL_HEAD;
	if (s->flags & MYSQL_CONTINUES)
		return STEP_AGAIN;
	if (s->response) {
		s->state = s->next;
		if (s->state != STATE_START)
			return STEP_AGAIN;
		if (r->method == COM_CONNECT && !r->code &&
		    t->own[MYSQL_SHARED] & (CAP_COMPRESS | CAP_ZSTD))
			t->own[MYSQL_PHASE] = PHASE_COMPRESSED;
		else if (phase != PHASE_FILE)
			t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_END;
	}
	s->state = STATE_START;
	if (phase == PHASE_FILE)
		return STEP_AGAIN;
	switch (r->method) {
	case COM_QUIT:
	case COM_STMT_CLOSE:
	case COM_STMT_SEND_LONG_DATA:
		return STEP_ALONE;
	}
	return STEP_END;
}

/* Pass over the rest of the packet. */
static __always_inline enum step mysql_rest(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u64 n = s->length;

	s->length = 0;
	s->state = MYSQL_REST;
	if (n > window_left(w)) {
		s->skip = n;
		return STEP_AGAIN;
	}
	s->body_bytes += n;
	w->pos += n;
	return mysql_packet_end(t, s, r);
}

/* Keep a string up to the packet's end; SQLSTATE: `number` bytes, the message follows. */
static __always_inline enum step mysql_keep(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	int sqlstate = s->response && s->field == FLOW_TEXT_SQLSTATE;
	__u64 n = sqlstate ? s->number : s->length;
	__u32 taken;

	if (!n)
		return mysql_packet_end(t, s, r);
	if (!window_left(w))
		return STEP_MORE;
	if (n > CARRY + WINDOW)
		n = CARRY + WINDOW;
	if (keep_bytes(s, r, w, n, &taken) == STEP_FULL)
		return STEP_FULL;
	if (!taken)
		return mysql_rest(t, s, r, w);
	s->length -= taken;
	if (sqlstate) {
		s->number -= taken;
		if (!s->number)
			keep_begin(s, FLOW_TEXT_ERROR, MYSQL_ERROR_MOST);
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/*
 * Step over a string that a NUL or the packet's end ends, and keep it if the state says so;
 * then the state is `next`.
 */
static __always_inline enum step mysql_string(struct talk *t, struct stream *s,
					      struct flow_record *r, struct window *w, __u8 next)
{
	__u32 n = window_left(w), i, taken = 0, found = 0;

	if (!n)
		return STEP_MORE;
	if (n > s->length)
		n = s->length;
	if (n > 8 * STRIDE)
		n = 8 * STRIDE;
	for (i = 0; i < STRIDE; i++) {
		__u64 marks = word_equal(window_load(w, w->pos + 8 * i), 0);
		__u32 at;

		if (8 * i >= n)
			break;
		if (!marks)
			continue;
		at = word_index(marks) + 8 * i;
		if (at < n) {
			n = at;
			found = 1;
		}
		break;
	}
	if (n && (s->state == MYSQL_DATABASE || s->state == MYSQL_VERSION)) {
		if (keep_bytes(s, r, w, n, &taken) == STEP_FULL)
			return STEP_FULL;
		s->length -= taken;
		if (taken && taken < n)
			return STEP_AGAIN;
		n -= taken;
	}
	mysql_take(s, w, n + found);
	if (!s->length)
		return mysql_packet_end(t, s, r);
	if (found)
		s->state = next;
	return STEP_AGAIN;
}

#endif
