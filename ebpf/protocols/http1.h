/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * http1.h - HTTP/1.0 and 1.1 messages (RFC 9112) as a resumable parser.
 *
 * Bytes in, steps out: no helpers, no maps, no I/O. The same text is compiled into
 * the kernel programs and into a host library for tests.
 *
 * Handles: request and status lines, field lines, Content-Length, chunked coding with
 * extensions and trailers, close-delimited bodies, interim responses, HEAD, CONNECT, 101.
 * A bare LF ends a line as CRLF does (RFC 9112 section 2.2).
 * Leaves out: HTTP/0.9, line folding (obsolete; a folded line counts as a line of its own),
 * and the content of bodies, which is skipped by number and never looked at.
 *
 * A stream is one direction of a connection. The caller presents its bytes in windows,
 * in order; what a step can't decide yet (never more than H1_CARRY bytes) is carried over
 * to the next window, so the answer doesn't depend on where the stream was cut.
 */
#ifndef WIRESPAN_HTTP1_H
#define WIRESPAN_HTTP1_H

#include "../flow.h"

#ifndef fallthrough
#define fallthrough __attribute__((fallthrough))
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define H1_CARRY 24	/* longest undecided token: "transfer-encoding:" is 18 */
#define H1_WINDOW 464	/* fresh bytes presented at once */
#define H1_INDEX 511	/* mask that keeps an index within window and carry */
#define H1_TEXT_MAX 424 /* FLOW_TEXT_BYTES less one word, so that words can be stored whole */
/* What is kept of a target; with the limits of the fields all of them fit together. */
#define H1_TARGET_MAX 168
#define H1_METHOD_OFF 408 /* where FLOW_TEXT_METHOD lies: at the end, the target is at 0 */
#define H1_METHOD_MAX 16  /* longest method token we take for one */
#define H1_STRIDE 8	  /* words looked at in one step */
#define H1_LINES 4	  /* field lines passed over in one step */
#define H1_LENGTH_MAX 999999999999999999ULL /* most bytes of a body or a chunk */

enum h1_state {
	H1_SYNC = 0, /* lost: wait for a buffer that begins with a message */
	H1_START,    /* between messages */
	H1_METHOD,   /* request line */
	H1_TARGET,
	H1_VERSION,
	H1_STATUS,     /* status line */
	H1_NAME,       /* at the start of a field line */
	H1_LENGTH,     /* in the value of Content-Length */
	H1_CODING,     /* in the value of Transfer-Encoding */
	H1_OWS,	       /* white space before a value that is kept */
	H1_VALUE,      /* in a value that is kept */
	H1_LINE,       /* in the rest of a line of no interest */
	H1_BODY,       /* `remain` bytes of content to come */
	H1_BODY_EOF,   /* content until the connection closes */
	H1_CHUNK_SIZE, /* chunk-size [ chunk-ext ] CRLF */
	H1_CHUNK_EXT,
	H1_CHUNK,     /* `remain` bytes of chunk-data to come */
	H1_CHUNK_END, /* the CRLF after chunk-data */
	H1_TRAILER,   /* at the start of a trailer field line */
};

/* What a step came to. */
enum h1_step {
	H1_AGAIN = 0, /* go on with this window */
	H1_MORE,      /* this window holds no more that could be decided */
	H1_BEGIN,     /* the first byte of a message is at `pos` */
	H1_HEAD_END,  /* head complete: status, fields and framing are known */
	H1_INTERIM,   /* a 1xx response ended, the final one is to come */
	H1_END,	      /* the message ended */
	H1_TUNNEL,    /* the message ended and what follows is another protocol */
	H1_INVALID,   /* not HTTP/1 */
};

enum h1_flag {
	H1_RESPONSE = 1,   /* this stream carries responses */
	H1_CHUNKED = 2,	   /* the last transfer coding is chunked */
	H1_HAS_LENGTH = 4, /* Content-Length was seen */
	H1_CODED = 8,	   /* Transfer-Encoding was seen */
};

struct h1_stream {
	__u64 remain;	      /* content or chunk-data bytes to come; in values, an accumulator */
	__u64 length;	      /* Content-Length */
	__u64 body_bytes;     /* content bytes of this message so far */
	__u8 carry[H1_CARRY]; /* undecided bytes, right-aligned */
	__u8 carry_len;
	__u8 state;  /* enum h1_state */
	__u8 flags;  /* enum h1_flag */
	__u8 next;   /* state after H1_LINE */
	__u8 field;  /* enum flow_text of the value in H1_VALUE */
	__u8 digits; /* the number has a digit */
	__u16 limit; /* text offset at which the value in H1_VALUE is cut off */
};

struct h1_window {
	__u32 pos; /* next byte to look at */
	__u32 end; /* end of the bytes presented */
	/* carried bytes end, and fresh bytes begin, at H1_CARRY; H1_CARRY zeros end them */
	__u8 bytes[H1_CARRY + H1_WINDOW + H1_CARRY + 8];
};

#define H1_ONES 0x0101010101010101ULL
#define H1_HIGH 0x8080808080808080ULL
#define H1_W(a, b, c, d, e, f, g, h)                                                               \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define H1_MASK(n) ((n) >= 8 ? ~0ULL : (1ULL << (8 * (n))) - 1)

struct h1_word {
	__u64 v;
} __attribute__((packed, may_alias));

static __always_inline __u64 h1_load(const struct h1_window *w, __u32 at)
{
	return ((const struct h1_word *)&w->bytes[at & H1_INDEX])->v;
}

static __always_inline __u8 h1_byte(const struct h1_window *w, __u32 at)
{
	return w->bytes[at & H1_INDEX];
}

/* The high bit of each byte below n (n <= 128), exact for the lowest such byte. */
static __always_inline __u64 h1_below(__u64 word, __u64 n)
{
	return (word - H1_ONES * n) & ~word & H1_HIGH;
}

/* Index of the lowest byte marked by h1_below (which must have marked one). */
static __always_inline __u32 h1_index(__u64 marks)
{
	return (__u32)(((((marks - 1) & ~marks) & H1_ONES) * H1_ONES) >> 56) - 1;
}

/* ASCII letters to lower case; leaves digits, '-' and ':' as they are. */
static __always_inline __u64 h1_lower(__u64 word)
{
	__u64 heptets = word & ~H1_HIGH;
	__u64 above_z = heptets + H1_ONES * (0x7f - 'Z');
	__u64 from_a = heptets + H1_ONES * (0x80 - 'A');
	__u64 upper = (from_a & ~above_z & ~word & H1_HIGH) >> 2;

	return word | upper;
}

/* Known methods as their first eight bytes with the space behind. */
static __always_inline __u8 h1_method(__u64 word, __u32 len)
{
	__u64 w = word & H1_MASK(len);

	if (len > 7)
		return FLOW_METHOD_OTHER;
	switch (w) {
	case H1_W('G', 'E', 'T', 0, 0, 0, 0, 0):
		return FLOW_METHOD_GET;
	case H1_W('H', 'E', 'A', 'D', 0, 0, 0, 0):
		return FLOW_METHOD_HEAD;
	case H1_W('P', 'O', 'S', 'T', 0, 0, 0, 0):
		return FLOW_METHOD_POST;
	case H1_W('P', 'U', 'T', 0, 0, 0, 0, 0):
		return FLOW_METHOD_PUT;
	case H1_W('D', 'E', 'L', 'E', 'T', 'E', 0, 0):
		return FLOW_METHOD_DELETE;
	case H1_W('C', 'O', 'N', 'N', 'E', 'C', 'T', 0):
		return FLOW_METHOD_CONNECT;
	case H1_W('O', 'P', 'T', 'I', 'O', 'N', 'S', 0):
		return FLOW_METHOD_OPTIONS;
	case H1_W('T', 'R', 'A', 'C', 'E', 0, 0, 0):
		return FLOW_METHOD_TRACE;
	case H1_W('P', 'A', 'T', 'C', 'H', 0, 0, 0):
		return FLOW_METHOD_PATCH;
	case H1_W('Q', 'U', 'E', 'R', 'Y', 0, 0, 0):
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
 * Could these bytes be the start of a request? 1 yes, 0 no, -1 too few to tell.
 * The request line's end settles it, when "HTTP/1." must stand there.
 */
static __always_inline int h1_detect(const struct h1_window *w)
{
	__u32 at = w->pos, n, i;
	__u8 c = h1_byte(w, at);

	/* an empty line before it is to be ignored: RFC 9112 section 2.2 */
	if (c == '\r')
		c = h1_byte(w, ++at);
	if (c == '\n')
		at++;
	n = w->end - at;
	if (at >= w->end)
		return w->end == w->pos ? 0 : -1;
	c = h1_byte(w, at);
	if (c == '\r' || c == '\n') /* H1_START passes over as many as come */
		return -1;
	for (i = 0; i <= H1_METHOD_MAX; i++) {
		if (i >= n)
			return -1;
		c = h1_byte(w, at + i);
		if (c == ' ' && i >= 3) {
			if (i + 1 >= n)
				return -1;
			return h1_is_target_start(h1_byte(w, at + i + 1));
		}
		if (!h1_is_method_byte(c))
			return 0;
	}
	return 0;
}

static __always_inline void h1_reset(struct h1_stream *s)
{
	s->remain = 0;
	s->length = 0;
	s->body_bytes = 0;
	s->flags &= H1_RESPONSE;
	s->digits = 0;
	s->carry_len = 0;
	s->next = H1_NAME; /* not the trailer of the message before */
	s->state = H1_START;
}

/* How many bytes may pass unlooked-at: the caller skips them by number. */
static __always_inline __u64 h1_skippable(const struct h1_stream *s)
{
	if (s->state == H1_BODY || s->state == H1_CHUNK)
		return s->remain;
	if (s->state == H1_BODY_EOF)
		return ~0ULL;
	return 0;
}

/* Pass over n <= h1_skippable() bytes of content. */
static __always_inline enum h1_step h1_skip(struct h1_stream *s, __u64 n)
{
	s->body_bytes += n;
	if (s->state == H1_BODY_EOF)
		return H1_AGAIN;
	s->remain -= n;
	if (s->remain)
		return H1_AGAIN;
	if (s->state == H1_CHUNK) {
		s->state = H1_CHUNK_END;
		return H1_AGAIN;
	}
	s->state = H1_START;
	return H1_END;
}

/* The head is complete: what frames the body? RFC 9112 section 6.3. */
static __always_inline enum h1_step h1_head_end(struct h1_stream *s, struct flow_record *r)
{
	if (s->flags & H1_RESPONSE) {
		__u32 status = r->status;

		if (status == 101 ||
		    (r->method == FLOW_METHOD_CONNECT && status >= 200 && status < 300)) {
			s->state = H1_SYNC;
			return H1_TUNNEL;
		}
		if (status < 200) {
			r->status = 0; /* of the exchange: still unknown */
			h1_reset(s);
			return H1_INTERIM;
		}
		if (r->method == FLOW_METHOD_HEAD || status == 204 || status == 304) {
			s->state = H1_START;
			return H1_END;
		}
	}
	s->digits = 0;
	if (s->flags & H1_CHUNKED) {
		s->remain = 0;
		s->state = H1_CHUNK_SIZE;
		return H1_HEAD_END;
	}
	/* another coding than chunked at the end: only the close tells the length */
	if (s->flags & H1_HAS_LENGTH && !(s->flags & H1_CODED && s->flags & H1_RESPONSE)) {
		s->remain = s->length;
		s->state = s->remain ? H1_BODY : H1_START;
		return s->remain ? H1_HEAD_END : H1_END;
	}
	if (s->flags & H1_RESPONSE) {
		s->state = H1_BODY_EOF;
		return H1_HEAD_END;
	}
	s->state = H1_START;
	return H1_END;
}

static __always_inline enum h1_step h1_step_method(struct h1_stream *s, struct flow_record *r,
						   struct h1_window *w)
{
	__u32 n = w->end - w->pos, i;

	for (i = 0; i <= H1_METHOD_MAX; i++) {
		__u8 c;

		if (i >= n)
			return H1_MORE;
		c = h1_byte(w, w->pos + i);
		if (c == ' ' && i >= 3) {
			if (i + 1 >= n)
				return H1_MORE;
			/* as h1_detect() demands: the answer may not depend on cuts */
			if (!h1_is_target_start(h1_byte(w, w->pos + i + 1)))
				return H1_INVALID;
			r->method = h1_method(h1_load(w, w->pos), i);
			if (r->method == FLOW_METHOD_OTHER) {
				struct h1_word *text = (struct h1_word *)&r->text[H1_METHOD_OFF];

				text[0].v = h1_load(w, w->pos) & H1_MASK(i);
				text[1].v = i > 8 ? h1_load(w, w->pos + 8) & H1_MASK(i - 8) : 0;
				r->fields[FLOW_TEXT_METHOD].off = H1_METHOD_OFF;
				r->fields[FLOW_TEXT_METHOD].len = i;
			}
			w->pos += i + 1;
			s->field = FLOW_TEXT_TARGET;
			s->limit = H1_TARGET_MAX;
			s->state = H1_TARGET;
			return H1_AGAIN;
		}
		if (!h1_is_method_byte(c))
			return H1_INVALID;
	}
	return H1_INVALID;
}

/*
 * Keep bytes up to (not including) the first one below `stop` in the record's text, as
 * far as the field's limit goes, and leave `pos` on that byte or on the window's end.
 * Returns 0 if neither was reached yet.
 */
static __always_inline int h1_keep(struct h1_stream *s, struct flow_record *r, struct h1_window *w,
				   __u64 stop)
{
	__u32 pos = w->pos, at = r->text_len, limit = s->limit, n = 8, i;
	__u32 field = s->field & (FLOW_TEXT_FIELDS - 1);

	for (i = 0; i < H1_STRIDE && n == 8; i++) {
		__u64 word = h1_load(w, pos);
		__u64 marks = h1_below(word, stop);
		__u32 kept;

		if (marks)
			n = h1_index(marks);
		if (n > w->end - pos)
			n = w->end - pos;
		kept = n;
		if (kept > limit - at) {
			kept = limit - at;
			r->truncated |= 1 << field;
		}
		if (kept && at <= H1_TEXT_MAX)
			((struct h1_word *)&r->text[at])->v = word & H1_MASK(kept);
		at += kept;
		pos += n;
	}
	w->pos = pos;
	r->fields[field].len += at - r->text_len;
	r->text_len = at;
	return n < 8 || pos >= w->end;
}

static __always_inline enum h1_step h1_step_target(struct h1_stream *s, struct flow_record *r,
						   struct h1_window *w)
{
	__u8 c;

	if (!h1_keep(s, r, w, 0x21))
		return H1_AGAIN;
	if (w->pos >= w->end)
		return H1_MORE;
	c = h1_byte(w, w->pos);
	if (c != ' ')
		return H1_INVALID;
	if (!r->fields[FLOW_TEXT_TARGET].len)
		return H1_INVALID;
	w->pos++;
	s->state = H1_VERSION;
	return H1_AGAIN;
}

#define H1_VERSION_WORD H1_W('H', 'T', 'T', 'P', '/', '1', '.', 0)

static __always_inline int h1_version(const struct h1_window *w, struct flow_record *r)
{
	__u64 word = h1_load(w, w->pos);
	__u8 minor = word >> 56;

	if ((word & H1_MASK(7)) != H1_VERSION_WORD || minor < '0' || minor > '9')
		return 0;
	r->version = 10 + (minor - '0');
	return 1;
}

static __always_inline enum h1_step h1_step_version(struct h1_stream *s, struct flow_record *r,
						    struct h1_window *w)
{
	__u32 n = w->end - w->pos;
	__u64 known = H1_MASK(n < 7 ? n : 7);
	__u8 c;

	if ((h1_load(w, w->pos) & known) != (H1_VERSION_WORD & known))
		return H1_INVALID;
	if (n < 10)
		if (n < 9 || h1_byte(w, w->pos + 8) != '\n')
			return H1_MORE;
	if (!h1_version(w, r))
		return H1_INVALID;
	c = h1_byte(w, w->pos + 8);
	if (c == '\r') {
		c = h1_byte(w, w->pos + 9);
		w->pos++;
	}
	if (c != '\n')
		return H1_INVALID;
	w->pos += 9;
	s->state = H1_NAME;
	return H1_AGAIN;
}

static __always_inline enum h1_step h1_step_status(struct h1_stream *s, struct flow_record *r,
						   struct h1_window *w)
{
	__u32 n = w->end - w->pos, status = 0, i;
	__u64 known = H1_MASK(n < 7 ? n : 7);

	if ((h1_load(w, w->pos) & known) != (H1_VERSION_WORD & known))
		return H1_INVALID;
	if (n < 13)
		return H1_MORE;
	if (!h1_version(w, r) || h1_byte(w, w->pos + 8) != ' ')
		return H1_INVALID;
	for (i = 9; i < 12; i++) {
		__u8 c = h1_byte(w, w->pos + i);

		if (c < '0' || c > '9')
			return H1_INVALID;
		status = status * 10 + (c - '0');
	}
	if (status < 100 || h1_byte(w, w->pos + 12) > ' ')
		return H1_INVALID;
	r->status = status;
	w->pos += 12;
	s->next = H1_NAME;
	s->state = H1_LINE;
	return H1_AGAIN;
}

/* Field names we want, lower case, as words: {first 8, next 8, rest} and their lengths. */
#define H1_HOST H1_W('h', 'o', 's', 't', ':', 0, 0, 0)
#define H1_CONTENT_ H1_W('c', 'o', 'n', 't', 'e', 'n', 't', '-')
#define H1_LENGTH_ H1_W('l', 'e', 'n', 'g', 't', 'h', ':', 0)
#define H1_TRANSFER H1_W('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')
#define H1_ENCODIN H1_W('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n')
#define H1_USER_AGE H1_W('u', 's', 'e', 'r', '-', 'a', 'g', 'e')
#define H1_NT H1_W('n', 't', ':', 0, 0, 0, 0, 0)
#define H1_TRACEPAR H1_W('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')
#define H1_ENT H1_W('e', 'n', 't', ':', 0, 0, 0, 0)
#define H1_X_FORWAR H1_W('x', '-', 'f', 'o', 'r', 'w', 'a', 'r')
#define H1_DED_FOR H1_W('d', 'e', 'd', '-', 'f', 'o', 'r', ':')
#define H1_DED_PROT H1_W('d', 'e', 'd', '-', 'p', 'r', 'o', 't')

/* The value's field, how many bytes of it are kept, and the length of the name with ':'. */
struct h1_field {
	__u8 state;
	__u8 field;
	__u8 name_len;
	__u8 keep;
};

static __always_inline int h1_field_name(__u64 w0, __u64 w1, __u64 w2, int response,
					 struct h1_field *f)
{
	if (w0 == H1_CONTENT_ && (w1 & H1_MASK(7)) == H1_LENGTH_) {
		*f = (struct h1_field){ H1_LENGTH, 0, 15, 0 };
		return 1;
	}
	if (w0 == H1_TRANSFER && w1 == H1_ENCODIN && (w2 & 0xffff) == ('g' | ':' << 8)) {
		*f = (struct h1_field){ H1_CODING, 0, 18, 0 };
		return 1;
	}
	if (response)
		return 0;
	if ((w0 & H1_MASK(5)) == H1_HOST) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_HOST, 5, 56 };
		return 1;
	}
	if (w0 == H1_USER_AGE && (w1 & H1_MASK(3)) == H1_NT) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_USER_AGENT, 11, 72 };
		return 1;
	}
	if (w0 == H1_TRACEPAR && (w1 & H1_MASK(4)) == H1_ENT) {
		*f = (struct h1_field){ H1_OWS, FLOW_TEXT_TRACEPARENT, 12, 56 };
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
	return 0;
}

/* The first words of names that h1_field_name may accept. */
static __always_inline int h1_name_may_match(__u64 w0, int response)
{
	if (w0 == H1_CONTENT_ || w0 == H1_TRANSFER)
		return 1;
	return !response && (w0 == H1_USER_AGE || w0 == H1_TRACEPAR || w0 == H1_X_FORWAR);
}

static __always_inline int h1_has_lf(__u64 word)
{
	word ^= H1_ONES * '\n';
	return h1_below(word, 1) != 0;
}

/* Pass over the rest of a line. */
static __always_inline enum h1_step h1_step_line(struct h1_stream *s, struct h1_window *w)
{
	__u32 pos = w->pos, i;

	for (i = 0; i < H1_STRIDE; i++) {
		__u64 marks = h1_below(h1_load(w, pos) ^ (H1_ONES * '\n'), 1);

		if (marks) {
			/* behind the window's end stand zeros: it lies before */
			w->pos = pos + h1_index(marks) + 1;
			s->state = s->next;
			return H1_AGAIN;
		}
		pos += 8;
		if (pos >= w->end) {
			w->pos = w->end;
			return H1_MORE;
		}
	}
	w->pos = pos;
	return H1_AGAIN;
}

/* Start of a field or trailer line. Trailers are all passed over. */
static __always_inline enum h1_step h1_step_name(struct h1_stream *s, struct flow_record *r,
						 struct h1_window *w)
{
	__u32 n = w->end - w->pos;
	int response = s->flags & H1_RESPONSE, trailer = s->state == H1_TRAILER;
	__u64 raw = h1_load(w, w->pos), w0 = h1_lower(raw);
	struct h1_field f;
	__u8 c = raw;

	if (!n)
		return H1_MORE;
	if (c == '\r') {
		if (n < 2)
			return H1_MORE;
		w->pos++;
		c = raw >> 8;
		if (c != '\n')
			return H1_INVALID;
	}
	if (c == '\n') {
		w->pos++;
		if (trailer) {
			s->state = H1_START;
			return H1_END;
		}
		return h1_head_end(s, r);
	}
	s->next = s->state;
	if (trailer)
		goto pass;
	if (n < 8 && !h1_has_lf(raw & H1_MASK(n)))
		return H1_MORE;
	if ((w0 & H1_MASK(5)) != H1_HOST) {
		if (!h1_name_may_match(w0, response))
			goto pass;
		if (n < 18 && !h1_has_lf(h1_load(w, w->pos + 8)) &&
		    !h1_has_lf(h1_load(w, w->pos + 16)))
			return H1_MORE;
	}
	if (!h1_field_name(w0, h1_lower(h1_load(w, w->pos + 8)), h1_lower(h1_load(w, w->pos + 16)),
			   response, &f))
		goto pass;
	w->pos += f.name_len;
	s->state = f.state;
	s->digits = 0;
	s->remain = 0;
	if (f.state == H1_OWS) {
		struct flow_field *kept = &r->fields[f.field & (FLOW_TEXT_FIELDS - 1)];

		if (kept->len || r->text_len >= H1_METHOD_OFF - 8) {
			/* a second one of its kind, or no room */
			if (!kept->len)
				r->truncated |= 1 << f.field;
			goto pass;
		}
		kept->off = r->text_len;
		s->field = f.field;
		s->limit = r->text_len + f.keep;
		if (s->limit > H1_METHOD_OFF - 8)
			s->limit = H1_METHOD_OFF - 8;
	}
	return H1_AGAIN;
pass:
	s->state = H1_LINE;
	return h1_step_line(s, w);
}

/*
 * 1*DIGIT, or a list of the same number: RFC 9110 section 8.6. What stands behind white space
 * is left to H1_LINE.
 */
static __always_inline enum h1_step h1_step_length(struct h1_stream *s, struct h1_window *w)
{
	__u32 i;
	__u8 c;

	for (i = 0; i < H1_STRIDE; i++) {
		if (w->pos >= w->end)
			return H1_MORE;
		c = h1_byte(w, w->pos);
		if ((c == ' ' || c == '\t') && !s->digits) {
			w->pos++;
			continue;
		}
		if (c < '0' || c > '9')
			goto end;
		if (s->remain > H1_LENGTH_MAX / 10)
			return H1_INVALID;
		s->remain = s->remain * 10 + (c - '0');
		s->digits = 1;
		w->pos++;
	}
	return H1_AGAIN;
end:
	if (!s->digits || (c > ' ' && c != ','))
		return H1_INVALID;
	if ((s->flags & H1_HAS_LENGTH) && s->length != s->remain)
		return H1_INVALID;
	s->length = s->remain;
	s->flags |= H1_HAS_LENGTH;
	if (c != ',') {
		s->state = H1_LINE;
		return H1_AGAIN;
	}
	w->pos++;
	s->remain = 0;
	s->digits = 0;
	return H1_AGAIN;
}

/* no coding at all, which RFC 2616 still had a name for */
#define H1_IDENTITY_WORD H1_W('y', 't', 'i', 't', 'n', 'e', 'd', 'i')
#define H1_CHUNKED_WORD H1_W('d', 'e', 'k', 'n', 'u', 'h', 'c', 0)

/* Is the last coding "chunked"? The last eight bytes are kept in `remain`. */
static __always_inline enum h1_step h1_step_coding(struct h1_stream *s, struct h1_window *w)
{
	__u32 i;

	for (i = 0; i < H1_STRIDE; i++) {
		__u8 c;

		if (w->pos >= w->end)
			return H1_MORE;
		c = h1_byte(w, w->pos);
		if (c == '\n') {
			__u8 before = s->remain >> 56;

			if ((s->remain & H1_MASK(7)) == H1_CHUNKED_WORD &&
			    (!before || before == ','))
				s->flags |= H1_CHUNKED;
			if (s->remain != H1_IDENTITY_WORD)
				s->flags |= H1_CODED;
			s->state = H1_LINE;
			return H1_AGAIN;
		}
		w->pos++;
		if (c > ' ')
			s->remain = s->remain << 8 | c | 0x20;
	}
	return H1_AGAIN;
}

/* A value ended before the byte c: white space behind it is no part of it. RFC 9110 section 5.5. */
static __always_inline void h1_value_end(struct h1_stream *s, struct flow_record *r, __u8 c)
{
	struct flow_field *kept = &r->fields[s->field & (FLOW_TEXT_FIELDS - 1)];
	__u16 mark = 1 << (s->field & (FLOW_TEXT_FIELDS - 1));
	__u32 at = r->text_len, i;

	if (c != '\r' && c != '\n')
		r->truncated |= mark;
	if (r->truncated & mark)
		return;
	for (i = 0; i < H1_STRIDE && kept->len; i++) {
		at--;
		if (at >= FLOW_TEXT_BYTES || r->text[at] != ' ')
			break;
		r->text[at] = 0;
		r->text_len = at;
		kept->len--;
	}
}

static __always_inline enum h1_step h1_step_value(struct h1_stream *s, struct flow_record *r,
						  struct h1_window *w)
{
	if (s->state == H1_OWS) {
		__u8 c = h1_byte(w, w->pos);

		if (w->pos >= w->end)
			return H1_MORE;
		if (c == ' ' || c == '\t') {
			w->pos++;
			c = h1_byte(w, w->pos);
			if (w->pos >= w->end)
				return H1_MORE;
			if (c == ' ' || c == '\t')
				return H1_AGAIN;
		}
		s->state = H1_VALUE;
	}
	/* CR, LF, tab and NUL end the part that is kept */
	if (!h1_keep(s, r, w, 0x0e))
		return H1_AGAIN;
	if (w->pos >= w->end)
		return H1_MORE;
	h1_value_end(s, r, h1_byte(w, w->pos));
	s->state = H1_LINE;
	return H1_AGAIN;
}

/* chunk-size in hex, RFC 9112 section 7.1. */
static __always_inline enum h1_step h1_step_chunk_size(struct h1_stream *s, struct h1_window *w)
{
	__u32 i;

	for (i = 0; i < H1_STRIDE; i++) {
		__u8 c, digit;

		if (w->pos >= w->end)
			return H1_MORE;
		c = h1_byte(w, w->pos);
		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			digit = (c | 0x20) - 'a' + 10;
		else
			goto end;
		if (s->remain > H1_LENGTH_MAX / 16)
			return H1_INVALID;
		s->remain = s->remain << 4 | digit;
		s->digits = 1;
		w->pos++;
	}
	return H1_AGAIN;
end:
	if (!s->digits)
		return H1_INVALID;
	s->digits = 0;
	s->next = s->remain ? H1_CHUNK : H1_TRAILER;
	s->state = H1_LINE;
	return H1_AGAIN;
}

static __always_inline enum h1_step h1_step_chunk_end(struct h1_stream *s, struct h1_window *w)
{
	__u8 c;

	if (w->pos >= w->end)
		return H1_MORE;
	c = h1_byte(w, w->pos);
	if (c == '\r') {
		if (w->pos + 1 >= w->end)
			return H1_MORE;
		w->pos++;
		c = h1_byte(w, w->pos);
	}
	if (c != '\n')
		return H1_INVALID;
	w->pos++;
	s->remain = 0;
	s->state = H1_CHUNK_SIZE;
	return H1_AGAIN;
}

/*
 * Take one step through the window. The caller
 *  - at H1_BEGIN gives the message a record and sets the state to H1_METHOD or H1_STATUS,
 *  - skips content by h1_skippable() and h1_skip() rather than presenting it,
 *  - at H1_MORE carries the bytes from `pos` to `end` (at most H1_CARRY) over.
 */
static __always_inline enum h1_step h1_step(struct h1_stream *s, struct flow_record *r,
					    struct h1_window *w)
{
	enum h1_step step;
	__u32 i;

	/* Where one token is done the next one follows at once: a call costs more than it. */
	switch (s->state) {
	case H1_START: {
		__u8 c = h1_byte(w, w->pos);

		if (w->pos >= w->end)
			return H1_MORE;
		/* an empty line before a request line is to be ignored: RFC 9112 section 2.2 */
		if ((c == '\r' || c == '\n') && !(s->flags & H1_RESPONSE)) {
			w->pos++;
			return H1_AGAIN;
		}
		return H1_BEGIN;
	}
	case H1_METHOD:
		step = h1_step_method(s, r, w);
		if (step != H1_AGAIN)
			return step;
		fallthrough;
	case H1_TARGET:
		step = h1_step_target(s, r, w);
		if (step != H1_AGAIN || s->state != H1_VERSION)
			return step;
		fallthrough;
	case H1_VERSION:
		step = h1_step_version(s, r, w);
		if (step != H1_AGAIN)
			return step;
		fallthrough;
	case H1_NAME:
	case H1_TRAILER:
		for (i = 0; i < H1_LINES; i++) {
			step = h1_step_name(s, r, w);
			if (step != H1_AGAIN || s->state != H1_NAME)
				return step;
		}
		return H1_AGAIN;
	case H1_STATUS:
		step = h1_step_status(s, r, w);
		break;
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
	case H1_LINE:
		step = H1_AGAIN;
		break;
	case H1_CHUNK_SIZE:
		step = h1_step_chunk_size(s, w);
		break;
	case H1_CHUNK_END:
		return h1_step_chunk_end(s, w);
	default:
		return H1_INVALID;
	}
	return step == H1_AGAIN && s->state == H1_LINE ? h1_step_line(s, w) : step;
}

#endif
