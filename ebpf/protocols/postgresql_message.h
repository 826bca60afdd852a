/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql_message.h - what PostgreSQL's messages are made of, whoever sends them: header,
 * strings, the rest; and what the parser remembers of a connection.
 */
#ifndef WIRESPAN_POSTGRESQL_MESSAGE_H
#define WIRESPAN_POSTGRESQL_MESSAGE_H

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

#endif
