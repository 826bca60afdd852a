/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql_backend.h - a server's messages, within an exchange and between two.
 */
#ifndef WIRESPAN_POSTGRESQL_BACKEND_H
#define WIRESPAN_POSTGRESQL_BACKEND_H

#include "postgresql_message.h"

/* CommandComplete: which command it was. */
static __always_inline enum step pg_step_tag(struct stream *s, struct window *w)
{
	__u64 word = window_load(w, w->pos);

	if (window_left(w) < (s->length < 6 ? s->length : 6))
		return STEP_MORE;
	s->number = 0;
	s->state = PG_REST;
	if (s->length < 6)
		return STEP_AGAIN;
	word &= LOW_BYTES(6);
	if (word == WORD('I', 'N', 'S', 'E', 'R', 'T', 0, 0) ||
	    word == WORD('U', 'P', 'D', 'A', 'T', 'E', 0, 0) ||
	    word == WORD('D', 'E', 'L', 'E', 'T', 'E', 0, 0) ||
	    word == WORD('M', 'E', 'R', 'G', 'E', ' ', 0, 0) ||
	    (word & LOW_BYTES(5)) == WORD('C', 'O', 'P', 'Y', ' ', 0, 0, 0))
		s->state = PG_TAG_NUMBER;
	return STEP_AGAIN;
}

/* The last number of the tag. */
static __always_inline enum step pg_step_tag_number(struct stream *s, struct flow_record *r,
						    struct window *w)
{
	__u32 i;

	for (i = 0; i < STRIDE && s->length; i++) {
		__u8 c = window_byte(w, w->pos);

		if (w->pos >= w->end)
			return STEP_MORE;
		w->pos++;
		s->length--;
		if (c >= '0' && c <= '9')
			s->number = s->number * 10 + (c - '0');
		else if (c)
			s->number = 0;
	}
	if (!s->length) {
		r->rows_affected += s->number;
		s->state = PG_REST;
	}
	return STEP_AGAIN;
}

/* ErrorResponse: a field's type, or the NUL behind the last. */
static __always_inline enum step pg_step_error(struct stream *s, struct window *w)
{
	__u8 c = window_byte(w, w->pos);

	if (s->length && !window_left(w))
		return STEP_MORE;
	if (!s->length || !c) {
		s->state = PG_REST;
		return STEP_AGAIN;
	}
	w->pos++;
	s->length--;
	if (c == 'C' && !s->own[2]) {
		s->own[2] = 1;
		pg_keep(s, FLOW_TEXT_SQLSTATE, PG_SQLSTATE_MAX, PG_ERROR);
	} else if (c == 'M' && !s->own[3]) {
		s->own[3] = 1;
		/* behind both there is nothing of interest */
		pg_keep(s, FLOW_TEXT_ERROR, PG_ERROR_MAX, s->own[2] ? PG_REST : PG_ERROR);
	} else {
		pg_drop(s, PG_ERROR);
	}
	return STEP_AGAIN;
}

/* What the server may send between exchanges, or as part of any; 0 if it answers one. */
static __always_inline int pg_is_asynchronous(__u8 type)
{
	return type == 'N' || type == 'S' || type == 'A';
}

/* Between two responses. */
static __always_inline enum step pg_step_idle(struct talk *t, struct stream *s,
					      struct flow_record *r, struct window *w)
{
	__u32 length;
	int whole;
	__u8 type;

	if (!window_left(w))
		return STEP_MORE;
	whole = pg_header(w, &type, &length);
	if (t->own[0]) {
		/* one byte: encrypted from here on, or not */
		t->own[0] = 0;
		if (type == 'S' || type == 'G')
			return STEP_ENCRYPTED;
		if (type == 'N') {
			t->sure = 1;
			w->pos++;
			return STEP_AGAIN;
		}
	}
	if (!pg_is_asynchronous(type)) {
		/* is it of a Sync before the exchange's own? */
		int earlier = t->in_flight && (__s32)(r->stream_id - t->own[2]) > 0;

		if (t->in_flight && t->old && !t->sure && type == 'Z')
			earlier = 1;
		if ((type != 'Z' && type != 'E') || (t->in_flight && !earlier))
			return STEP_BEGIN;
	}
	if (!whole)
		return STEP_MORE;
	if (whole < 0)
		return STEP_INVALID;
	if (type == 'Z' && t->own[2] != t->own[1])
		t->own[2]++;
	w->pos += 5;
	s->length = length;
	s->next = STATE_START;
	s->state = PG_REST;
	return STEP_AGAIN;
}

/* Count the rows that stand whole in the window. */
static __always_inline void pg_rows(struct stream *s, struct flow_record *r, struct window *w)
{
	__u32 length, i;
	__u8 type;

	for (i = 0; i < STRIDE; i++) {
		if (pg_header(w, &type, &length) <= 0 || type != 'D' || length > window_left(w) - 5)
			break;
		w->pos += 5 + length;
		s->body_bytes += length;
		r->rows_returned++;
	}
}

/* A server's message within an exchange. */
static __always_inline enum step pg_step_backend(struct talk *t, struct stream *s,
						 struct flow_record *r, struct window *w)
{
	__u32 length;
	int whole;
	__u8 type;

	if (r->rows_returned)
		pg_rows(s, r, w);
	if (!window_left(w))
		return STEP_MORE;
	whole = pg_header(w, &type, &length);
	if (!whole)
		return STEP_MORE;
	if (whole < 0)
		return STEP_INVALID;
	t->own[2] = r->stream_id;
	if (r->response_messages && s->own[0] >= r->response_messages &&
	    !pg_is_asynchronous(type)) {
		s->state = PG_DONE;
		return STEP_AGAIN;
	}
	if (type == 'Z') {
		/* it may end further units: left for pg_step_idle() */
		t->sure = 1;
		s->state = PG_DONE;
		return STEP_AGAIN;
	}
	s->length = length;
	s->next = PG_MESSAGE;
	s->state = PG_REST;
	switch (type) {
	case 'D': /* DataRow */
		r->rows_returned++;
		break;
	case 'C': /* CommandComplete */
		s->state = PG_TAG;
		fallthrough;
	case 's': /* PortalSuspended */
	case 'I': /* EmptyQueryResponse */
		if (r->method == 'E')
			s->next = PG_DONE;
		break;
	case 'E': /* ErrorResponse */
		if (r->method == PG_CONNECT)
			s->next = PG_DONE;
		if (!r->code)
			s->state = PG_ERROR;
		r->code = 1;
		break;
	case 'S': /* ParameterStatus */
		if (r->method == PG_CONNECT)
			s->state = PG_SETTING;
		break;
	case 'G': /* CopyInResponse: the server passes over Syncs sent before CopyDone */
		if (r->method == 'E' && t->in_flight == 1)
			t->own[1] = r->stream_id;
		break;
	case 'W': /* CopyBothResponse: replication */
		return STEP_LEAVE;
	case 'T': /* RowDescription */
	case 'n': /* NoData */
	case '1': /* ParseComplete */
	case '2': /* BindComplete */
	case '3': /* CloseComplete */
		s->own[0]++;
		break;
	case 'R': /* Authentication... */
	case 'K': /* BackendKeyData */
	case 'v': /* NegotiateProtocolVersion */
	case 't': /* ParameterDescription: half of Describe's answer */
	case 'V': /* FunctionCallResponse */
	case 'H': /* CopyOutResponse */
	case 'd': /* CopyData */
	case 'c': /* CopyDone */
	case 'N': /* NoticeResponse */
	case 'A': /* NotificationResponse */
		break;
	default:
		return STEP_INVALID;
	}
	w->pos += 5;
	s->head = 0;
	t->sure = 1;
	return STEP_AGAIN;
}

#endif
