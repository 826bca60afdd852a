/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql_startup.h - the startup packet, what may stand in its place, and the settings
 * that the server answers.
 */
#ifndef WIRESPAN_POSTGRESQL_STARTUP_H
#define WIRESPAN_POSTGRESQL_STARTUP_H

#include "postgresql_message.h"

/* A startup packet or one of the requests that stand in its place. */
static __always_inline int pg_is_startup(__u32 length, __u32 code)
{
	if (code == PG_SSL_REQUEST || code == PG_GSSENC_REQUEST)
		return length == 8;
	if (code == PG_CANCEL_REQUEST)
		return length >= 16 && length <= 268; /* 3.2: keys of up to 256 bytes */
	return (code == PG_PROTOCOL_3_0 || code == PG_PROTOCOL_3_2) && length > 8 &&
	       length <= PG_STARTUP_MAX;
}

/* The startup packet, or what stands in its place. */
static __always_inline enum step pg_step_startup(struct talk *t, struct stream *s,
						 struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 length = __builtin_bswap32((__u32)word);
	__u32 code = __builtin_bswap32((__u32)(word >> 32));

	if (window_left(w) < 8)
		return STEP_MORE;
	if (!pg_is_startup(length, code))
		return STEP_INVALID;
	if (code == PG_SSL_REQUEST || code == PG_GSSENC_REQUEST) {
		w->pos += 8;
		t->own[0] = 1;
		t->resp.state = STATE_START; /* one byte will answer, to no exchange */
		return STEP_AGAIN;
	}
	if (s->state == STATE_START)
		return STEP_BEGIN;
	w->pos += 8;
	s->length = length - 8;
	s->head = 0;
	if (code == PG_CANCEL_REQUEST)
		return STEP_LEAVE;
	r->method = PG_CONNECT;
	r->stream_id = t->own[1]++;
	s->next = PG_DONE;
	s->state = PG_KEY;
	return STEP_AGAIN;
}

/* Startup: the name of a parameter. */
static __always_inline enum step pg_step_key(struct stream *s, struct flow_record *r,
					     struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 n;

	if (!s->length) {
		s->state = PG_REST;
		return STEP_AGAIN;
	}
	if (window_left(w) < (s->length < 9 ? s->length : 9))
		return STEP_MORE;
	if (!(__u8)word) {
		s->state = PG_REST;
		return STEP_AGAIN;
	}
	if (s->length >= 9 && word == WORD('d', 'a', 't', 'a', 'b', 'a', 's', 'e') &&
	    !window_byte(w, w->pos + 8)) {
		/* in place of the user's name, which is the only other string so far */
		r->text_len = 0;
		r->fields[FLOW_TEXT_DATABASE].len = 0;
		r->truncated = 0;
		s->flags |= PG_HAS_DATABASE;
		n = 9;
	} else if (s->length >= 5 &&
		   (word & LOW_BYTES(5)) == WORD('u', 's', 'e', 'r', 0, 0, 0, 0) &&
		   !(s->flags & PG_HAS_DATABASE) && !r->fields[FLOW_TEXT_DATABASE].len) {
		/* the database of that name is the default */
		n = 5;
	} else {
		pg_drop(s, PG_VALUE);
		return STEP_AGAIN;
	}
	w->pos += n;
	s->length -= n;
	pg_keep(s, FLOW_TEXT_DATABASE, PG_NAME_MAX, PG_KEY);
	return STEP_AGAIN;
}

/* ParameterStatus during the startup. */
static __always_inline enum step pg_step_setting(struct stream *s, struct window *w)
{
	s->state = PG_REST;
	if (s->length < 15)
		return STEP_AGAIN;
	if (window_left(w) < 15) {
		s->state = PG_SETTING;
		return STEP_MORE;
	}
	if (window_load(w, w->pos) == WORD('s', 'e', 'r', 'v', 'e', 'r', '_', 'v') &&
	    (window_load(w, w->pos + 8) & LOW_BYTES(7)) ==
		    WORD('e', 'r', 's', 'i', 'o', 'n', 0, 0)) {
		w->pos += 15;
		s->length -= 15;
		pg_keep(s, FLOW_TEXT_VERSION, PG_NAME_MAX, PG_REST);
	}
	return STEP_AGAIN;
}

#endif
