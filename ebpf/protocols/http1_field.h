/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* http1_field.h - field lines, RFC 9112 section 5: those that are wanted by their names. */
#ifndef WIRESPAN_HTTP1_FIELD_H
#define WIRESPAN_HTTP1_FIELD_H

#include "http1_body.h"

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

#endif
