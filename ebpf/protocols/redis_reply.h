/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis_reply.h - replies and push frames.
 */
#ifndef WIRESPAN_REDIS_REPLY_H
#define WIRESPAN_REDIS_REPLY_H

#include "redis_token.h"

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

#endif
