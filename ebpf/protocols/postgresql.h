/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql.h - the PostgreSQL frontend/backend protocol, versions 3.0 and 3.2, as a
 * resumable parser.
 *
 * An exchange is the startup with its authentication (method 1), a simple query ('Q'), a
 * function call ('F'), or a unit of the extended query protocol: what leads up to an Execute and
 * the Execute ('E'), or up to a Sync or a query with no Execute before it (the type of the first
 * message). One that a query ends is over when all its messages have been answered.
 * Units up to the same Sync share flow_record.stream_id: after an error the server passes over
 * all of them, and all end at its ReadyForQuery.
 * Messages that belong to no exchange (Sync, Flush, Terminate, notices, notifications, COPY data,
 * passwords) are consumed between exchanges and within them. Parameters and rows are passed over
 * by number; rows are counted.
 * Leaves out: replication, cancel requests, and what follows when the server agrees to encrypt.
 * Of several statements prepared, or portals bound, in one unit only the first is kept.
 *
 * Here: which state is whose. The work is done in postgresql_*.h.
 */
#ifndef WIRESPAN_POSTGRESQL_H
#define WIRESPAN_POSTGRESQL_H

#include "postgresql_backend.h"
#include "postgresql_detect.h"
#include "postgresql_frontend.h"

/* stream.skip has come to 0. */
static __always_inline enum step postgresql_passed(struct talk *t, struct stream *s,
						   struct flow_record *r)
{
	(void)t;
	(void)r;
	s->length = 0;
	s->state = s->next;
	if (s->state != PG_DONE)
		return STEP_AGAIN;
	s->state = STATE_START;
	return STEP_END;
}

static __always_inline enum step postgresql_step(struct talk *t, struct stream *s,
						 struct flow_record *r, struct window *w)
{
	enum step step = STEP_AGAIN;

	switch (s->state) {
	case STATE_START:
		step = s->response ? pg_step_idle(t, s, r, w) : pg_step_frontend(t, s, r, w);
		break;
	case PG_FIRST:
	case PG_MESSAGE:
		step = s->response ? pg_step_backend(t, s, r, w) : pg_step_frontend(t, s, r, w);
		break;
	case PG_KEEP:
		step = pg_step_keep(s, r, w);
		break;
	case PG_SQL:
		pg_keep(s, FLOW_TEXT_QUERY, PG_QUERY_MAX, PG_REST);
		break;
	case PG_BOUND:
		pg_keep(s, FLOW_TEXT_STATEMENT, PG_NAME_MAX, PG_REST);
		break;
	case PG_VALUE:
		pg_drop(s, PG_KEY);
		break;
	case PG_KEY:
		step = pg_step_key(s, r, w);
		break;
	case PG_TAG:
		step = pg_step_tag(s, w);
		break;
	case PG_TAG_NUMBER:
		step = pg_step_tag_number(s, r, w);
		break;
	case PG_ERROR:
		step = pg_step_error(s, w);
		break;
	case PG_SETTING:
		step = pg_step_setting(s, w);
		break;
	}
	if (step == STEP_AGAIN && s->state == PG_STRING)
		step = pg_step_string(s, r, w);
	/* what needs no further byte is done at once: there may be none */
	if (step == STEP_AGAIN && s->state == PG_REST)
		pg_rest(s, w);
	if (step == STEP_AGAIN && s->state == PG_DONE) {
		s->state = STATE_START;
		return STEP_END;
	}
	return step;
}

#endif
