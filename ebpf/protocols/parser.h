/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * parser.h - what every protocol's parser is given, and what it gives back.
 *
 * A parser is a pure header: bytes in, steps out; no helpers, no maps, no I/O. The same text
 * is compiled into the kernel programs and into the host library of `wirespan replay`, the
 * tests and the fuzzers.
 *
 * A stream is one direction of a connection. The caller presents its bytes in windows, in
 * order. What a step can't decide yet (never more than CARRY bytes) is carried over to the
 * next window, and content of no interest is passed over by number (stream.skip), so the
 * answer doesn't depend on where the stream was cut.
 */
#ifndef WIRESPAN_PARSER_H
#define WIRESPAN_PARSER_H

#include "../flow.h"

#ifndef fallthrough
#define fallthrough __attribute__((fallthrough))
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define CARRY 24	/* most bytes that may stay undecided */
#define WINDOW 464	/* fresh bytes presented at once */
#define WINDOW_MASK 511 /* keeps an index within window and carry */
#define STRIDE 8	/* words looked at in one step: loops are short, for the verifier's sake */
#define TEXT_MAX 424	/* FLOW_TEXT_BYTES less one word, so that words can be stored whole */
#define SKIP_ALL (~0ULL)

/* What a step came to. */
enum step {
	STEP_AGAIN = 0, /* go on with this window, or with what stream.skip says */
	STEP_MORE,	/* this window holds no more that could be decided */
	STEP_BEGIN,	/* the first byte of a message is at `pos`; nothing was consumed */
	STEP_OPEN,	/* response stream: the server speaks first and so begins an exchange */
	STEP_HEAD_END,	/* head complete: status, fields and framing are known */
	STEP_END,	/* the message ended; if it is the response, the exchange did */
	STEP_ALONE,	/* the request ended, and gets no response */
	STEP_FULL,	/* the record's text is full: hand it over as a part and come again */
	STEP_TUNNEL,	/* the message ended and what follows is another protocol */
	STEP_LEAVE,	/* from here on the connection is to be left alone (pub/sub, replication) */
	STEP_ENCRYPTED, /* it goes on encrypted */
	STEP_COMPRESSED, /* it goes on compressed */
	STEP_INVALID,	 /* not what the protocol allows */
};

/* What a detector says of the first bytes of a buffer. */
enum detect {
	DETECT_NO = 0,
	DETECT_REQUEST,	 /* a client of this protocol sent them */
	DETECT_RESPONSE, /* a server did */
	DETECT_MORE,	 /* too few to tell; never with CARRY bytes or more */
};

/* States that all parsers share; a parser's own begin at 2. */
enum stream_state {
	STATE_SYNC = 0,	 /* lost: wait for a buffer that begins with a message */
	STATE_START = 1, /* between messages */
};

struct stream {
	__u64 skip;	   /* bytes to pass over unlooked-at; SKIP_ALL: till the close */
	__u64 number;	   /* of a value being read */
	__u64 length;	   /* of the message */
	__u64 body_bytes;  /* bytes passed over in this message */
	__u8 carry[CARRY]; /* undecided bytes, right-aligned */
	__u8 carry_len;
	__u8 state; /* enum stream_state, or the parser's own */
	__u8 flags; /* the parser's own */
	__u8 next;  /* state after the one at hand */
	__u8 field; /* slot of the value being kept */
	__u8 digits;
	__u8 response; /* this stream carries responses; set by the caller */
	__u8 head;     /* set by the caller at STEP_BEGIN; the parser clears it once the message
			* is one: a request that ends before counts as none */
	__u16 limit;   /* bytes of the value that may yet be kept; HTTP/1: offset of its end */
	__u16 pad;
	__u32 own[5]; /* the parser's own */
};

/* Both directions of a connection. */
struct talk {
	struct stream req;
	struct stream resp;
	__u32 in_flight; /* exchanges begun and not ended; kept by the caller */
	__u32 old;	 /* the connection's first bytes were not seen; set by the caller */
	__u32 sure;	 /* set by the parser once no other protocol can be meant; no record of
			  * the connection is handed over before */
	__u32 own[5];	 /* the parser's own, for both directions */
};

struct window {
	__u32 pos; /* next byte to look at */
	__u32 end; /* end of the bytes presented */
	/* carried bytes end, and fresh bytes begin, at CARRY; CARRY zeros end them */
	__u8 bytes[CARRY + WINDOW + CARRY + 8];
};

struct word {
	__u64 v;
} __attribute__((packed, may_alias));

#define WORD(a, b, c, d, e, f, g, h)                                                               \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
/* The first n bytes of a word. */
#define LOW_BYTES(n) ((n) >= 8 ? ~0ULL : (1ULL << (8 * (n))) - 1)
#define WORD_ONES 0x0101010101010101ULL
#define WORD_HIGH 0x8080808080808080ULL

/* The high bit of each byte below n (n <= 128), exact for the lowest such byte. */
static __always_inline __u64 word_below(__u64 word, __u64 n)
{
	return (word - WORD_ONES * n) & ~word & WORD_HIGH;
}

/* The high bit of each byte equal to c, exact for the lowest such byte. */
static __always_inline __u64 word_equal(__u64 word, __u8 c)
{
	return word_below(word ^ WORD_ONES * c, 1);
}

/* Index of the lowest byte marked by either (there must be one). */
static __always_inline __u32 word_index(__u64 marks)
{
	return (__u32)(((((marks - 1) & ~marks) & WORD_ONES) * WORD_ONES) >> 56) - 1;
}

/* Eight bytes at `at`, little-endian; zeros behind the window's end. */
static __always_inline __u64 window_load(const struct window *w, __u32 at)
{
	return ((const struct word *)&w->bytes[at & WINDOW_MASK])->v;
}

static __always_inline __u8 window_byte(const struct window *w, __u32 at)
{
	return w->bytes[at & WINDOW_MASK];
}

static __always_inline __u32 window_left(const struct window *w)
{
	return w->end - w->pos;
}

/* Pass over the rest of a line; behind its LF the state is stream.next. */
static __always_inline enum step window_line(struct stream *s, struct window *w)
{
	__u32 pos = w->pos, i;

	for (i = 0; i < STRIDE; i++) {
		__u64 marks = word_equal(window_load(w, pos), '\n');

		if (marks) {
			/* behind the window's end stand zeros: it lies before */
			w->pos = pos + word_index(marks) + 1;
			s->state = s->next;
			return STEP_AGAIN;
		}
		pos += 8;
		if (pos >= w->end) {
			w->pos = w->end;
			return STEP_MORE;
		}
	}
	w->pos = pos;
	return STEP_AGAIN;
}

/* Begin to keep a string in a slot: at most `most` bytes of it, over all parts. */
static __always_inline void keep_begin(struct stream *s, __u8 slot, __u16 most)
{
	s->field = slot;
	s->limit = most;
}

/*
 * Keep up to n bytes at `pos` in the slot of keep_begin() and step over those taken; what is
 * beyond the limit is marked in `truncated` and left for the caller to skip. Returns
 * STEP_FULL if the record's text has no room (nothing more is taken until it is handed over),
 * else STEP_AGAIN; *taken says how many bytes were stepped over (at most 8 * STRIDE).
 */
static __always_inline enum step keep_bytes(struct stream *s, struct flow_record *r,
					    struct window *w, __u32 n, __u32 *taken)
{
	__u32 slot = s->field & (FLOW_TEXT_FIELDS - 1), at = r->text_len, pos = w->pos, i;
	struct flow_field *field = &r->fields[slot];

	*taken = 0;
	if (n > window_left(w))
		n = window_left(w);
	if (n > s->limit) {
		n = s->limit;
		r->truncated |= 1 << slot;
	}
	if (n > 8 * STRIDE)
		n = 8 * STRIDE;
	if (!n)
		return STEP_AGAIN;
	/* a slot's bytes lie in one piece */
	if (at >= TEXT_MAX || (field->len && field->off + field->len != at))
		return STEP_FULL;
	if (n > TEXT_MAX - at)
		n = TEXT_MAX - at;
	if (!field->len)
		field->off = at;
	for (i = 0; i < STRIDE; i++) {
		__u32 rest = n - 8 * i;

		if (8 * i >= n || at > TEXT_MAX)
			break;
		((struct word *)&r->text[at])->v = window_load(w, pos) & LOW_BYTES(rest);
		at += rest < 8 ? rest : 8;
		pos += 8;
	}
	field->len += n;
	r->text_len += n;
	s->limit -= n;
	w->pos += n;
	*taken = n;
	return STEP_AGAIN;
}

#endif
