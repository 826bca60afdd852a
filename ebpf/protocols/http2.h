/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * http2.h - HTTP/2 frames (RFC 9113) as a resumable parser; see parser.h.
 *
 * Walks frame headers, hands field block fragments over in the order of the stream (HPACK is
 * decoded in user space), counts the content of DATA and, by their prefixes, the messages of
 * gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). Knows nothing of
 * streams but the one of the frame at hand: ebpf/streams.bpf.h keeps them.
 *
 * Steps mean here:
 *   STEP_BEGIN     a frame's header was read: h2_* below tell it. For DATA the caller sets
 *                  what it kept of the stream's messages (h2_messages_of).
 *   STEP_FULL      the record holds a fragment of a block that goes on
 *   STEP_HEAD_END  the record holds the last fragment of a block
 *   STEP_END       the frame was read to its end
 */
#ifndef WIRESPAN_HTTP2_H
#define WIRESPAN_HTTP2_H

#include "parser.h"

/* Frame types, RFC 9113 section 6. */
enum h2_type {
	H2_DATA = 0,
	H2_HEADERS = 1,
	H2_PRIORITY = 2,
	H2_RST_STREAM = 3,
	H2_SETTINGS = 4,
	H2_PUSH_PROMISE = 5,
	H2_PING = 6,
	H2_GOAWAY = 7,
	H2_WINDOW_UPDATE = 8,
	H2_CONTINUATION = 9,
	H2_TYPES = 10, /* what is beyond is skipped */
};

enum h2_flag {
	H2_END_STREAM = 0x1,
	H2_END_HEADERS = 0x4,
	H2_PADDED = 0x8,
	H2_WITH_PRIORITY = 0x20,
};

enum h2_state {
	H2_START = 2, /* behind a frame's header */
	H2_BLOCK,     /* in a field block fragment */
	H2_PADDING,   /* in the padding behind it, or behind content */
	H2_CONTENT,   /* in the payload of DATA */
	H2_SKIPPED,   /* payload that nobody wants */
	H2_CODE,      /* RST_STREAM: error code; GOAWAY: last stream and error code */
};

/* struct stream: own[] */
enum h2_own {
	H2_LEFT,   /* bytes of the payload to come, without padding */
	H2_STREAM, /* stream identifier of the frame */
	H2_FRAME,  /* type | flags << 8 | length of the padding << 16 | not gRPC << 24 */
	H2_COUNT,  /* whole messages of the stream so far */
	H2_VALUE,  /* error code, last stream */
};

#define H2_PREFACE 24
#define H2_SMALL 64 /* payload of frames that may come before HEADERS in one buffer */
#define H2_SMALL_FRAMES 4
#define H2_HEADER 9
#define H2_PREFIX 5	 /* of a gRPC message: compressed flag, length */
#define H2_NOT_GRPC 0xff /* stream.digits: the content is no messages */
#define H2_BLOCK_OPEN 1	 /* stream.flags: CONTINUATION must follow */
#define H2_BLOCK_END 2	 /* stream.flags: the block's HEADERS had END_STREAM */
#define H2_BLOCK_PUSH 4	 /* stream.flags: the block is of a PUSH_PROMISE */

static __always_inline __u32 h2_type(const struct stream *s)
{
	return s->own[H2_FRAME] & 0xff;
}

static __always_inline __u32 h2_flags(const struct stream *s)
{
	return s->own[H2_FRAME] >> 8 & 0xff;
}

static __always_inline __u32 h2_u32(const struct window *w, __u32 at)
{
	return __builtin_bswap32((__u32)window_load(w, at));
}

static __always_inline __u32 h2_length(__u64 head)
{
	return (head & 0xff) << 16 | (head >> 8 & 0xff) << 8 | (head >> 16 & 0xff);
}

/* Does a frame header at `at` say what RFC 9113 allows? Unknown types are not taken for one. */
static __always_inline int h2_plausible(const struct window *w, __u32 at)
{
	__u64 head = window_load(w, at);
	__u32 length = h2_length(head);
	__u32 type = head >> 24 & 0xff, flags = head >> 32 & 0xff, id = h2_u32(w, at + 5);

	if (id >> 31 || type >= H2_TYPES)
		return 0;
	switch (type) {
	case H2_DATA:
		return id && !(flags & ~0x09);
	case H2_HEADERS:
		return id && length && !(flags & ~0x2d);
	case H2_PRIORITY:
		return id && length == 5 && !flags;
	case H2_RST_STREAM:
		return id && length == 4 && !flags;
	case H2_SETTINGS:
		return !id && !(flags & ~1) && length < 512 && (length == 0 || !(flags & 1)) &&
		       length % 6 == 0;
	case H2_PUSH_PROMISE:
		return id && length > 4 && !(flags & ~0x0c);
	case H2_PING:
		return !id && length == 8 && !(flags & ~1);
	case H2_GOAWAY:
		return !id && length >= 8 && !flags;
	case H2_WINDOW_UPDATE:
		return length == 4 && !flags;
	}
	return id && !(flags & ~0x04);
}

/* The first bytes of a client's connection preface, RFC 9113 section 3.4. */
#define H2_PRI_1 WORD('P', 'R', 'I', ' ', '*', ' ', 'H', 'T')
#define H2_PRI_2 WORD('T', 'P', '/', '2', '.', '0', '\r', '\n')
#define H2_PRI_3 WORD('\r', '\n', 'S', 'M', '\r', '\n', '\r', '\n')

static __always_inline int h2_is_preface(const struct window *w, __u32 n)
{
	__u64 first = n < 8 ? LOW_BYTES(n) : ~0ULL;
	__u64 second = n <= 8 ? 0 : n < 16 ? LOW_BYTES(n - 8) : ~0ULL;
	__u64 third = n <= 16 ? 0 : n < 24 ? LOW_BYTES(n - 16) : ~0ULL;

	return !((window_load(w, w->pos) ^ H2_PRI_1) & first) &&
	       !((window_load(w, w->pos + 8) ^ H2_PRI_2) & second) &&
	       !((window_load(w, w->pos + 16) ^ H2_PRI_3) & third);
}

/* A server may speak before it has read the preface: SETTINGS, RFC 9113 section 3.4. */
static __always_inline enum detect http2_detect_settings(const struct window *w)
{
	__u32 n = window_left(w);
	__u64 head = window_load(w, w->pos);

	if (!n || head & LOW_BYTES(n < 2 ? n : 2)) /* no longer than 255 bytes */
		return DETECT_NO;
	if (n > 3 && (head >> 24 & 0xff) != H2_SETTINGS)
		return DETECT_NO;
	if (n < H2_HEADER)
		return DETECT_MORE;
	return !(head >> 32 & 0xff) && h2_plausible(w, w->pos) ? DETECT_RESPONSE : DETECT_NO;
}

/* Could these n bytes be a frame of less than 65536 bytes, and not DATA? */
static __always_inline int h2_may_be_frame(const struct window *w, __u32 n)
{
	__u64 head = window_load(w, w->pos);
	__u32 type = head >> 24 & 0xff;

	if (n >= H2_HEADER)
		return type != H2_DATA && h2_plausible(w, w->pos);
	return !(head & 0xff) && (n < 4 || (type != H2_DATA && type < H2_TYPES));
}

/*
 * Who sent the field block at `at`, of n bytes? A request's pseudo-headers and a response's
 * :status come first (RFC 9113 section 8.3); all of those names are in the static table (RFC
 * 7541 appendix A), and the values of :method and :scheme that all use, too. What stands in the
 * dynamic table can't be known in the middle of a connection, and is passed over.
 */
static __always_inline enum detect h2_block_sender(const struct window *w, __u32 at, __u32 n)
{
	__u32 end = at + n, i;

	for (i = 0; i < STRIDE && at < end; i++) {
		__u8 c = window_byte(w, at++);

		if ((c >= 0x82 && c <= 0x87) || c == 0x41 || c == 0x44 || c == 0x01 || c == 0x04 ||
		    c == 0x42 || c == 0x11 || c == 0x14)
			return DETECT_REQUEST;
		if ((c >= 0x88 && c <= 0x8e) || c == 0x48 || c == 0x08 || c == 0x18)
			return DETECT_RESPONSE;
		if (c == 0xff || c == 0x3f) /* an index, or the table's new size, of more bytes */
			at += 1 + (window_byte(w, at) >> 7);
		else if (c < 0xbe && (c & 0xe0) != 0x20)
			break;
	}
	return DETECT_NO;
}

/*
 * A fresh connection begins with the preface, or the server's SETTINGS. In the middle of one
 * only HEADERS tell who is who.
 */
static __always_inline enum detect http2_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 n = window_left(w), at = w->pos, length = 0, flags, i;

	if (n > 4 && h2_is_preface(w, n))
		return n < H2_PREFACE ? DETECT_MORE : DETECT_REQUEST;
	if (fresh)
		return n && h2_is_preface(w, n) ? DETECT_MORE : http2_detect_settings(w);
	if (n && n < CARRY && n < total) /* the first piece of several */
		return h2_may_be_frame(w, n) ? DETECT_MORE : DETECT_NO;
	/* small frames may come before it */
	for (i = 0; i < H2_SMALL_FRAMES; i++) {
		if (n < H2_HEADER + 2 || at > w->end - H2_HEADER - 2 || !h2_plausible(w, at))
			return DETECT_NO;
		length = h2_length(window_load(w, at));
		if (window_byte(w, at + 3) == H2_HEADERS)
			break;
		if (window_byte(w, at + 3) == H2_DATA || length > H2_SMALL)
			return DETECT_NO;
		at += H2_HEADER + length;
	}
	if (window_byte(w, at + 3) != H2_HEADERS || length + H2_HEADER > total)
		return DETECT_NO;
	flags = window_byte(w, at + 4);
	at += H2_HEADER;
	if (flags & H2_PADDED)
		return DETECT_NO;
	if (flags & H2_WITH_PRIORITY) {
		if (length < 5)
			return DETECT_NO;
		at += 5;
		length -= 5;
	}
	if (at > w->end - 2)
		return DETECT_NO;
	return h2_block_sender(w, at, length);
}

/* What the caller keeps of a stream's messages while frames of others come. */
struct h2_messages {
	__u32 left;   /* of the message at hand */
	__u32 prefix; /* what was read of the next one's length */
	__u32 count;  /* whole messages */
	__u8 digits;  /* bytes read of the next one's prefix, or H2_NOT_GRPC */
	__u8 pad[3];
};

static __always_inline void h2_messages_load(struct stream *s, const struct h2_messages *m)
{
	s->number = m->left;
	s->length = m->prefix;
	s->own[H2_COUNT] = m->count;
	s->digits = m->digits;
}

static __always_inline void h2_messages_store(const struct stream *s, struct h2_messages *m)
{
	m->left = (__u32)s->number;
	m->prefix = (__u32)s->length;
	m->count = s->own[H2_COUNT];
	m->digits = s->digits;
}

static __always_inline enum step h2_frame_end(struct stream *s)
{
	s->state = STATE_START;
	return STEP_END;
}

static __always_inline enum step h2_skip_to_end(struct stream *s, __u64 n, __u8 state)
{
	if (!n)
		return h2_frame_end(s);
	s->skip = n;
	s->state = state;
	return STEP_AGAIN;
}

static __always_inline __u32 h2_padding(const struct stream *s)
{
	return s->own[H2_FRAME] >> 16 & 0xff;
}

/* A frame's header, and what of its payload must be read before the rest. */
static __always_inline enum step h2_step_header(struct talk *t, struct stream *s, struct window *w)
{
	__u32 n = window_left(w), at = w->pos, fixed = 0, length, type, flags, padding = 0;
	__u64 head = window_load(w, at);

	if (n < H2_HEADER)
		return STEP_MORE;
	length = h2_length(head);
	type = head >> 24 & 0xff;
	flags = head >> 32 & 0xff;
	if (type < H2_TYPES && !h2_plausible(w, at)) {
		/* flags that a type does not know are to be ignored: only sizes and ids matter */
		__u32 id = h2_u32(w, at + 5) & 0x7fffffff;

		if ((type == H2_PING && length != 8) || (type == H2_RST_STREAM && length != 4) ||
		    (type == H2_WINDOW_UPDATE && length != 4) ||
		    (type == H2_SETTINGS && (id || length > 16384)) ||
		    ((type == H2_DATA || type == H2_HEADERS || type == H2_RST_STREAM ||
		      type == H2_CONTINUATION) &&
		     !id))
			return STEP_INVALID;
	}
	if (s->flags & H2_BLOCK_OPEN &&
	    (type != H2_CONTINUATION || s->own[H2_STREAM] != (h2_u32(w, at + 5) & 0x7fffffff)))
		return STEP_INVALID;
	if (type == H2_CONTINUATION && !(s->flags & H2_BLOCK_OPEN))
		return STEP_INVALID;
	if (type == H2_DATA || type == H2_HEADERS || type == H2_PUSH_PROMISE) {
		if (flags & H2_PADDED)
			fixed = 1;
		if (type == H2_HEADERS && flags & H2_WITH_PRIORITY)
			fixed += 5;
		if (type == H2_PUSH_PROMISE)
			fixed += 4;
		if (length < fixed)
			return STEP_INVALID;
		if (n < H2_HEADER + fixed)
			return STEP_MORE;
		if (flags & H2_PADDED)
			padding = window_byte(w, at + H2_HEADER);
		if (padding > length - fixed)
			return STEP_INVALID;
	}
	w->pos += H2_HEADER + fixed;
	s->own[H2_LEFT] = length - fixed - padding;
	s->own[H2_STREAM] = h2_u32(w, at + 5) & 0x7fffffff;
	s->own[H2_FRAME] = type | flags << 8 | padding << 16;
	s->own[H2_VALUE] = 0;
	s->state = H2_START;
	t->sure = 1;
	return STEP_BEGIN;
}

/* The payload begins: which way to read it. */
static __always_inline enum step h2_step_payload(struct stream *s)
{
	switch (h2_type(s)) {
	case H2_DATA:
		s->state = H2_CONTENT;
		return STEP_AGAIN;
	case H2_HEADERS:
		s->flags = H2_BLOCK_OPEN | (h2_flags(s) & H2_END_STREAM ? H2_BLOCK_END : 0);
		s->state = H2_BLOCK;
		return STEP_AGAIN;
	case H2_PUSH_PROMISE:
		s->flags = H2_BLOCK_OPEN | H2_BLOCK_PUSH;
		s->state = H2_BLOCK;
		return STEP_AGAIN;
	case H2_CONTINUATION:
		s->state = H2_BLOCK;
		return STEP_AGAIN;
	case H2_RST_STREAM:
	case H2_GOAWAY:
		s->state = H2_CODE;
		return STEP_AGAIN;
	}
	return h2_skip_to_end(s, s->own[H2_LEFT], H2_SKIPPED);
}

/* Keep a field block fragment. */
static __always_inline enum step h2_step_block(struct stream *s, struct flow_record *r,
					       struct window *w)
{
	__u32 n = s->own[H2_LEFT], taken;

	if (n) {
		if (!window_left(w))
			return STEP_MORE;
		keep_begin(s, FLOW_TEXT_BLOCK, 0xffff);
		if (keep_bytes(s, r, w, n, &taken) == STEP_FULL)
			return STEP_FULL;
		s->own[H2_LEFT] = n - taken;
		return STEP_AGAIN;
	}
	if (h2_flags(s) & H2_END_HEADERS) {
		s->flags &= ~H2_BLOCK_OPEN;
		s->state = H2_PADDING;
		return STEP_HEAD_END;
	}
	s->state = H2_PADDING;
	return STEP_AGAIN;
}

/* DATA: pass over messages by their length, and read the prefixes between them. */
static __always_inline enum step h2_step_content(struct stream *s, struct window *w)
{
	__u32 i;

	if (!s->own[H2_LEFT])
		return h2_skip_to_end(s, h2_padding(s), H2_PADDING);
	if (s->digits == H2_NOT_GRPC) {
		s->skip = s->own[H2_LEFT];
		return STEP_AGAIN;
	}
	if (s->number) {
		s->skip = s->number < s->own[H2_LEFT] ? s->number : s->own[H2_LEFT];
		return STEP_AGAIN;
	}
	for (i = 0; i < H2_PREFIX; i++) {
		__u8 c = window_byte(w, w->pos);

		if (s->digits >= H2_PREFIX || !s->own[H2_LEFT])
			break;
		if (w->pos >= w->end)
			return STEP_MORE;
		if (!s->digits && c > 1) { /* neither compressed nor not */
			s->digits = H2_NOT_GRPC;
			return STEP_AGAIN;
		}
		s->length = s->length << 8 | c;
		s->digits++;
		s->own[H2_LEFT]--;
		s->body_bytes++;
		w->pos++;
	}
	if (s->digits == H2_PREFIX) {
		s->number = (__u32)s->length;
		s->length = 0;
		s->digits = 0;
		if (!s->number)
			s->own[H2_COUNT]++;
	}
	return STEP_AGAIN;
}

/* What was skipped went by. The caller adds it to body_bytes. */
static __always_inline enum step http2_passed(struct stream *s, __u64 n)
{
	if (s->state != H2_CONTENT) {
		if (s->skip)
			return STEP_AGAIN;
		return h2_frame_end(s);
	}
	s->body_bytes += n;
	s->own[H2_LEFT] -= n;
	if (s->digits != H2_NOT_GRPC && s->number) {
		s->number -= n;
		if (!s->number)
			s->own[H2_COUNT]++;
	}
	if (!s->own[H2_LEFT]) /* the end of the content is that of the frame, if not padded */
		return h2_skip_to_end(s, h2_padding(s), H2_PADDING);
	return STEP_AGAIN;
}

static __always_inline enum step http2_step(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	switch (s->state) {
	case STATE_START:
		if (!s->response && window_left(w) && h2_is_preface(w, window_left(w))) {
			if (window_left(w) < H2_PREFACE)
				return STEP_MORE;
			w->pos += H2_PREFACE;
			t->old = 0;
			t->sure = 1;
			return STEP_AGAIN;
		}
		return h2_step_header(t, s, w);
	case H2_START:
		return h2_step_payload(s);
	case H2_BLOCK:
		return h2_step_block(s, r, w);
	case H2_PADDING:
		return h2_skip_to_end(s, h2_padding(s), H2_PADDING);
	case H2_CONTENT:
		return h2_step_content(s, w);
	case H2_CODE: {
		__u32 n = s->own[H2_LEFT], need = h2_type(s) == H2_GOAWAY ? 8 : 4;

		if (n < need)
			return STEP_INVALID;
		if (window_left(w) < need)
			return STEP_MORE;
		s->own[H2_VALUE] = h2_u32(w, w->pos + need - 4);
		w->pos += need;
		return h2_skip_to_end(s, n - need, H2_SKIPPED);
	}
	}
	return STEP_INVALID;
}

#endif
