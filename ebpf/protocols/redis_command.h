/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis_command.h - commands, as arrays of bulk strings and inline.
 */
#ifndef WIRESPAN_REDIS_COMMAND_H
#define WIRESPAN_REDIS_COMMAND_H

#include "redis_token.h"

#define REDIS_LOWER 0x2020202020202020ULL

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

#endif
