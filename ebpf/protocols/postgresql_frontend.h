/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql_frontend.h - a client's messages.
 */
#ifndef WIRESPAN_POSTGRESQL_FRONTEND_H
#define WIRESPAN_POSTGRESQL_FRONTEND_H

#include "postgresql_startup.h"

/* A client's message, within an exchange or between two. */
static __always_inline enum step pg_step_frontend(struct talk *t, struct stream *s,
						  struct flow_record *r, struct window *w)
{
	int between = s->state == STATE_START, first = s->state == PG_FIRST, whole;
	__u32 length;
	__u8 type;

	if (!window_left(w))
		return STEP_MORE;
	whole = pg_header(w, &type, &length);
	if (!type)
		return between || first ? pg_step_startup(t, s, r, w) : STEP_INVALID;
	if (!whole)
		return STEP_MORE;
	if (whole < 0)
		return STEP_INVALID;
	switch (type) {
	case 'S': /* Sync */
	case 'X': /* Terminate */
	case 'H': /* Flush */
		if (length)
			return STEP_INVALID;
		w->pos += 5;
		if (type == 'S')
			t->own[1]++;
		if (!between && type != 'H')
			s->state = PG_DONE;
		return STEP_AGAIN;
	case 'd': /* CopyData */
	case 'c': /* CopyDone */
	case 'f': /* CopyFail */
	case 'p': /* password, or a step of SASL or GSSAPI */
		w->pos += 5;
		s->length = length;
		s->next = s->state;
		s->state = PG_REST;
		return STEP_AGAIN;
	case 'Q': /* Query */
	case 'F': /* FunctionCall */
	case 'P': /* Parse */
	case 'B': /* Bind */
	case 'D': /* Describe */
	case 'E': /* Execute */
	case 'C': /* Close */
		break;
	default:
		return STEP_INVALID;
	}
	if (between)
		return STEP_BEGIN;
	if (!(s->flags & PG_IS_BEGUN)) {
		r->method = type;
		r->stream_id = t->own[1];
		s->flags |= PG_IS_BEGUN;
		s->head = 0;
	} else if (type == 'Q' || type == 'F') {
		/* a unit that no Sync ended */
		r->response_messages = s->own[0];
		s->state = PG_DONE;
		return STEP_AGAIN;
	}
	w->pos += 5;
	s->own[0]++;
	s->length = length;
	s->next = PG_MESSAGE;
	s->state = PG_REST;
	switch (type) {
	case 'Q':
		t->own[1]++;
		s->next = PG_DONE;
		keep_begin(s, FLOW_TEXT_QUERY, PG_QUERY_MAX);
		s->state = PG_KEEP;
		break;
	case 'F':
		t->own[1]++;
		s->next = PG_DONE;
		break;
	case 'E':
		r->method = 'E';
		s->next = PG_DONE;
		if (!(s->flags & PG_IS_BOUND)) /* a portal from before */
			pg_keep(s, FLOW_TEXT_PORTAL, PG_NAME_MAX, PG_REST);
		break;
	case 'P':
		if (s->flags & (PG_IS_PARSED | PG_IS_BOUND))
			break;
		s->flags |= PG_IS_PARSED;
		pg_keep(s, FLOW_TEXT_STATEMENT, PG_NAME_MAX, PG_SQL);
		break;
	case 'B':
		if (s->flags & PG_IS_BOUND)
			break;
		s->flags |= PG_IS_BOUND;
		r->request_messages = 1;
		pg_keep(s, FLOW_TEXT_PORTAL, PG_NAME_MAX,
			s->flags & PG_IS_PARSED ? PG_REST : PG_BOUND);
		break;
	}
	return STEP_AGAIN;
}

#endif
