/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis_detect.h - do these bytes begin a Redis command?
 */
#ifndef WIRESPAN_REDIS_DETECT_H
#define WIRESPAN_REDIS_DETECT_H

#include "redis_token.h"

/* Names of what a server sends to subscribers in the shape of a command. */
static __always_inline int redis_is_message(__u64 word)
{
	return (word & LOW_BYTES(7)) == WORD('m', 'e', 's', 's', 'a', 'g', 'e', 0) ||
	       word == WORD('p', 'm', 'e', 's', 's', 'a', 'g', 'e') ||
	       word == WORD('s', 'm', 'e', 's', 's', 'a', 'g', 'e');
}

/* A command begins with "*count CRLF $digit". */
static __always_inline enum detect redis_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 left = window_left(w), bytes = 0, at;
	/* of an older connection only the first piece of several may tell too little */
	enum detect few = fresh || (left && left < total) ? DETECT_MORE : DETECT_NO;
	__u64 count = 0;
	int whole;
	__u8 c;

	if (!left)
		return few;
	c = window_byte(w, w->pos + 1);
	if (window_byte(w, w->pos) != '*' || (left > 1 && (c < '1' || c > '9')))
		return DETECT_NO;
	whole = redis_length(w, &count, &bytes);
	if (whole <= 0)
		return whole ? DETECT_NO : few;
	if (bytes > 9 + 3)
		return DETECT_NO;
	at = w->pos + bytes;
	if (left > bytes && window_byte(w, at) != '$')
		return DETECT_NO;
	if (left < bytes + 2)
		return few;
	if (!redis_is_digit(window_byte(w, at + 1)))
		return DETECT_NO;
	/* the same may be a reply or a message to a subscriber: at least look for a name */
	if (!fresh) {
		if (left < CARRY && left < total)
			return DETECT_MORE;
		at += window_byte(w, at + 2) == '\r' ? 4 : 5;
		if (left < at - w->pos + 2)
			return DETECT_NO;
		c = window_byte(w, at) | 0x20;
		if (c < 'a' || c > 'z' || redis_is_message(window_load(w, at)))
			return DETECT_NO;
	}
	return DETECT_REQUEST;
}

#endif
