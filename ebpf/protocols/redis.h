/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis.h - the Redis serialization protocol, versions 2 and 3, as a resumable parser.
 *
 * Handles: commands as arrays of bulk strings and as inline commands, every type of reply at
 * any depth of nesting, attributes, and push frames between replies.
 * Keeps of a command its name, of a command with subcommands theirs too, and SELECT's index;
 * of a reply an error's text. All other arguments and all values are passed over by number.
 * Leaves out: streamed strings and aggregates, which no server sends; and what follows a command
 * after which replies don't answer commands one by one any more (pub/sub, MONITOR, replication).
 */
#ifndef WIRESPAN_REDIS_H
#define WIRESPAN_REDIS_H

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

#define REDIS_LOWER 0x2020202020202020ULL

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

/* The name of n bytes whose first eight and next eight are w0 and w1. */
static __always_inline enum redis_kind redis_kind(__u64 w0, __u64 w1, __u32 n)
{
	w0 = (w0 | REDIS_LOWER) & LOW_BYTES(n);
	w1 = n > 8 ? (w1 | REDIS_LOWER) & LOW_BYTES(n - 8) : 0;
	if (w1) {
		if (w0 == WORD('s', 'u', 'b', 's', 'c', 'r', 'i', 'b') && w1 == 'e')
			return REDIS_LEAVE;
		if ((w0 == WORD('p', 's', 'u', 'b', 's', 'c', 'r', 'i') ||
		     w0 == WORD('s', 's', 'u', 'b', 's', 'c', 'r', 'i')) &&
		    w1 == ('b' | 'e' << 8))
			return REDIS_LEAVE;
		return REDIS_PLAIN;
	}
	switch (w0) {
	case WORD('c', 'l', 'i', 'e', 'n', 't', 0, 0):
		return REDIS_CLIENT;
	case WORD('s', 'e', 'l', 'e', 'c', 't', 0, 0):
		return REDIS_SELECT;
	case WORD('m', 'o', 'n', 'i', 't', 'o', 'r', 0):
	case WORD('s', 'y', 'n', 'c', 0, 0, 0, 0):
	case WORD('p', 's', 'y', 'n', 'c', 0, 0, 0):
	case WORD('r', 'e', 'p', 'l', 'c', 'o', 'n', 'f'):
		return REDIS_LEAVE;
	case WORD('c', 'o', 'n', 'f', 'i', 'g', 0, 0):
	case WORD('c', 'l', 'u', 's', 't', 'e', 'r', 0):
	case WORD('a', 'c', 'l', 0, 0, 0, 0, 0):
	case WORD('c', 'o', 'm', 'm', 'a', 'n', 'd', 0):
	case WORD('d', 'e', 'b', 'u', 'g', 0, 0, 0):
	case WORD('f', 'u', 'n', 'c', 't', 'i', 'o', 'n'):
	case WORD('l', 'a', 't', 'e', 'n', 'c', 'y', 0):
	case WORD('m', 'e', 'm', 'o', 'r', 'y', 0, 0):
	case WORD('m', 'o', 'd', 'u', 'l', 'e', 0, 0):
	case WORD('o', 'b', 'j', 'e', 'c', 't', 0, 0):
	case WORD('p', 'u', 'b', 's', 'u', 'b', 0, 0):
	case WORD('s', 'c', 'r', 'i', 'p', 't', 0, 0):
	case WORD('s', 'l', 'o', 'w', 'l', 'o', 'g', 0):
	case WORD('x', 'g', 'r', 'o', 'u', 'p', 0, 0):
	case WORD('x', 'i', 'n', 'f', 'o', 0, 0, 0):
		return REDIS_CONTAINER;
	}
	return REDIS_PLAIN;
}

/* Names of what a server sends to subscribers in the shape of a command. */
static __always_inline int redis_is_message(__u64 word)
{
	return (word & LOW_BYTES(7)) == WORD('m', 'e', 's', 's', 'a', 'g', 'e', 0) ||
	       word == WORD('p', 'm', 'e', 's', 's', 'a', 'g', 'e') ||
	       word == WORD('s', 'm', 'e', 's', 's', 'a', 'g', 'e');
}

/* A command begins with "*count CRLF $digit". */
static __always_inline enum detect redis_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 left = window_left(w), bytes = 0, at;
	/* of an older connection only the first piece of several may tell too little */
	enum detect few = fresh || (left && left < total) ? DETECT_MORE : DETECT_NO;
	__u64 count = 0;
	int whole;
	__u8 c;

	if (!left)
		return few;
	c = window_byte(w, w->pos + 1);
	if (window_byte(w, w->pos) != '*' || (left > 1 && (c < '1' || c > '9')))
		return DETECT_NO;
	whole = redis_length(w, &count, &bytes);
	if (whole <= 0)
		return whole ? DETECT_NO : few;
	if (bytes > 9 + 3)
		return DETECT_NO;
	at = w->pos + bytes;
	if (left > bytes && window_byte(w, at) != '$')
		return DETECT_NO;
	if (left < bytes + 2)
		return few;
	if (!redis_is_digit(window_byte(w, at + 1)))
		return DETECT_NO;
	/* the same may be a reply or a message to a subscriber: at least look for a name */
	if (!fresh) {
		if (left < CARRY && left < total)
			return DETECT_MORE;
		at += window_byte(w, at + 2) == '\r' ? 4 : 5;
		if (left < at - w->pos + 2)
			return DETECT_NO;
		c = window_byte(w, at) | 0x20;
		if (c < 'a' || c > 'z' || redis_is_message(window_load(w, at)))
			return DETECT_NO;
	}
	return DETECT_REQUEST;
}

/* stream.skip has come to 0. */
static __always_inline enum step redis_passed(struct talk *t, struct stream *s,
					      struct flow_record *r)
{
	(void)t;
	(void)r;
	s->state = s->next;
	return STEP_AGAIN;
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

/* The command is whole. */
static __always_inline enum step redis_request_end(struct stream *s)
{
	s->state = STATE_START;
	return s->own[1] == REDIS_LEAVE ? STEP_LEAVE : STEP_END;
}

/* A token of `length` bytes at `pos`: a command's name, its subcommand or SELECT's index. */
static __always_inline enum step redis_name(struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u32 left = window_left(w), n = s->length > CARRY ? CARRY + 1 : (__u32)s->length;
	__u64 w0 = window_load(w, w->pos), w1 = window_load(w, w->pos + 8);

	if (n <= CARRY && left < n)
		return STEP_MORE;
	s->next = s->flags & REDIS_IS_INLINE ? REDIS_WORDS : REDIS_TAIL;
	if (!s->own[0]) {
		s->own[0] = 1;
		s->own[1] = n && n <= 16 ? redis_kind(w0, w1, n) : REDIS_PLAIN;
		s->head = 0;
		if (s->flags & REDIS_IS_INLINE && s->own[1] >= REDIS_CONTAINER &&
		    s->own[1] <= REDIS_SELECT)
			s->next = REDIS_INLINE;
		keep_begin(s, FLOW_TEXT_QUERY, REDIS_NAME_MAX);
	} else if (s->own[1] == REDIS_SELECT) {
		s->own[0] = 2;
		if (s->flags & REDIS_IS_INLINE)
			r->request_messages = 1;
		keep_begin(s, FLOW_TEXT_DATABASE, REDIS_INDEX_MAX);
		/* nothing but an index is kept */
		w0 ^= WORD_ONES * '0';
		if (n > REDIS_INDEX_MAX ||
		    ((w0 | (w0 + WORD_ONES * (0x80 - 10))) & LOW_BYTES(n) & WORD_HIGH)) {
			redis_skip(s, w);
			return STEP_AGAIN;
		}
	} else {
		__u32 at = r->text_len;

		s->own[0] = 2;
		if (!(s->flags & REDIS_IS_INLINE))
			r->request_messages--; /* it is a part of the name */
		if (s->own[1] == REDIS_CLIENT && n == 5 &&
		    ((w0 | REDIS_LOWER) & LOW_BYTES(5)) == WORD('r', 'e', 'p', 'l', 'y', 0, 0, 0))
			s->own[1] = REDIS_LEAVE;
		if (at < TEXT_MAX) {
			r->text[at] = ' ';
			r->text_len = at + 1;
			r->fields[FLOW_TEXT_QUERY].len++;
		}
		keep_begin(s, FLOW_TEXT_QUERY, REDIS_NAME_MAX);
	}
	s->state = REDIS_KEEP;
	return STEP_AGAIN;
}

/* "$length CRLF" of an argument. */
static __always_inline enum step redis_bulk(struct stream *s, struct window *w)
{
	__u32 bytes = 0;
	__u64 length = 0;
	int whole;

	if (!window_left(w))
		return STEP_MORE;
	if (window_byte(w, w->pos) != '$')
		return STEP_INVALID;
	whole = redis_length(w, &length, &bytes);
	if (!whole)
		return STEP_MORE;
	if (whole < 0 || length == REDIS_NULL)
		return STEP_INVALID;
	w->pos += bytes;
	s->length = length;
	if (!s->own[0] ||
	    (s->own[0] == 1 && s->own[1] >= REDIS_CONTAINER && s->own[1] <= REDIS_SELECT)) {
		s->state = REDIS_NAME;
		return STEP_AGAIN;
	}
	s->next = REDIS_TAIL;
	redis_skip(s, w);
	return STEP_AGAIN;
}

/* The first token of an inline command, or the second. */
static __always_inline enum step redis_inline(struct stream *s, struct window *w)
{
	__u32 left = window_left(w), i;
	__u8 c = window_byte(w, w->pos);

	if (!left)
		return STEP_MORE;
	if (c == '\n') {
		w->pos++;
		return redis_request_end(s);
	}
	if (redis_is_blank(c)) {
		w->pos++;
		return STEP_AGAIN;
	}
	for (i = 1; i < CARRY; i++) {
		if (i >= left)
			return STEP_MORE;
		if (redis_is_blank(window_byte(w, w->pos + i))) {
			s->length = i;
			s->state = REDIS_NAME;
			return STEP_AGAIN;
		}
	}
	if (!s->own[0])
		return STEP_INVALID; /* no command has such a name */
	s->state = REDIS_WORDS;
	return STEP_AGAIN;
}

/* Count the arguments of an inline command; quotes are minded as servers do. */
static __always_inline enum step redis_words(struct stream *s, struct flow_record *r,
					     struct window *w)
{
	__u32 i;

	for (i = 0; i < STRIDE; i++) {
		__u8 c = window_byte(w, w->pos);

		if (w->pos >= w->end)
			return STEP_MORE;
		w->pos++;
		if (c == '\n')
			return redis_request_end(s);
		if (s->flags & REDIS_ESCAPED) {
			s->flags &= ~REDIS_ESCAPED;
		} else if (s->own[2]) {
			if (c == '\\')
				s->flags |= REDIS_ESCAPED;
			else if (c == s->own[2])
				s->own[2] = 0;
		} else if (redis_is_blank(c)) {
			s->flags &= ~REDIS_IN_WORD;
		} else {
			if (!(s->flags & REDIS_IN_WORD))
				r->request_messages++;
			s->flags |= REDIS_IN_WORD;
			if (c == '"' || c == '\'')
				s->own[2] = c;
		}
	}
	return STEP_AGAIN;
}

/* The first byte of a command. */
static __always_inline enum step redis_command(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	__u32 bytes = 0;
	__u64 count = 0;
	int whole;

	if (!window_left(w))
		return STEP_MORE;
	if (window_byte(w, w->pos) != '*') {
		if (!t->sure)
			return STEP_INVALID;
		s->flags |= REDIS_IS_INLINE;
		s->state = REDIS_INLINE;
		return STEP_AGAIN;
	}
	whole = redis_length(w, &count, &bytes);
	if (!whole)
		return STEP_MORE;
	if (whole < 0 || count == REDIS_NULL || !count)
		return STEP_INVALID;
	w->pos += bytes;
	s->number = count;
	r->request_messages = (__u32)count - 1;
	s->state = REDIS_BULK;
	return STEP_AGAIN;
}

/* An element of the reply is whole. */
static __always_inline enum step redis_element_end(struct stream *s)
{
	s->number--;
	s->state = REDIS_ELEMENT;
	if (s->number)
		return STEP_AGAIN;
	s->state = STATE_START;
	return s->flags & REDIS_IS_PUSH ? STEP_AGAIN : STEP_END;
}

/* An element of the reply, or the reply itself. */
static __always_inline enum step redis_element(struct stream *s, struct window *w)
{
	int whole, top = s->number == 1 && !(s->flags & (REDIS_IS_NESTED | REDIS_IS_PUSH));
	__u32 bytes = 0;
	__u64 n = 0;
	__u8 c = window_byte(w, w->pos);

	if (!window_left(w))
		return STEP_MORE;
	s->next = REDIS_ELEMENT_END;
	switch (c) {
	case '-':
		if (top) {
			w->pos++;
			keep_begin(s, FLOW_TEXT_ERROR, REDIS_ERROR_MAX);
			s->state = REDIS_ERROR;
			return STEP_AGAIN;
		}
		fallthrough;
	case '+':
	case ':':
	case '_':
	case ',':
	case '#':
	case '(':
		s->state = REDIS_LINE;
		return window_line(s, w);
	}
	if (!redis_is_type(c))
		return STEP_INVALID;
	whole = redis_length(w, &n, &bytes);
	if (!whole)
		return STEP_MORE;
	if (whole < 0)
		return STEP_INVALID;
	w->pos += bytes;
	if (n == REDIS_NULL) {
		if (c != '$' && c != '*')
			return STEP_INVALID;
		s->state = REDIS_ELEMENT_END;
		return STEP_AGAIN;
	}
	if (c == '$' || c == '=' || c == '!') {
		s->next = REDIS_TAIL;
		s->length = n;
		if (c == '!' && top) {
			keep_begin(s, FLOW_TEXT_ERROR, REDIS_ERROR_MAX);
			s->state = REDIS_KEEP;
		} else {
			redis_skip(s, w);
		}
		return STEP_AGAIN;
	}
	if (c == '%' || c == '|')
		n *= 2;
	s->number += n;
	/* an attribute stands before an element and is none itself */
	if (c == '|') {
		s->state = REDIS_ELEMENT;
		return STEP_AGAIN;
	}
	if (top)
		s->flags |= REDIS_IS_NESTED;
	s->state = REDIS_ELEMENT_END;
	return STEP_AGAIN;
}

/* The line of an error that is the reply. */
static __always_inline enum step redis_error(struct stream *s, struct flow_record *r,
					     struct window *w)
{
	__u64 word = window_load(w, w->pos), marks;
	__u32 n = 0, taken, i;
	enum step step;

	/* "ERR unknown command 'x', with args beginning with: ": arguments are not kept */
	if (!s->own[0]) {
		if (window_left(w) < 8 && !word_equal(word, '\n'))
			return STEP_MORE;
		s->own[0] = word == WORD('E', 'R', 'R', ' ', 'u', 'n', 'k', 'n') ? ',' : '\r';
	}
	for (i = 0; i < STRIDE; i++) {
		word = window_load(w, w->pos + n);
		marks = word_equal(word, '\r') | word_equal(word, '\n') |
			word_equal(word, (__u8)s->own[0]);

		if (marks) {
			n += word_index(marks);
			break;
		}
		n += 8;
		if (n >= window_left(w))
			break;
	}
	if (n > window_left(w))
		n = window_left(w);
	if (n) {
		step = keep_bytes(s, r, w, n, &taken);
		if (step != STEP_AGAIN)
			return step;
		if (taken == n)
			return w->pos < w->end ? STEP_AGAIN : STEP_MORE;
		if (s->limit)
			return STEP_AGAIN;
	} else if (!window_left(w)) {
		return STEP_MORE;
	}
	s->state = REDIS_LINE;
	return window_line(s, w);
}

/* Between messages. */
static __always_inline enum step redis_start(struct stream *s, struct window *w)
{
	__u8 c = window_byte(w, w->pos), second = window_byte(w, w->pos + 1);

	if (!window_left(w))
		return STEP_MORE;
	if (s->response) {
		if (c != '>')
			return STEP_BEGIN;
		s->flags = REDIS_IS_PUSH;
		s->number = 1;
		s->state = REDIS_ELEMENT;
		return STEP_AGAIN;
	}
	if (redis_is_blank(c)) {
		w->pos++;
		return STEP_AGAIN;
	}
	if (c != '*')
		return STEP_BEGIN;
	/* a command of no words gets no reply */
	if (window_left(w) < 2)
		return STEP_MORE;
	if (second != '0' && second != '-')
		return STEP_BEGIN;
	s->next = STATE_START;
	s->state = REDIS_LINE;
	return STEP_AGAIN;
}

static __always_inline enum step redis_step(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	enum step step;

	switch (s->state) {
	case STATE_START:
		return redis_start(s, w);
	case REDIS_FIRST:
		if (!s->response)
			return redis_command(t, s, r, w);
		/* an array could as well be a command, if the directions were mistaken */
		if (redis_is_type(window_byte(w, w->pos)) &&
		    !(t->old && window_byte(w, w->pos) == '*'))
			t->sure = 1;
		s->number = 1;
		s->head = 0;
		s->state = REDIS_ELEMENT;
		fallthrough;
	case REDIS_ELEMENT:
		step = redis_element(s, w);
		break;
	case REDIS_ERROR:
		step = redis_error(s, r, w);
		break;
	case REDIS_TAIL:
		if (window_left(w) < 2)
			return STEP_MORE;
		if ((window_load(w, w->pos) & 0xffff) != ('\r' | '\n' << 8))
			return STEP_INVALID;
		w->pos += 2;
		if (s->response)
			return redis_element_end(s);
		s->state = REDIS_BULK;
		return --s->number ? STEP_AGAIN : redis_request_end(s);
	case REDIS_BULK:
		return redis_bulk(s, w);
	case REDIS_NAME:
		step = redis_name(s, r, w);
		if (step != STEP_AGAIN || s->state != REDIS_KEEP)
			return step;
		fallthrough;
	case REDIS_KEEP:
		return redis_keep(s, r, w);
	case REDIS_LINE:
		step = window_line(s, w);
		break;
	case REDIS_INLINE:
		return redis_inline(s, w);
	case REDIS_WORDS:
		return redis_words(s, r, w);
	default:
		return STEP_INVALID;
	}
	/* what needs no further byte is done at once: there may be none */
	if (step == STEP_AGAIN && s->state == REDIS_ELEMENT_END)
		return redis_element_end(s);
	return step;
}

#endif
