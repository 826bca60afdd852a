/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis_token.h - what both directions of RESP are made of: lengths, type bytes, strings; and
 * what the parser remembers of a connection.
 */
#ifndef WIRESPAN_REDIS_TOKEN_H
#define WIRESPAN_REDIS_TOKEN_H

#include "parser.h"

#define REDIS_DIGITS 10	    /* of a length or count; no server takes more than 2^32 */
#define REDIS_NAME_MAX 32   /* bytes kept of a name; the same of a subcommand */
#define REDIS_ERROR_MAX 128 /* bytes kept of an error's text */
#define REDIS_INDEX_MAX 8   /* digits of SELECT's index */
#define REDIS_NULL (~0ULL)  /* the length -1 */

enum redis_state {
	REDIS_FIRST = 2, /* first byte of a message */
	REDIS_BULK,	 /* request: "$length CRLF" */
	REDIS_NAME,	 /* request: a token that is kept; `length` bytes of it, as yet unread */
	REDIS_KEEP,	 /* within a string that is kept; `length` bytes to come */
	REDIS_TAIL,	 /* the CRLF behind a string */
	REDIS_LINE,	 /* the rest of a line of no interest; then `next` */
	REDIS_INLINE,	 /* inline command: blanks, then a token */
	REDIS_WORDS,	 /* inline command: arguments, which are counted */
	REDIS_ELEMENT,	 /* response: at a type byte */
	REDIS_ERROR,	 /* response: in an error's line */
	REDIS_ELEMENT_END,
};

/* Bits of stream.flags. */
enum redis_flag {
	REDIS_IS_INLINE = 1,
	REDIS_IS_NESTED = 2, /* what comes is within the reply's own aggregate */
	REDIS_IS_PUSH = 4,   /* no reply */
	REDIS_IN_WORD = 8,
	REDIS_ESCAPED = 16,
};

/* What a command's name tells of the rest of it. */
enum redis_kind {
	REDIS_PLAIN = 0,
	REDIS_CONTAINER, /* a subcommand follows */
	REDIS_CLIENT,	 /* likewise, and it may be REPLY */
	REDIS_SELECT,
	REDIS_LEAVE, /* replies don't answer commands one by one any more */
};

/*
 * stream.number: elements to come; stream.own of a request:
 * [0] arguments seen, [1] enum redis_kind, [2] the quote an inline argument is within; of a
 * response: [0] the byte besides CR and LF that ends what is kept of an error.
 */

static __always_inline int redis_is_digit(__u8 c)
{
	return c >= '0' && c <= '9';
}

static __always_inline int redis_is_blank(__u8 c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/*
 * The number and CRLF behind the type byte at `pos`; *bytes counts all of them. 1 whole,
 * 0 too few bytes, -1 no length.
 */
static __always_inline int redis_length(const struct window *w, __u64 *number, __u32 *bytes)
{
	__u32 left = window_left(w), i;
	__u64 n = 0;
	__u8 c;

	if (left < 2)
		return 0;
	if (window_byte(w, w->pos + 1) == '-') {
		if (left < 5)
			return 0;
		*number = REDIS_NULL;
		*bytes = 5;
		return (window_load(w, w->pos + 1) & LOW_BYTES(4)) ==
				       WORD('-', '1', '\r', '\n', 0, 0, 0, 0)
			       ? 1
			       : -1;
	}
	for (i = 1; i <= REDIS_DIGITS + 1; i++) {
		if (i >= left)
			return 0;
		c = window_byte(w, w->pos + i);
		if (!redis_is_digit(c))
			break;
		n = n * 10 + (c - '0');
	}
	if (i < 2 || i > REDIS_DIGITS + 1 || c != '\r')
		return -1;
	if (i + 1 >= left)
		return 0;
	if (window_byte(w, w->pos + i + 1) != '\n')
		return -1;
	*number = n;
	*bytes = i + 2;
	return 1;
}

/* A type byte of RESP2 or RESP3. */
static __always_inline int redis_is_type(__u8 c)
{
	/* those up to '>' by a bit each */
	const __u64 types = 1ULL << '+' | 1ULL << '-' | 1ULL << ':' | 1ULL << '$' | 1ULL << '*' |
			    1ULL << ',' | 1ULL << '#' | 1ULL << '(' | 1ULL << '!' | 1ULL << '=' |
			    1ULL << '%' | 1ULL << '>';

	if (c < 64)
		return types >> c & 1;
	return c == '_' || c == '~' || c == '|';
}

/* Pass over `length` bytes, then go on in the state `next`. */
static __always_inline void redis_skip(struct stream *s, struct window *w)
{
	/* what stands in this window need not take the way round by the caller */
	if (s->length <= window_left(w)) {
		w->pos += (__u32)s->length;
		s->body_bytes += s->length;
		s->state = s->next;
		return;
	}
	s->skip = s->length;
}

/* Keep what is to be kept of `length` bytes and pass over the others. */
static __always_inline enum step redis_keep(struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u32 n = s->length > WINDOW ? WINDOW : (__u32)s->length, taken;
	enum step step = keep_bytes(s, r, w, n, &taken);

	s->length -= taken;
	if (step != STEP_AGAIN)
		return step;
	if (!s->length) {
		s->state = s->next;
		return STEP_AGAIN;
	}
	if (!s->limit) {
		r->truncated |= 1 << (s->field & (FLOW_TEXT_FIELDS - 1));
		redis_skip(s, w);
		return STEP_AGAIN;
	}
	return window_left(w) ? STEP_AGAIN : STEP_MORE;
}

#endif
