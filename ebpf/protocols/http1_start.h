/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* http1_start.h - request lines and status lines, RFC 9112 sections 3 and 4. */
#ifndef WIRESPAN_HTTP1_START_H
#define WIRESPAN_HTTP1_START_H

#include "http1_types.h"

/* Known methods as their first eight bytes with the space behind. */
static __always_inline __u8 h1_method(__u64 word, __u32 len)
{
	__u64 w = word & LOW_BYTES(len);

	if (len > 7)
		return FLOW_METHOD_OTHER;
	switch (w) {
	case WORD('G', 'E', 'T', 0, 0, 0, 0, 0):
		return FLOW_METHOD_GET;
	case WORD('H', 'E', 'A', 'D', 0, 0, 0, 0):
		return FLOW_METHOD_HEAD;
	case WORD('P', 'O', 'S', 'T', 0, 0, 0, 0):
		return FLOW_METHOD_POST;
	case WORD('P', 'U', 'T', 0, 0, 0, 0, 0):
		return FLOW_METHOD_PUT;
	case WORD('D', 'E', 'L', 'E', 'T', 'E', 0, 0):
		return FLOW_METHOD_DELETE;
	case WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', 0):
		return FLOW_METHOD_CONNECT;
	case WORD('O', 'P', 'T', 'I', 'O', 'N', 'S', 0):
		return FLOW_METHOD_OPTIONS;
	case WORD('T', 'R', 'A', 'C', 'E', 0, 0, 0):
		return FLOW_METHOD_TRACE;
	case WORD('P', 'A', 'T', 'C', 'H', 0, 0, 0):
		return FLOW_METHOD_PATCH;
	case WORD('Q', 'U', 'E', 'R', 'Y', 0, 0, 0):
		return FLOW_METHOD_QUERY;
	}
	return FLOW_METHOD_OTHER;
}

static __always_inline enum step h1_step_method(struct stream *s, struct flow_record *r,
						struct window *w)
{
	__u32 n = w->end - w->pos, i;

	for (i = 0; i <= H1_METHOD_MAX; i++) {
		__u8 c;

		if (i >= n)
			return STEP_MORE;
		c = window_byte(w, w->pos + i);
		if (c == ' ' && i >= 3) {
			if (i + 1 >= n)
				return STEP_MORE;
			/* as h1_detect() demands: the answer may not depend on cuts; and no target
			 * is empty */
			if (!h1_is_target_start(window_byte(w, w->pos + i + 1)))
				return STEP_INVALID;
			r->method = h1_method(window_load(w, w->pos), i);
			if (r->method == FLOW_METHOD_OTHER) {
				struct word *text = (struct word *)&r->text[H1_METHOD_OFF];

				/* what lies between is handed over as well */
				__builtin_memset(r->text, 0, H1_METHOD_OFF);
				text[0].v = window_load(w, w->pos) & LOW_BYTES(i);
				text[1].v =
					i > 8 ? window_load(w, w->pos + 8) & LOW_BYTES(i - 8) : 0;
				r->fields[FLOW_TEXT_METHOD].off = H1_METHOD_OFF;
				r->fields[FLOW_TEXT_METHOD].len = i;
			}
			w->pos += i + 1;
			s->field = FLOW_TEXT_TARGET;
			s->limit = H1_TARGET_MAX;
			s->state = H1_TARGET;
			return STEP_AGAIN;
		}
		if (!h1_is_method_byte(c))
			return STEP_INVALID;
	}
	return STEP_INVALID;
}

static __always_inline enum step h1_step_target(struct stream *s, struct flow_record *r,
						struct window *w)
{
	__u8 c;

	if (!h1_keep(s, r, w, 0x21))
		return STEP_AGAIN;
	if (w->pos >= w->end)
		return STEP_MORE;
	c = window_byte(w, w->pos);
	if (c != ' ')
		return STEP_INVALID;
	w->pos++;
	s->state = H1_VERSION;
	return STEP_AGAIN;
}

#define H1_VERSION_WORD WORD('H', 'T', 'T', 'P', '/', '1', '.', 0)

static __always_inline int h1_version(const struct window *w, struct flow_record *r)
{
	__u64 word = window_load(w, w->pos);
	__u8 minor = word >> 56;

	if ((word & LOW_BYTES(7)) != H1_VERSION_WORD || minor < '0' || minor > '9')
		return 0;
	r->version = 10 + (minor - '0');
	return 1;
}

static __always_inline enum step h1_step_version(struct stream *s, struct flow_record *r,
						 struct window *w)
{
	__u32 n = w->end - w->pos;
	__u64 known = LOW_BYTES(n < 7 ? n : 7);
	__u8 c;

	if ((window_load(w, w->pos) & known) != (H1_VERSION_WORD & known))
		return STEP_INVALID;
	if (n < 10)
		if (n < 9 || window_byte(w, w->pos + 8) != '\n')
			return STEP_MORE;
	if (!h1_version(w, r))
		return STEP_INVALID;
	c = window_byte(w, w->pos + 8);
	if (c == '\r') {
		c = window_byte(w, w->pos + 9);
		w->pos++;
	}
	if (c != '\n')
		return STEP_INVALID;
	w->pos += 9;
	s->state = H1_NAME;
	return STEP_AGAIN;
}

static __always_inline enum step h1_step_status(struct stream *s, struct flow_record *r,
						struct window *w)
{
	__u32 n = w->end - w->pos, status = 0, i;
	__u64 known = LOW_BYTES(n < 7 ? n : 7);

	if ((window_load(w, w->pos) & known) != (H1_VERSION_WORD & known))
		return STEP_INVALID;
	if (n < 13)
		return STEP_MORE;
	if (!h1_version(w, r) || window_byte(w, w->pos + 8) != ' ')
		return STEP_INVALID;
	for (i = 9; i < 12; i++) {
		__u8 c = window_byte(w, w->pos + i);

		if (c < '0' || c > '9')
			return STEP_INVALID;
		status = status * 10 + (c - '0');
	}
	if (status < 100 || window_byte(w, w->pos + 12) > ' ')
		return STEP_INVALID;
	r->status = status;
	s->own[H1_STATUS] = status;
	w->pos += 12;
	s->next = H1_NAME;
	s->state = H1_LINE;
	return STEP_AGAIN;
}

#endif
