/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* http1_body.h - where the content of a message ends, RFC 9112 sections 6 and 7. */
#ifndef WIRESPAN_HTTP1_BODY_H
#define WIRESPAN_HTTP1_BODY_H

#include "http1_types.h"

/* The head is complete: what frames the body? RFC 9112 section 6.3. */
static __always_inline enum step h1_head_end(struct stream *s, struct flow_record *r)
{
	s->head = 0;
	if (s->response) {
		__u32 status = s->own[H1_STATUS];

		if (status == 101 ||
		    (r->method == FLOW_METHOD_CONNECT && status >= 200 && status < 300)) {
			s->state = STATE_SYNC;
			return STEP_TUNNEL;
		}
		if (status < 200) {
			r->status = 0; /* of the exchange: still unknown */
			s->state = STATE_START;
			return STEP_AGAIN;
		}
		if (r->method == FLOW_METHOD_HEAD || status == 204 || status == 304) {
			s->state = STATE_START;
			return STEP_END;
		}
	}
	s->digits = 0;
	if (s->flags & H1_CHUNKED) {
		s->number = 0;
		s->state = H1_CHUNK_SIZE;
		return STEP_HEAD_END;
	}
	/* another coding than chunked at the end: only the close tells the length */
	if (s->flags & H1_HAS_LENGTH && !(s->flags & H1_CODED && s->response)) {
		s->skip = s->length;
		s->state = s->skip ? H1_BODY : STATE_START;
		return s->skip ? STEP_HEAD_END : STEP_END;
	}
	if (s->response) {
		s->skip = SKIP_ALL;
		s->state = H1_BODY_EOF;
		return STEP_HEAD_END;
	}
	s->state = STATE_START;
	return STEP_END;
}

/* chunk-size in hex, RFC 9112 section 7.1. */
static __always_inline enum step h1_step_chunk_size(struct stream *s, struct window *w)
{
	__u32 i;

	for (i = 0; i < STRIDE; i++) {
		__u8 c, digit;

		if (w->pos >= w->end)
			return STEP_MORE;
		c = window_byte(w, w->pos);
		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			digit = (c | 0x20) - 'a' + 10;
		else
			goto end;
		if (s->number > H1_LENGTH_MAX / 16)
			return STEP_INVALID;
		s->number = s->number << 4 | digit;
		s->digits = 1;
		w->pos++;
	}
	return STEP_AGAIN;
end:
	if (!s->digits)
		return STEP_INVALID;
	s->digits = 0;
	s->next = s->number ? H1_CHUNK : H1_TRAILER;
	s->state = H1_LINE;
	return STEP_AGAIN;
}

static __always_inline enum step h1_step_chunk_end(struct stream *s, struct window *w)
{
	__u8 c;

	if (w->pos >= w->end)
		return STEP_MORE;
	c = window_byte(w, w->pos);
	if (c == '\r') {
		if (w->pos + 1 >= w->end)
			return STEP_MORE;
		w->pos++;
		c = window_byte(w, w->pos);
	}
	if (c != '\n')
		return STEP_INVALID;
	w->pos++;
	s->number = 0;
	s->state = H1_CHUNK_SIZE;
	return STEP_AGAIN;
}

#endif
