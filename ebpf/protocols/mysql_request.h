/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_request.h - a client's packets: commands, and what it adds to an exchange under way.
 */
#ifndef WIRESPAN_MYSQL_REQUEST_H
#define WIRESPAN_MYSQL_REQUEST_H

#include "mysql_packet.h"

/* A command: what of it is kept? */
static __always_inline enum step mysql_command(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	switch (r->method) {
	case COM_QUERY:
		s->state = MYSQL_ATTRIBUTES;
		keep_begin(s, FLOW_TEXT_QUERY, MYSQL_QUERY_MOST);
		break;
	case COM_STMT_PREPARE:
		s->state = MYSQL_KEEP;
		keep_begin(s, FLOW_TEXT_QUERY, MYSQL_QUERY_MOST);
		break;
	case COM_INIT_DB:
		s->state = MYSQL_KEEP;
		keep_begin(s, FLOW_TEXT_DATABASE, MYSQL_NAME_MOST);
		break;
	case COM_CHANGE_USER:
		s->own[MYSQL_CLIENT] = CAP_SECURE_CONNECTION | CAP_CONNECT_WITH_DB;
		s->state = MYSQL_USER;
		break;
	case COM_STMT_EXECUTE:
	case COM_STMT_SEND_LONG_DATA:
	case COM_STMT_CLOSE:
	case COM_STMT_RESET:
	case COM_STMT_FETCH:
	case COM_STMT_BULK_EXECUTE:
		if (s->length < 4)
			return STEP_INVALID;
		s->state = MYSQL_ID;
		return STEP_AGAIN;
	default:
		/* what has no meaning the server answers with an error */
		if (r->method > COM_SUBSCRIBE && !t->sure)
			return STEP_INVALID;
		return mysql_rest(t, s, r, w);
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/* The header of a request, and the command behind it. */
static __always_inline enum step mysql_request(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 length = word & MYSQL_PACKET_MAX;

	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	if (s->flags & MYSQL_CONTINUES) {
		if (length != MYSQL_PACKET_MAX)
			s->flags &= ~MYSQL_CONTINUES;
		w->pos += MYSQL_HEADER;
		s->length = length;
		return mysql_rest(t, s, r, w);
	}
	if (!length || word >> 24 & 0xff)
		return STEP_INVALID;
	if (window_left(w) < MYSQL_HEADER + 1)
		return STEP_MORE;
	if (length == MYSQL_PACKET_MAX)
		s->flags |= MYSQL_CONTINUES;
	w->pos += MYSQL_HEADER + 1;
	s->length = length - 1;
	s->head = 0;
	r->method = word >> 32;
	t->own[MYSQL_PHASE] = PHASE_READY;
	return mysql_command(t, s, r, w);
}

/* Between requests: a command, or what the client adds to the exchange at hand. */
static __always_inline enum step mysql_between(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	__u32 phase = t->own[MYSQL_PHASE], length, number;
	__u64 word = window_load(w, w->pos);

	if (!window_left(w))
		return STEP_MORE;
	if (phase == PHASE_COMPRESSED)
		return STEP_COMPRESSED;
	if (phase == PHASE_NONE || phase == PHASE_READY)
		return STEP_BEGIN;
	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	length = word & MYSQL_PACKET_MAX;
	number = word >> 24 & 0xff;
	/* the numbers of a file's packets come round; if it was lost track of this is a command */
	if (!number && (phase != PHASE_FILE || !t->in_flight)) {
		t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_BEGIN;
	}
	w->pos += MYSQL_HEADER;
	s->flags = length == MYSQL_PACKET_MAX ? MYSQL_CONTINUES : 0;
	s->length = length;
	if (phase == PHASE_FILE && !length) {
		t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_END;
	}
	if (phase != PHASE_GREETED)
		return mysql_rest(t, s, r, w);
	if (length < MYSQL_LOGIN)
		return STEP_INVALID;
	s->state = MYSQL_CAPS;
	return STEP_AGAIN;
}

/* How many query attributes stand before the text? The text behind any is not looked for. */
static __always_inline enum step mysql_attributes(struct talk *t, struct stream *s,
						  struct flow_record *r, struct window *w)
{
	__u8 first = window_byte(w, w->pos);
	__u32 a, b;

	if (!window_left(w))
		return STEP_MORE;
	s->state = MYSQL_KEEP;
	if (t->own[MYSQL_EOFS] == EOFS_UNKNOWN) {
		/* capabilities are not known, but no text begins so */
		if (first >= '\t')
			return mysql_keep(t, s, r, w);
	} else if (!(t->own[MYSQL_SHARED] & CAP_QUERY_ATTRIBUTES)) {
		return mysql_keep(t, s, r, w);
	}
	s->state = MYSQL_ATTRIBUTES;
	a = mysql_int_size(first);
	if (!a || a >= s->length)
		return STEP_INVALID;
	if (window_left(w) <= a)
		return STEP_MORE;
	b = mysql_int_size(window_byte(w, w->pos + a));
	if (!b || a + b > s->length)
		return STEP_INVALID;
	if (window_left(w) < a + b)
		return STEP_MORE;
	if (mysql_int(w, w->pos, a)) {
		r->truncated |= 1 << FLOW_TEXT_QUERY;
		return mysql_rest(t, s, r, w);
	}
	mysql_take(s, w, a + b);
	s->state = MYSQL_KEEP;
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

#endif
