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
 */
#ifndef WIRESPAN_POSTGRESQL_H
#define WIRESPAN_POSTGRESQL_H

#include "parser.h"

#define PG_PROTOCOL_3_0 0x00030000
#define PG_PROTOCOL_3_2 0x00030002
#define PG_CANCEL_REQUEST 80877102
#define PG_SSL_REQUEST 80877103
#define PG_GSSENC_REQUEST 80877104

#define PG_CONNECT 1		 /* flow_record.method of the startup */
#define PG_LENGTH_MAX (1U << 30) /* servers' own limit of a message */
#define PG_STARTUP_MAX 10000	 /* likewise of the startup packet */
#define PG_QUERY_MAX 4096	 /* bytes kept */
#define PG_NAME_MAX 64
#define PG_ERROR_MAX 256
#define PG_SQLSTATE_MAX 5

enum pg_state {
	PG_FIRST = 2, /* first message of an exchange */
	PG_MESSAGE,   /* a further one: at its type byte */
	PG_KEEP,      /* keep what is left of the message but its NUL */
	PG_STRING,    /* up to a NUL, kept or not; then own[1] */
	PG_KEY,	      /* startup: at the name of a parameter, or the NUL behind the last */
	PG_VALUE,     /* startup: at a value that isn't kept */
	PG_SQL,	      /* Parse: at the query */
	PG_BOUND,     /* Bind: at the statement's name, behind the portal's */
	PG_TAG,	      /* CommandComplete: at its tag */
	PG_TAG_NUMBER,
	PG_ERROR,   /* ErrorResponse: at a field's type */
	PG_SETTING, /* ParameterStatus: at its name */
	PG_REST,    /* pass over the rest of the message; then `next` */
	PG_DONE,    /* the last message of the exchange is over */
};

/* Bits of stream.flags. */
enum pg_flag {
	PG_IS_BEGUN = 1,  /* a message of the exchange has gone by */
	PG_IS_PARSED = 2, /* it had a Parse */
	PG_IS_BOUND = 4,
	PG_HAS_DATABASE = 8,
	PG_DROP = 16, /* the string at hand isn't kept */
};

/*
 * stream.length: bytes of the message to come; stream.own[0]: messages of a unit that get one
 * answer each, or such answers; stream.own[1]: state after PG_STRING.
 * flow_record.response_messages: that number, of a unit that a Query ended: no ReadyForQuery will.
 * flow_record.request_messages: whether the unit had a Bind; if not, the portal is an older one.
 * Of the talk: own[0] an encryption request awaits its one byte of answer, own[1] Syncs sent,
 * where a query, a function call and the startup count too, for ReadyForQuery answers each, and
 * own[2] the number of the Sync that the next ReadyForQuery answers.
 */

/* The type and the bytes behind the length of the message at `pos`: 1, 0 too few, -1 none. */
static __always_inline int pg_header(const struct window *w, __u8 *type, __u32 *length)
{
	__u64 word = window_load(w, w->pos);
	__u32 n = __builtin_bswap32((__u32)(word >> 8));

	*type = (__u8)word;
	*length = 0;
	if (window_left(w) < 5)
		return 0;
	if (n < 4 || n > PG_LENGTH_MAX)
		return -1;
	*length = n - 4;
	return 1;
}

/* Bytes before the first NUL at `at`, at most 8 * STRIDE and those of the window. */
static __always_inline __u32 pg_string(const struct window *w, __u32 at)
{
	__u32 n = 0, left = w->end - at, i;

	for (i = 0; i < STRIDE; i++) {
		__u64 marks = word_equal(window_load(w, at + n), 0);

		if (marks) {
			n += word_index(marks);
			break;
		}
		n += 8;
		if (n >= left)
			break;
	}
	return n < left ? n : left;
}

static __always_inline int pg_is_letter(__u8 c)
{
	return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
}

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

/* Does SQL begin here: a word or a comment? */
static __always_inline int pg_is_sql(const struct window *w, __u32 at)
{
	__u8 c = window_byte(w, at), second = window_byte(w, at + 1);

	return (pg_is_letter(c) && pg_is_letter(second)) || (c == '/' && second == '*');
}

static __always_inline enum detect postgresql_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 left = window_left(w), length, at = w->pos + 5, next, n;
	__u64 word = window_load(w, w->pos);
	__u8 type;
	int whole;

	if (fresh) {
		length = __builtin_bswap32((__u32)word);
		if (left < 8) {
			/* no length takes more than two bytes */
			if (word & LOW_BYTES(left < 2 ? left : 2))
				return DETECT_NO;
			return DETECT_MORE;
		}
		return pg_is_startup(length, __builtin_bswap32((__u32)(word >> 32)))
			       ? DETECT_REQUEST
			       : DETECT_NO;
	}
	type = (__u8)word;
	if (!left || (type != 'Q' && type != 'P' && type != 'B'))
		return DETECT_NO;
	whole = pg_header(w, &type, &length);
	if (whole > 0 && (type == 'Q' ? total != 5ULL + length || length < 3
				      : total <= 5ULL + length || length < 6))
		return DETECT_NO;
	if (whole >= 0 && left < CARRY && left < total) /* the first piece of several */
		return DETECT_MORE;
	if (whole <= 0)
		return DETECT_NO;
	next = at + length;
	if (type == 'Q') {
		/* the whole buffer; its last byte may be in a later window */
		if (!pg_is_sql(w, at))
			return DETECT_NO;
		return next <= w->end && window_byte(w, next - 1) ? DETECT_NO : DETECT_REQUEST;
	}
	/* another message follows, and Sync or Flush at the end */
	if (length < WINDOW / 2 && next < w->end) {
		__u8 c = window_byte(w, next);

		if (c != 'P' && c != 'B' && c != 'D' && c != 'E' && c != 'S' && c != 'H' &&
		    c != 'C')
			return DETECT_NO;
	}
	n = pg_string(w, at);
	at += n + 1;
	if (n >= PG_NAME_MAX || n + 1 >= length || at >= w->end)
		return DETECT_NO;
	if (type == 'P')
		return pg_is_sql(w, at) ? DETECT_REQUEST : DETECT_NO;
	n = pg_string(w, at);
	at += n + 1;
	/* how many format codes: hardly more than 255 */
	if (n >= PG_NAME_MAX || at >= next || at >= w->end || window_byte(w, at))
		return DETECT_NO;
	return DETECT_REQUEST;
}

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

/* Pass over the rest of the message. */
static __always_inline void pg_rest(struct stream *s, struct window *w)
{
	if (s->length > window_left(w)) {
		s->skip = s->length;
		return;
	}
	w->pos += (__u32)s->length;
	s->body_bytes += s->length;
	s->length = 0;
	s->state = s->next;
}

/* A string begins that is kept in a slot. */
static __always_inline void pg_keep(struct stream *s, __u8 slot, __u16 most, __u8 after)
{
	keep_begin(s, slot, most);
	s->flags &= ~PG_DROP;
	s->own[1] = after;
	s->state = PG_STRING;
}

/* One that isn't. */
static __always_inline void pg_drop(struct stream *s, __u8 after)
{
	s->flags |= PG_DROP;
	s->own[1] = after;
	s->state = PG_STRING;
}

static __always_inline enum step pg_step_string(struct stream *s, struct flow_record *r,
						struct window *w)
{
	__u32 left = window_left(w), n, taken;
	enum step step;

	if (!s->length)
		return STEP_INVALID; /* the message ended before its string did */
	if (!left)
		return STEP_MORE;
	n = pg_string(w, w->pos);
	if (n > s->length)
		n = (__u32)s->length;
	if (!n) {
		w->pos++;
		s->length--;
		s->state = (__u8)s->own[1];
		return STEP_AGAIN;
	}
	if (s->flags & PG_DROP) {
		w->pos += n;
		s->length -= n;
		return s->length ? STEP_AGAIN : STEP_INVALID;
	}
	step = keep_bytes(s, r, w, n, &taken);
	s->length -= taken;
	if (taken && !s->length)
		return STEP_INVALID;
	if (step != STEP_AGAIN || taken)
		return step;
	/* more than is kept */
	s->flags |= PG_DROP;
	if (s->own[1] == PG_REST)
		s->state = PG_REST;
	return STEP_AGAIN;
}

/* The text of a simple query: its length is known. */
static __always_inline enum step pg_step_keep(struct stream *s, struct flow_record *r,
					      struct window *w)
{
	__u32 n, taken;
	enum step step;

	if (s->length <= 1) {
		s->state = PG_REST;
		return STEP_AGAIN;
	}
	if (!window_left(w))
		return STEP_MORE;
	n = s->length > WINDOW ? WINDOW : (__u32)s->length - 1;
	step = keep_bytes(s, r, w, n, &taken);
	s->length -= taken;
	if (step == STEP_AGAIN && !taken)
		s->state = PG_REST;
	return step;
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
