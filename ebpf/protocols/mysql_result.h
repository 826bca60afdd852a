/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_result.h - what a response's packets say: OK, EOF, ERR, columns, a statement's number.
 */
#ifndef WIRESPAN_MYSQL_RESULT_H
#define WIRESPAN_MYSQL_RESULT_H

#include "mysql_packet.h"

/* A result is complete: another one follows, or the response is. */
static __always_inline void mysql_result_end(struct stream *s, const struct flow_record *r,
					     __u32 status)
{
	s->next = STATE_START;
	if (!(status & STATUS_MORE_RESULTS))
		return;
	switch (r->method) {
	case COM_QUERY:
	case COM_STMT_EXECUTE:
	case COM_STMT_BULK_EXECUTE:
		s->own[MYSQL_EXPECT] = EXPECT_RESULT;
		s->next = MYSQL_HEAD;
	}
}

static __always_inline enum step mysql_ok(struct talk *t, struct stream *s, struct flow_record *r,
					  struct window *w)
{
	__u32 left = window_left(w), a, b;

	/* affected rows, last insert's id: integers; status 2 */
	if (!left)
		return STEP_MORE;
	a = mysql_int_size(window_byte(w, w->pos));
	if (!a || a >= s->length)
		return STEP_INVALID;
	if (left <= a)
		return STEP_MORE;
	b = mysql_int_size(window_byte(w, w->pos + a));
	if (!b || a + b + 2 > s->length)
		return STEP_INVALID;
	if (left < a + b + 2)
		return STEP_MORE;
	if (!(s->flags & MYSQL_ENDS_ROWS))
		r->rows_affected += mysql_int(w, w->pos, a);
	t->sure = 1;
	mysql_result_end(s, r, window_load(w, w->pos + a + b) & 0xffff);
	mysql_take(s, w, a + b + 2);
	return mysql_rest(t, s, r, w);
}

/* All definitions have come: what follows them? */
static __always_inline void mysql_columns_end(struct talk *t, struct stream *s,
					      const struct flow_record *r)
{
	__u32 eofs = t->own[MYSQL_EOFS];

	if (eofs == EOFS_SENT) {
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS_END;
	} else if (r->method != COM_STMT_PREPARE) {
		s->own[MYSQL_EXPECT] = eofs == EOFS_UNKNOWN ? EXPECT_LEARN : EXPECT_ROWS;
	} else if (s->own[MYSQL_LATER]) {
		s->own[MYSQL_EXPECT] = EXPECT_LEARN;
	} else {
		s->next = STATE_START;
		if (eofs == EOFS_UNKNOWN)
			t->own[MYSQL_TRAIL] = 0x100 | ((s->digits + 1) & 0xff);
	}
}

static __always_inline enum step mysql_eof(struct talk *t, struct stream *s, struct flow_record *r,
					   struct window *w)
{
	__u32 status = window_load(w, w->pos) >> 16 & 0xffff;

	if (window_left(w) < 4)
		return STEP_MORE;
	mysql_take(s, w, 4);
	if (s->own[MYSQL_EXPECT] != EXPECT_COLUMNS_END) {
		mysql_result_end(s, r, status);
	} else if (r->method == COM_STMT_PREPARE) {
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
		s->own[MYSQL_COLUMNS] = s->own[MYSQL_LATER];
		s->own[MYSQL_LATER] = 0;
		if (!s->own[MYSQL_COLUMNS])
			s->next = STATE_START;
	} else if (status & STATUS_CURSOR) {
		mysql_result_end(s, r, status); /* rows come by COM_STMT_FETCH */
	} else {
		s->own[MYSQL_EXPECT] = EXPECT_ROWS;
	}
	return mysql_packet_end(t, s, r);
}

static __always_inline enum step mysql_err(struct talk *t, struct stream *s, struct flow_record *r,
					   struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 need = s->length < 8 ? 2 : 8, code = word & 0xffff;
	int sqlstate = need == 8 && (__u8)(word >> 16) == '#';

	if (s->length < 2)
		return STEP_INVALID;
	if (window_left(w) < need)
		return STEP_MORE;
	if (code == 0xffff) /* how far MariaDB has come, no error */
		return mysql_rest(t, s, r, w);
	/* before the connection phase there is no SQLSTATE */
	if (!t->sure && !sqlstate && r->method != COM_CONNECT)
		return STEP_INVALID;
	t->sure = 1;
	r->code = code;
	s->next = STATE_START;
	s->state = MYSQL_KEEP;
	keep_begin(s, FLOW_TEXT_ERROR, MYSQL_ERROR_MOST);
	mysql_take(s, w, 2);
	if (sqlstate) {
		mysql_take(s, w, 1);
		keep_begin(s, FLOW_TEXT_SQLSTATE, 5);
		s->number = 5;
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/*
 * The number of columns. A byte that says whether their definitions follow stands before it
 * (MySQL, CLIENT_OPTIONAL_RESULTSET_METADATA) or behind it (MariaDB,
 * MARIADB_CLIENT_CACHE_METADATA); the lengths tell, so the capabilities need not be known.
 */
static __always_inline enum step mysql_count(struct talk *t, struct stream *s,
					     struct flow_record *r, struct window *w)
{
	__u32 n = s->length, at = w->pos, size, defined = 1;
	__u64 count;

	if (window_left(w) < n)
		return STEP_MORE;
	size = mysql_int_size(window_byte(w, at));
	if (size == 1 && n > 1 && window_byte(w, at) <= 1 && window_byte(w, at + 1)) {
		defined = window_byte(w, at++);
		size = mysql_int_size(window_byte(w, at)) + 1;
	} else if (n == size + 1) {
		defined = window_byte(w, at + size);
		if (defined > 1)
			return STEP_INVALID;
		count = mysql_int(w, at, size);
		goto known;
	}
	if (n != size)
		return STEP_INVALID;
	count = mysql_int(w, at, w->pos == at ? size : size - 1);
known:
	if (!count || count > 0xffff) /* a table has 4096 at most */
		return STEP_INVALID;
	t->sure = 1;
	mysql_take(s, w, n);
	s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
	s->own[MYSQL_COLUMNS] = count;
	if (!defined)
		mysql_columns_end(t, s, r);
	return mysql_packet_end(t, s, r);
}

/* OK of COM_STMT_PREPARE: number 4, columns 2, parameters 2, filler 1, warnings 2, defined 1 */
static __always_inline enum step mysql_prepared(struct talk *t, struct stream *s,
						struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 columns, params;

	if (window_left(w) < s->length)
		return STEP_MORE;
	r->stream_id = (__u32)word;
	columns = word >> 32 & 0xffff;
	params = word >> 48;
	if (s->length == 12 && !window_byte(w, w->pos + 11))
		columns = params = 0;
	t->sure = 1;
	mysql_take(s, w, s->length);
	s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
	s->own[MYSQL_COLUMNS] = params ? params : columns;
	s->own[MYSQL_LATER] = params ? columns : 0;
	if (!s->own[MYSQL_COLUMNS])
		s->next = STATE_START;
	return mysql_packet_end(t, s, r);
}

#endif
