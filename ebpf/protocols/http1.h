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
 */
#ifndef WIRESPAN_HTTP1_H
#define WIRESPAN_HTTP1_H

#include "parser.h"

/* What is kept of a target; with the limits of the fields all of them fit together. */
#define H1_TARGET_MAX 168
#define H1_METHOD_OFF 408 /* where FLOW_TEXT_METHOD lies: at the end, the target is at 0 */
#define H1_METHOD_MAX 16  /* longest method token we take for one */
#define H1_TEXT_END (H1_METHOD_OFF - 8)
#define H1_TRACEPARENT_MAX 56
#define H1_FOREIGN_MAX 216 /* of another header in its place */
#define H1_B3_TRACE 0	   /* where in their slot the values of X-B3- headers lie: */
#define H1_B3_SPAN 40	   /* each has a word more than it should fill */
#define H1_B3_LEN 64
#define H1_LINES 4			    /* field lines passed over in one step */
#define H1_LENGTH_MAX 999999999999999999ULL /* most bytes of a body or a chunk */

enum h1_state {
	H1_METHOD = 2, /* start line: of a request, or of a response its status line */
	H1_TARGET,
	H1_VERSION,
	H1_NAME,       /* at the start of a field line */
	H1_LENGTH,     /* in the value of Content-Length */
	H1_CODING,     /* in the value of Transfer-Encoding */
	H1_OWS,	       /* white space before a value that is kept */
	H1_VALUE,      /* in a value that is kept */
	H1_B3,	       /* in the value of an X-B3- header */
	H1_LINE,       /* in the rest of a line of no interest */
	H1_BODY,       /* content that stream.skip counts */
	H1_BODY_EOF,   /* content until the connection closes */
	H1_CHUNK_SIZE, /* chunk-size [ chunk-ext ] CRLF */
	H1_CHUNK,      /* chunk-data that stream.skip counts */
	H1_CHUNK_END,  /* the CRLF after chunk-data */
	H1_TRAILER,    /* at the start of a trailer field line */
};

enum h1_flag {
	H1_CHUNKED = 1,	   /* the last transfer coding is chunked */
	H1_HAS_LENGTH = 2, /* Content-Length was seen */
	H1_CODED = 4,	   /* Transfer-Encoding was seen */
	H1_FOREIGN = 8,	   /* FLOW_TEXT_TRACEPARENT holds something else than a traceparent */
	H1_B3_PAIR = 16,   /* namely the values of X-B3- headers */
};

/*
 * What frames a message is kept in its stream: the record of one that counts for nothing, as its
 * request found no room or was given up, is another message's by the next I/O.
 */
enum h1_own {
	H1_STATUS, /* of a response */
};

/* ASCII letters to lower case; leaves digits, '-' and ':' as they are. */
static __always_inline __u64 h1_lower(__u64 word)
{
	__u64 heptets = word & ~WORD_HIGH;
	__u64 above_z = heptets + WORD_ONES * (0x7f - 'Z');
	__u64 from_a = heptets + WORD_ONES * (0x80 - 'A');
	__u64 upper = (from_a & ~above_z & ~word & WORD_HIGH) >> 2;

	return word | upper;
}

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

/* A byte of a method as servers in the field define them: capitals, '-' and '_'. */
static __always_inline int h1_is_method_byte(__u8 c)
{
	return (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
}

/* Does a target begin so: origin-form, "*", absolute-form, or CONNECT's authority? */
static __always_inline int h1_is_target_start(__u8 c)
{
	c |= 0x20;
	return c == '/' || c == '*' || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == ('[' | 0x20);
}

/*
 * Could these bytes be the start of a request? The request line's end settles it, when
 * "HTTP/1." must stand there.
 */
static __always_inline enum detect http1_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 at = w->pos, n, i;
	__u8 c = window_byte(w, at);

	(void)total;
	(void)fresh;
	/* an empty line before it is to be ignored: RFC 9112 section 2.2 */
	if (c == '\r')
		c = window_byte(w, ++at);
	if (c == '\n')
		at++;
	n = w->end - at;
	if (at >= w->end)
		return w->end == w->pos ? DETECT_NO : DETECT_MORE;
	c = window_byte(w, at);
	if (c == '\r' || c == '\n') /* STATE_START passes over as many as come */
		return DETECT_REQUEST;
	for (i = 0; i <= H1_METHOD_MAX; i++) {
		if (i >= n)
			return DETECT_MORE;
		c = window_byte(w, at + i);
		if (c == ' ' && i >= 3) {
			if (i + 1 >= n)
				return DETECT_MORE;
			c = window_byte(w, at + i + 1);
			return h1_is_target_start(c) ? DETECT_REQUEST : DETECT_NO;
		}
		if (!h1_is_method_byte(c))
			return DETECT_NO;
	}
	return DETECT_NO;
}

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

/*
 * Keep bytes up to (not including) the first one below `stop` in the record's text, as
 * far as the field's limit goes, and leave `pos` on that byte or on the window's end.
 * Returns 0 if neither was reached yet.
 */
static __always_inline int h1_keep(struct stream *s, struct flow_record *r, struct window *w,
				   __u64 stop)
{
	__u32 pos = w->pos, at = r->text_len, limit = s->limit, n = 8, i;
	__u32 field = s->field & (FLOW_TEXT_FIELDS - 1);

	for (i = 0; i < STRIDE && n == 8; i++) {
		__u64 word = window_load(w, pos);
		__u64 marks = word_below(word, stop);
		__u32 kept;

		if (marks)
			n = word_index(marks);
		if (n > w->end - pos)
			n = w->end - pos;
		kept = n;
		if (kept > limit - at) {
			kept = limit - at;
			r->truncated |= 1 << field;
		}
		if (kept && at <= TEXT_MAX)
			((struct word *)&r->text[at])->v = word & LOW_BYTES(kept);
		at += kept;
		pos += n;
	}
	w->pos = pos;
	r->fields[field].len += at - r->text_len;
	r->text_len = at;
	return n < 8 || pos >= w->end;
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

/* Field names we want, lower case, as words: {first 8, next 8, rest} and their lengths. */
#define H1_HOST WORD('h', 'o', 's', 't', ':', 0, 0, 0)
#define H1_CONTENT_ WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-')
#define H1_LENGTH_ WORD('l', 'e', 'n', 'g', 't', 'h', ':', 0)
#define H1_TRANSFER WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')
#define H1_ENCODIN WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n')
#define H1_USER_AGE WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e')
#define H1_NT WORD('n', 't', ':', 0, 0, 0, 0, 0)
#define H1_TRACEPAR WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')
#define H1_ENT WORD('e', 'n', 't', ':', 0, 0, 0, 0)
#define H1_X_FORWAR WORD('x', '-', 'f', 'o', 'r', 'w', 'a', 'r')
#define H1_DED_FOR WORD('d', 'e', 'd', '-', 'f', 'o', 'r', ':')
#define H1_DED_PROT WORD('d', 'e', 'd', '-', 'p', 'r', 'o', 't')
#define H1_SINGLE_B3 WORD('b', '3', ':', 0, 0, 0, 0, 0)
#define H1_SW8 WORD('s', 'w', '8', ':', 0, 0, 0, 0)
#define H1_UBER_TRA WORD('u', 'b', 'e', 'r', '-', 't', 'r', 'a')
#define H1_CE_ID WORD('c', 'e', '-', 'i', 'd', ':', 0, 0)
#define H1_X_B3_TRA WORD('x', '-', 'b', '3', '-', 't', 'r', 'a')
#define H1_CEID WORD('c', 'e', 'i', 'd', ':', 0, 0, 0)
#define H1_X_B3_SPA WORD('x', '-', 'b', '3', '-', 's', 'p', 'a')
#define H1_NID WORD('n', 'i', 'd', ':', 0, 0, 0, 0)

/*
 * Most lines are of no interest, and are told by their first three bytes: by a hash of six bits
 * whose factor was searched for so that common names do not meet with ours.
 */
#define H1_HASH(w0) ((((w0) & LOW_BYTES(3)) * 0x7C3CA1601167138BULL) >> 58)
#define H1_MARK(a, b, c) (1ULL << H1_HASH(WORD(a, b, c, 0, 0, 0, 0, 0)))
#define H1_MARKS_BOTH (H1_MARK('c', 'o', 'n') | H1_MARK('t', 'r', 'a'))
#define H1_MARKS_REQUEST                                                                           \
	(H1_MARKS_BOTH | H1_MARK('h', 'o', 's') | H1_MARK('u', 's', 'e') |                         \
	 H1_MARK('x', '-', 'f') | H1_MARK('x', '-', 'b') | H1_MARK('u', 'b', 'e') |                \
	 H1_MARK('b', '3', ':') | H1_MARK('s', 'w', '8'))

/* Could the line be one of those we want? Always yes if it is. */
static __always_inline int h1_name_may_match(__u64 w0, int response)
{
	return (response ? H1_MARKS_BOTH : H1_MARKS_REQUEST) >> H1_HASH(w0) & 1;
}

/* Is it one of those of which eight bytes tell that? */
static __always_inline int h1_name_is_short(__u64 w0)
{
	return (w0 & LOW_BYTES(5)) == H1_HOST || (w0 & LOW_BYTES(3)) == H1_SINGLE_B3 ||
	       (w0 & LOW_BYTES(4)) == H1_SW8;
}

/* The value's field, how many bytes of it are kept, and how many come before it. */
struct h1_field {
	__u8 state;
	__u8 field;
	__u8 name_len;
	__u8 keep;
};

static __always_inline int h1_field_name(__u64 w0, __u64 w1, __u64 w2, int response,
					 struct h1_field *f)
{
	if (w0 == H1_CONTENT_ && (w1 & LOW_BYTES(7)) == H1_LENGTH_) {
		*f = (struct h1_field){ H1_LENGTH, 0, 15, 0 };
		return 1;
	}
	if (w0 == H1_TRANSFER && w1 == H1_ENCODIN && (w2 & 0xffff) == ('g' | ':' << 8)) {
		*f = (struct h1_field){ H1_CODING, 0, 18, 0 };
		return 1;
	}
	if (response)
		return 0;
	if ((w0 & LOW_BYTES(5)) == H1_HOST) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_HOST, 5, 56 };
		return 1;
	}
	if (w0 == H1_USER_AGE && (w1 & LOW_BYTES(3)) == H1_NT) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_USER_AGENT, 11, 72 };
		return 1;
	}
	if (w0 == H1_TRACEPAR && (w1 & LOW_BYTES(4)) == H1_ENT) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_TRACEPARENT, 12, H1_TRACEPARENT_MAX };
		return 1;
	}
	if (w0 == H1_X_FORWAR && w1 == H1_DED_FOR) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_FORWARDED_FOR, 16, 40 };
		return 1;
	}
	if (w0 == H1_X_FORWAR && w1 == H1_DED_PROT && (w2 & 0xffff) == ('o' | ':' << 8)) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_FORWARDED_PROTO, 18, 8 };
		return 1;
	}
	/* of these the names, too, are kept */
	if ((w0 & LOW_BYTES(3)) == H1_SINGLE_B3) {
		*f = (struct h1_field){ H1_VALUE, FLOW_TEXT_TRACEPARENT, 0, 80 };
		return 1;
	}
	if ((w0 & LOW_BYTES(4)) == H1_SW8) {
		*f = (struct h1_field){ H1_VALUE, FLOW_TEXT_TRACEPARENT, 0, H1_FOREIGN_MAX };
		return 1;
	}
	if (w0 == H1_UBER_TRA && (w1 & LOW_BYTES(6)) == H1_CE_ID) {
		*f = (struct h1_field){ H1_VALUE, FLOW_TEXT_TRACEPARENT, 0, 96 };
		return 1;
	}
	if (w0 == H1_X_B3_TRA && (w1 & LOW_BYTES(5)) == H1_CEID) {
		*f = (struct h1_field){ H1_B3, H1_B3_TRACE, 13, H1_B3_SPAN - H1_B3_TRACE };
		return 1;
	}
	if (w0 == H1_X_B3_SPA && (w1 & LOW_BYTES(4)) == H1_NID) {
		*f = (struct h1_field){ H1_B3, H1_B3_SPAN, 12, H1_B3_LEN - H1_B3_SPAN };
		return 1;
	}
	return 0;
}

/*
 * Make room for a value of FLOW_TEXT_TRACEPARENT. Returns 0 if it isn't wanted: a traceparent is
 * there, or there is something else and this is no traceparent either.
 */
static __always_inline int h1_name_trace(struct stream *s, struct flow_record *r,
					 const struct h1_field *f)
{
	struct flow_field *kept = &r->fields[FLOW_TEXT_TRACEPARENT];

	if (f->state == H1_OWS) {
		/* what is there goes, and its bytes are lost */
		if (s->flags & H1_FOREIGN) {
			kept->len = 0;
			r->truncated &= ~(1 << FLOW_TEXT_TRACEPARENT);
		}
		s->flags &= ~(H1_FOREIGN | H1_B3_PAIR);
		return !kept->len;
	}
	if (f->state == H1_B3 && s->flags & H1_B3_PAIR)
		return 1;
	if (kept->len || r->text_len + H1_B3_LEN + H1_TRACEPARENT_MAX > H1_TEXT_END)
		return 0;
	s->flags |= H1_FOREIGN;
	if (f->state == H1_B3) {
		__u32 at = r->text_len, i;

		if (at > FLOW_TEXT_BYTES - H1_B3_LEN)
			return 0;
		for (i = 0; i < H1_B3_LEN / 8; i++)
			((struct word *)&r->text[at])[i].v = 0;
		s->flags |= H1_B3_PAIR;
		kept->off = at;
		kept->len = H1_B3_LEN;
		r->text_len = at + H1_B3_LEN;
	}
	return 1;
}

static __always_inline int h1_has_lf(__u64 word)
{
	return word_equal(word, '\n') != 0;
}

/* Pass over the rest of a line. */
static __always_inline enum step h1_step_line(struct stream *s, struct window *w)
{
	enum step step = window_line(s, w);

	if (s->state == H1_CHUNK)
		s->skip = s->number;
	return step;
}

/* Start of a field or trailer line. Trailers are all passed over. */
static __always_inline enum step h1_step_name(struct stream *s, struct flow_record *r,
					      struct window *w)
{
	__u32 n = w->end - w->pos;
	int response = s->response, trailer = s->state == H1_TRAILER;
	__u64 raw = window_load(w, w->pos), w0 = h1_lower(raw);
	struct h1_field f;
	__u8 c = raw;

	if (!n)
		return STEP_MORE;
	if (c == '\r') {
		if (n < 2)
			return STEP_MORE;
		w->pos++;
		c = raw >> 8;
		if (c != '\n')
			return STEP_INVALID;
	}
	if (c == '\n') {
		w->pos++;
		if (trailer) {
			s->state = STATE_START;
			return STEP_END;
		}
		return h1_head_end(s, r);
	}
	s->next = s->state;
	if (trailer)
		goto pass;
	if (n < 8 && !h1_has_lf(raw & LOW_BYTES(n)))
		return STEP_MORE;
	if (!h1_name_may_match(w0, response))
		goto pass;
	if (n < 18 && !h1_name_is_short(w0) && !h1_has_lf(raw) &&
	    !h1_has_lf(window_load(w, w->pos + 8)) && !h1_has_lf(window_load(w, w->pos + 16)))
		return STEP_MORE;
	if (!h1_field_name(w0, h1_lower(window_load(w, w->pos + 8)),
			   h1_lower(window_load(w, w->pos + 16)), response, &f))
		goto pass;
	if (f.field == FLOW_TEXT_TRACEPARENT || f.state == H1_B3)
		if (!h1_name_trace(s, r, &f))
			goto pass;
	w->pos += f.name_len;
	s->state = f.state;
	s->digits = 0;
	s->number = 0;
	if (f.state == H1_B3) {
		s->limit = r->fields[FLOW_TEXT_TRACEPARENT].off + f.field;
		s->field = f.keep;
	} else if (f.state == H1_OWS || f.state == H1_VALUE) {
		struct flow_field *kept = &r->fields[f.field & (FLOW_TEXT_FIELDS - 1)];
		__u32 end = H1_TEXT_END;

		/* room for the traceparent that may yet come */
		if (s->flags & H1_FOREIGN)
			end -= H1_TRACEPARENT_MAX;
		if (kept->len || r->text_len >= end) {
			/* a second one of its kind, or no room */
			if (!kept->len)
				r->truncated |= 1 << f.field;
			goto pass;
		}
		kept->off = r->text_len;
		s->field = f.field;
		s->limit = r->text_len + f.keep;
		if (s->limit > end)
			s->limit = end;
	}
	return STEP_AGAIN;
pass:
	s->state = H1_LINE;
	return h1_step_line(s, w);
}

/*
 * 1*DIGIT, or a list of the same number: RFC 9110 section 8.6. What stands behind white space
 * is left to H1_LINE.
 */
static __always_inline enum step h1_step_length(struct stream *s, struct window *w)
{
	__u32 i;
	__u8 c;

	for (i = 0; i < STRIDE; i++) {
		if (w->pos >= w->end)
			return STEP_MORE;
		c = window_byte(w, w->pos);
		if ((c == ' ' || c == '\t') && !s->digits) {
			w->pos++;
			continue;
		}
		if (c < '0' || c > '9')
			goto end;
		if (s->number > H1_LENGTH_MAX / 10)
			return STEP_INVALID;
		s->number = s->number * 10 + (c - '0');
		s->digits = 1;
		w->pos++;
	}
	return STEP_AGAIN;
end:
	if (!s->digits || (c > ' ' && c != ','))
		return STEP_INVALID;
	if ((s->flags & H1_HAS_LENGTH) && s->length != s->number)
		return STEP_INVALID;
	s->length = s->number;
	s->flags |= H1_HAS_LENGTH;
	if (c != ',') {
		s->state = H1_LINE;
		return STEP_AGAIN;
	}
	w->pos++;
	s->number = 0;
	s->digits = 0;
	return STEP_AGAIN;
}

/* no coding at all, which RFC 2616 still had a name for */
#define H1_IDENTITY_WORD WORD('y', 't', 'i', 't', 'n', 'e', 'd', 'i')
#define H1_CHUNKED_WORD WORD('d', 'e', 'k', 'n', 'u', 'h', 'c', 0)

/* Is the last coding "chunked"? The last eight bytes are kept in `number`. */
static __always_inline enum step h1_step_coding(struct stream *s, struct window *w)
{
	__u32 i;

	for (i = 0; i < STRIDE; i++) {
		__u8 c;

		if (w->pos >= w->end)
			return STEP_MORE;
		c = window_byte(w, w->pos);
		if (c == '\n') {
			__u8 before = s->number >> 56;

			if ((s->number & LOW_BYTES(7)) == H1_CHUNKED_WORD &&
			    (!before || before == ','))
				s->flags |= H1_CHUNKED;
			if (s->number != H1_IDENTITY_WORD)
				s->flags |= H1_CODED;
			s->state = H1_LINE;
			return STEP_AGAIN;
		}
		w->pos++;
		if (c > ' ')
			s->number = s->number << 8 | c | 0x20;
	}
	return STEP_AGAIN;
}

/* A value ended before the byte c: white space behind it is no part of it. RFC 9110 section 5.5. */
static __always_inline void h1_value_end(struct stream *s, struct flow_record *r, __u8 c)
{
	struct flow_field *kept = &r->fields[s->field & (FLOW_TEXT_FIELDS - 1)];
	__u16 mark = 1 << (s->field & (FLOW_TEXT_FIELDS - 1));
	__u32 at = r->text_len, i;

	if (c != '\r' && c != '\n')
		r->truncated |= mark;
	if (r->truncated & mark)
		return;
	for (i = 0; i < STRIDE && kept->len; i++) {
		at--;
		if (at >= FLOW_TEXT_BYTES || r->text[at] != ' ')
			break;
		r->text[at] = 0;
		r->text_len = at;
		kept->len--;
	}
}

static __always_inline enum step h1_step_value(struct stream *s, struct flow_record *r,
					       struct window *w)
{
	if (s->state == H1_OWS) {
		__u8 c = window_byte(w, w->pos);

		if (w->pos >= w->end)
			return STEP_MORE;
		if (c == ' ' || c == '\t') {
			w->pos++;
			c = window_byte(w, w->pos);
			if (w->pos >= w->end)
				return STEP_MORE;
			if (c == ' ' || c == '\t')
				return STEP_AGAIN;
		}
		s->state = H1_VALUE;
	}
	/* CR, LF, tab and NUL end the part that is kept */
	if (!h1_keep(s, r, w, 0x0e))
		return STEP_AGAIN;
	if (w->pos >= w->end)
		return STEP_MORE;
	h1_value_end(s, r, window_byte(w, w->pos));
	s->state = H1_LINE;
	return STEP_AGAIN;
}

/*
 * The value of an X-B3- header to its place `limit`, of which `field` bytes are free. One that is
 * longer than that fills it up, and then is no number of the length it should have.
 */
static __always_inline enum step h1_step_b3(struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u32 pos = w->pos, at = s->limit, i;
	enum step step = STEP_AGAIN;

	for (i = 0; i < STRIDE; i++) {
		__u8 c = window_byte(w, pos);

		if (pos >= w->end) {
			step = STEP_MORE;
			break;
		}
		if (c <= ' ' && (s->digits || (c != ' ' && c != '\t'))) {
			s->state = H1_LINE;
			break;
		}
		pos++;
		if (c <= ' ' || at >= FLOW_TEXT_BYTES)
			continue;
		/* only the first of its kind counts */
		if (!s->digits && r->text[at]) {
			s->state = H1_LINE;
			break;
		}
		s->digits = 1;
		if (s->field) {
			r->text[at] = c;
			at++;
			s->field--;
		}
	}
	w->pos = pos;
	s->limit = at;
	return step;
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
