/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * http1.h - HTTP/1.0 and 1.1 messages (RFC 9112) as a resumable parser; see parser.h.
 *
 * Handles: request and status lines, field lines, Content-Length, chunked coding with
 * extensions and trailers, close-delimited bodies, interim responses, HEAD, CONNECT, 101.
 * A bare LF ends a line as CRLF does (RFC 9112 section 2.2).
 * Leaves out: HTTP/0.9, line folding (obsolete; a folded line counts as a line of its own),
 * and the content of bodies, which is skipped by number and never looked at.
 *
 * FLOW_TEXT_TRACEPARENT holds the value of traceparent. Where none comes it holds the first
 * line of b3, uber-trace-id or sw8, name and all, or the values of X-B3-TraceId and X-B3-SpanId,
 * which come in any order, at H1_B3_TRACE and H1_B3_SPAN with zeros behind them.
 *
 * Here: which state is whose. The work is done in http1_*.h.
 */
#ifndef WIRESPAN_HTTP1_H
#define WIRESPAN_HTTP1_H

#include "http1_body.h"
#include "http1_detect.h"
#include "http1_field.h"
#include "http1_start.h"

/* All content that stream.skip counted went by. */
static __always_inline enum step http1_passed(struct talk *t, struct stream *s,
					      struct flow_record *r)
{
	(void)t;
	(void)r;
	if (s->state == H1_CHUNK) {
		s->state = H1_CHUNK_END;
		return STEP_AGAIN;
	}
	s->state = STATE_START;
	return STEP_END;
}

/* Take one step through the window. */
static __always_inline enum step http1_step(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	enum step step;
	__u32 i;

	/* Where one token is done the next one follows at once: a call costs more than it. */
	switch (s->state) {
	case STATE_START: {
		__u8 c = window_byte(w, w->pos);

		if (w->pos >= w->end)
			return STEP_MORE;
		/* an empty line before a request line is to be ignored: RFC 9112 section 2.2 */
		if ((c == '\r' || c == '\n') && !(s->response)) {
			w->pos++;
			return STEP_AGAIN;
		}
		return STEP_BEGIN;
	}
	case H1_METHOD:
		if (s->response) {
			step = h1_step_status(s, r, w);
			break;
		}
		step = h1_step_method(s, r, w);
		if (step != STEP_AGAIN)
			return step;
		fallthrough;
	case H1_TARGET:
		step = h1_step_target(s, r, w);
		if (step != STEP_AGAIN || s->state != H1_VERSION)
			return step;
		fallthrough;
	case H1_VERSION:
		step = h1_step_version(s, r, w);
		if (step != STEP_AGAIN)
			return step;
		t->sure = 1;
		fallthrough;
	case H1_NAME:
	case H1_TRAILER:
		for (i = 0; i < H1_LINES; i++) {
			step = h1_step_name(s, r, w);
			if (step != STEP_AGAIN || s->state != H1_NAME)
				return step;
		}
		return STEP_AGAIN;
	case H1_LENGTH:
		step = h1_step_length(s, w);
		break;
	case H1_CODING:
		step = h1_step_coding(s, w);
		break;
	case H1_OWS:
	case H1_VALUE:
		step = h1_step_value(s, r, w);
		break;
	case H1_B3:
		step = h1_step_b3(s, r, w);
		break;
	case H1_LINE:
		step = STEP_AGAIN;
		break;
	case H1_CHUNK_SIZE:
		step = h1_step_chunk_size(s, w);
		break;
	case H1_CHUNK_END:
		return h1_step_chunk_end(s, w);
	default:
		return STEP_INVALID;
	}
	return step == STEP_AGAIN && s->state == H1_LINE ? h1_step_line(s, w) : step;
}

#endif
