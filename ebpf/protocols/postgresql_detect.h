/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * postgresql_detect.h - are these bytes PostgreSQL's?
 */
#ifndef WIRESPAN_POSTGRESQL_DETECT_H
#define WIRESPAN_POSTGRESQL_DETECT_H

#include "postgresql_startup.h"

static __always_inline int pg_is_letter(__u8 c)
{
	return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
}

/* Does SQL begin here: a word or a comment? */
static __always_inline int pg_is_sql(const struct window *w, __u32 at)
{
	__u8 c = window_byte(w, at), second = window_byte(w, at + 1);

	return (pg_is_letter(c) && pg_is_letter(second)) || (c == '/' && second == '*');
}

static __always_inline enum detect postgresql_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 left = window_left(w), length, at = w->pos + 5, next, n;
	__u64 word = window_load(w, w->pos);
	__u8 type;
	int whole;

	if (fresh) {
		length = __builtin_bswap32((__u32)word);
		if (left < 8) {
			/* no length takes more than two bytes */
			if (word & LOW_BYTES(left < 2 ? left : 2))
				return DETECT_NO;
			return DETECT_MORE;
		}
		return pg_is_startup(length, __builtin_bswap32((__u32)(word >> 32)))
			       ? DETECT_REQUEST
			       : DETECT_NO;
	}
	type = (__u8)word;
	if (!left || (type != 'Q' && type != 'P' && type != 'B'))
		return DETECT_NO;
	whole = pg_header(w, &type, &length);
	if (whole > 0 && (type == 'Q' ? total != 5ULL + length || length < 3
				      : total <= 5ULL + length || length < 6))
		return DETECT_NO;
	if (whole >= 0 && left < CARRY && left < total) /* the first piece of several */
		return DETECT_MORE;
	if (whole <= 0)
		return DETECT_NO;
	next = at + length;
	if (type == 'Q') {
		/* the whole buffer; its last byte may be in a later window */
		if (!pg_is_sql(w, at))
			return DETECT_NO;
		return next <= w->end && window_byte(w, next - 1) ? DETECT_NO : DETECT_REQUEST;
	}
	/* another message follows, and Sync or Flush at the end */
	if (length < WINDOW / 2 && next < w->end) {
		__u8 c = window_byte(w, next);

		if (c != 'P' && c != 'B' && c != 'D' && c != 'E' && c != 'S' && c != 'H' &&
		    c != 'C')
			return DETECT_NO;
	}
	n = pg_string(w, at);
	at += n + 1;
	if (n >= PG_NAME_MAX || n + 1 >= length || at >= w->end)
		return DETECT_NO;
	if (type == 'P')
		return pg_is_sql(w, at) ? DETECT_REQUEST : DETECT_NO;
	n = pg_string(w, at);
	at += n + 1;
	/* how many format codes: hardly more than 255 */
	if (n >= PG_NAME_MAX || at >= next || at >= w->end || window_byte(w, at))
		return DETECT_NO;
	return DETECT_REQUEST;
}

#endif
