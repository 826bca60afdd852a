/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_response.h - a server's packets: which one comes next, and where a response ends.
 */
#ifndef WIRESPAN_MYSQL_RESPONSE_H
#define WIRESPAN_MYSQL_RESPONSE_H

#include "mysql_result.h"

/* Does another protocol follow this command, unless the server refuses it? */
static __always_inline int mysql_leaves(const struct flow_record *r)
{
	return r->method == COM_BINLOG_DUMP || r->method == COM_TABLE_DUMP ||
	       r->method == COM_BINLOG_DUMP_GTID || r->method == COM_CLONE ||
	       r->method == COM_SUBSCRIBE;
}

/* What the first packet of this command's response is. */
static __always_inline __u32 mysql_expected(const struct flow_record *r)
{
	switch (r->method) {
	case COM_CONNECT:
		return EXPECT_GREETING;
	case COM_CHANGE_USER:
		return EXPECT_AUTH;
	case COM_STMT_PREPARE:
		return EXPECT_PREPARE;
	case COM_STATISTICS:
		return EXPECT_STRING;
	case COM_FIELD_LIST:
		return EXPECT_FIELDS;
	case COM_STMT_FETCH:
		return EXPECT_ROWS;
	}
	return EXPECT_RESULT;
}

/* The packet that is an EOF or, CLIENT_DEPRECATE_EOF, an OK that begins like one. */
static __always_inline enum step mysql_end_packet(struct stream *s)
{
	s->state = s->length == 4 ? MYSQL_EOF : MYSQL_OK;
	s->flags |= MYSQL_ENDS_ROWS;
	return s->length < 4 ? STEP_INVALID : STEP_AGAIN;
}

/* The header of a response's packet, and its first byte. */
static __always_inline enum step mysql_response(struct talk *t, struct stream *s,
						struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 length = word & MYSQL_PACKET_MAX, expect = s->own[MYSQL_EXPECT];
	__u8 number = word >> 24, first = word >> 32;
	int ends;

	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	if (s->flags & MYSQL_CONTINUES || expect >= EXPECT_COLUMNS)
		if (number != (__u8)(s->digits + 1))
			return STEP_INVALID;
	if (s->flags & MYSQL_CONTINUES) {
		if (length != MYSQL_PACKET_MAX)
			s->flags &= ~MYSQL_CONTINUES;
		s->digits = number;
		w->pos += MYSQL_HEADER;
		s->length = length;
		return mysql_rest(t, s, r, w);
	}
	if (!length)
		return STEP_INVALID;
	if (window_left(w) < MYSQL_HEADER + 1)
		return STEP_MORE;
	if (expect == EXPECT_BEGIN) {
		if (t->own[MYSQL_PHASE] == PHASE_NONE)
			r->method = COM_CONNECT; /* STEP_OPEN */
		expect = mysql_expected(r);
		if (!t->sure && number != (expect == EXPECT_GREETING ? 0 : 1))
			return STEP_INVALID;
		s->own[MYSQL_EXPECT] = expect;
		s->head = 0;
	}
	s->digits = number;
	s->flags = length == MYSQL_PACKET_MAX ? MYSQL_CONTINUES : 0;
	s->next = MYSQL_HEAD;
	s->length = length - 1;
	w->pos += MYSQL_HEADER + 1;
	if (first == 0xff) {
		s->state = MYSQL_ERR;
		return s->length < 2 ? STEP_INVALID : STEP_AGAIN;
	}
	if (mysql_leaves(r))
		return STEP_LEAVE;
	/* a string whose length takes so long a form takes more than one packet */
	ends = first == 0xfe && length != MYSQL_PACKET_MAX;
	switch (expect) {
	case EXPECT_GREETING:
		if (first != 10)
			return STEP_INVALID;
		s->state = MYSQL_VERSION;
		keep_begin(s, FLOW_TEXT_VERSION, MYSQL_VERSION_MOST);
		return s->length ? STEP_AGAIN : STEP_INVALID;
	case EXPECT_AUTH:
		if (!first && s->length >= 6) {
			s->state = MYSQL_OK;
			return STEP_AGAIN;
		}
		if (t->own[MYSQL_PHASE] == PHASE_READY)
			t->own[MYSQL_PHASE] = PHASE_AUTH; /* COM_CHANGE_USER */
		break;
	case EXPECT_RESULT:
		if (ends)
			return mysql_end_packet(s);
		if (first == 0xfb && length > 1 && (t->sure || length < 512)) {
			t->own[MYSQL_PHASE] = PHASE_FILE;
			break;
		}
		if (!first && s->length >= 6) {
			s->state = MYSQL_OK;
			return STEP_AGAIN;
		}
		w->pos--;
		s->length++;
		s->state = MYSQL_COUNT;
		return length > 10 ? STEP_INVALID : STEP_AGAIN;
	case EXPECT_PREPARE:
		s->state = MYSQL_PREPARED;
		return first || s->length < 11 || s->length > 12 ? STEP_INVALID : STEP_AGAIN;
	case EXPECT_STRING:
		s->next = STATE_START;
		break;
	case EXPECT_FIELDS:
		if (ends)
			return mysql_end_packet(s);
		break;
	case EXPECT_COLUMNS_END:
		s->state = MYSQL_EOF;
		return ends && s->length == 4 ? STEP_AGAIN : STEP_INVALID;
	case EXPECT_LEARN:
		if (ends && s->length == 4 && t->own[MYSQL_EOFS] == EOFS_UNKNOWN) {
			t->own[MYSQL_EOFS] = EOFS_SENT;
			s->own[MYSQL_EXPECT] = EXPECT_COLUMNS_END;
			s->state = MYSQL_EOF;
			return STEP_AGAIN;
		}
		t->own[MYSQL_EOFS] = EOFS_LEFT_OUT;
		if (r->method != COM_STMT_PREPARE) {
			s->own[MYSQL_EXPECT] = EXPECT_ROWS;
			goto rows;
		}
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
		s->own[MYSQL_COLUMNS] = s->own[MYSQL_LATER];
		s->own[MYSQL_LATER] = 0;
		fallthrough;
	case EXPECT_COLUMNS:
		s->own[MYSQL_COLUMNS]--;
		if (!s->own[MYSQL_COLUMNS])
			mysql_columns_end(t, s, r);
		break;
	case EXPECT_ROWS:
rows:
		if (ends)
			return mysql_end_packet(s);
		r->rows_returned++;
		break;
	}
	return mysql_rest(t, s, r, w);
}

/* Between responses: the next one, the server's greeting, or an EOF not known to follow. */
static __always_inline enum step mysql_next(struct talk *t, struct stream *s, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 trail = t->own[MYSQL_TRAIL], n = window_left(w);

	if (!n)
		return STEP_MORE;
	if (t->own[MYSQL_PHASE] == PHASE_COMPRESSED)
		return STEP_COMPRESSED;
	if (trail) {
		if (n < MYSQL_HEADER + 1)
			return STEP_MORE;
		if ((word & LOW_BYTES(5)) == WORD(5, 0, 0, trail & 0xff, 0xfe, 0, 0, 0)) {
			if (n < MYSQL_HEADER + 5)
				return STEP_MORE;
			w->pos += MYSQL_HEADER + 5;
			t->own[MYSQL_EOFS] = EOFS_SENT;
			t->own[MYSQL_TRAIL] = 0;
			return STEP_AGAIN;
		}
		t->own[MYSQL_EOFS] = EOFS_LEFT_OUT;
		t->own[MYSQL_TRAIL] = 0;
	}
	s->flags = 0;
	if (t->own[MYSQL_PHASE] == PHASE_NONE && !t->old && !t->in_flight)
		return STEP_OPEN;
	return STEP_BEGIN;
}

#endif
