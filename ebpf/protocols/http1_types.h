/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* http1_types.h - what the parts of http1.h share: states, limits, bytes that are kept. */
#ifndef WIRESPAN_HTTP1_TYPES_H
#define WIRESPAN_HTTP1_TYPES_H

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

#endif
