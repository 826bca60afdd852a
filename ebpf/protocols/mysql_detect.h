/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_detect.h - are these bytes MySQL's?
 */
#ifndef WIRESPAN_MYSQL_DETECT_H
#define WIRESPAN_MYSQL_DETECT_H

#include "mysql_types.h"

/* ASCII letters of a text's first eight bytes, lower case, if they are a statement's verb. */
static __always_inline int mysql_is_verb(__u64 text)
{
	__u64 word = 0;
	__u32 i;

	for (i = 0; i < 8; i++) {
		__u64 c = (text >> (8 * i) & 0xff) | 0x20;

		if (c < 'a' || c > 'z')
			break;
		word |= c << (8 * i);
	}
	switch (word) {
	case WORD('s', 'e', 'l', 'e', 'c', 't', 0, 0):
	case WORD('i', 'n', 's', 'e', 'r', 't', 0, 0):
	case WORD('u', 'p', 'd', 'a', 't', 'e', 0, 0):
	case WORD('d', 'e', 'l', 'e', 't', 'e', 0, 0):
	case WORD('r', 'e', 'p', 'l', 'a', 'c', 'e', 0):
	case WORD('s', 'e', 't', 0, 0, 0, 0, 0):
	case WORD('s', 'h', 'o', 'w', 0, 0, 0, 0):
	case WORD('b', 'e', 'g', 'i', 'n', 0, 0, 0):
	case WORD('c', 'o', 'm', 'm', 'i', 't', 0, 0):
	case WORD('r', 'o', 'l', 'l', 'b', 'a', 'c', 'k'):
	case WORD('s', 'a', 'v', 'e', 'p', 'o', 'i', 'n'):
	case WORD('r', 'e', 'l', 'e', 'a', 's', 'e', 0):
	case WORD('c', 'a', 'l', 'l', 0, 0, 0, 0):
	case WORD('u', 's', 'e', 0, 0, 0, 0, 0):
	case WORD('c', 'r', 'e', 'a', 't', 'e', 0, 0):
	case WORD('d', 'r', 'o', 'p', 0, 0, 0, 0):
	case WORD('a', 'l', 't', 'e', 'r', 0, 0, 0):
	case WORD('w', 'i', 't', 'h', 0, 0, 0, 0):
	case WORD('s', 't', 'a', 'r', 't', 0, 0, 0):
	case WORD('t', 'r', 'u', 'n', 'c', 'a', 't', 'e'):
	case WORD('e', 'x', 'p', 'l', 'a', 'i', 'n', 0):
	case WORD('d', 'e', 's', 'c', 'r', 'i', 'b', 'e'):
	case WORD('d', 'e', 's', 'c', 0, 0, 0, 0):
	case WORD('a', 'n', 'a', 'l', 'y', 'z', 'e', 0):
	case WORD('o', 'p', 't', 'i', 'm', 'i', 'z', 'e'):
	case WORD('l', 'o', 'c', 'k', 0, 0, 0, 0):
	case WORD('u', 'n', 'l', 'o', 'c', 'k', 0, 0):
	case WORD('l', 'o', 'a', 'd', 0, 0, 0, 0):
	case WORD('d', 'o', 0, 0, 0, 0, 0, 0):
	case WORD('k', 'i', 'l', 'l', 0, 0, 0, 0):
	case WORD('g', 'r', 'a', 'n', 't', 0, 0, 0):
	case WORD('t', 'a', 'b', 'l', 'e', 0, 0, 0):
	case WORD('v', 'a', 'l', 'u', 'e', 's', 0, 0):
		return 1;
	}
	return 0;
}

static __always_inline int mysql_is_sql(const struct window *w, __u32 at)
{
	__u64 text;
	__u32 i;
	__u8 c = 0;

	for (i = 0; i < STRIDE; i++) {
		c = window_byte(w, at);
		if (c != ' ' && c != '\t' && c != '\r' && c != '\n')
			break;
		at++;
	}
	text = window_load(w, at);
	return c == '(' || (text & 0xffff) == ('/' | '*' << 8) ||
	       (text & 0xffff) == ('-' | '-' << 8) || mysql_is_verb(text);
}

/*
 * The server speaks first: a greeting, or an error that says why there will be none. From the
 * middle of a connection only a command that is a whole buffer is taken, and only one of those
 * that say enough.
 */
static __always_inline enum detect mysql_detect(const struct window *w, __u64 total, int fresh)
{
	__u32 at = w->pos, n = window_left(w), length;
	__u64 word = window_load(w, at), next;
	__u8 first = word >> 32, c;

	length = word & MYSQL_PACKET_MAX;
	if (fresh) {
		if (n >= 4 && (word >> 24 & 0xff))
			return DETECT_NO;
		if (n < 5)
			return n > 2 && (length < 8 || length > 1024) ? DETECT_NO : DETECT_MORE;
		if (length < 8 || length > 1024 || total > length + MYSQL_HEADER)
			return DETECT_NO;
		if (first != 10 && first != 0xff)
			return DETECT_NO;
		if (n < 8)
			return DETECT_MORE;
		c = word >> 40;
		if (first == 10) {
			if (c < '0' || c > '9' || length < 32)
				return DETECT_NO;
			c = word >> 48;
			if (c == '.')
				return DETECT_RESPONSE;
			return c >= '0' && c <= '9' && (__u8)(word >> 56) == '.' ? DETECT_RESPONSE
										 : DETECT_NO;
		}
		next = word >> 40 & 0xffff; /* errors of the server: 1000 and more */
		c = word >> 56;
		return next >= 1000 && next < 5000 && (c == '#' || (c >= 'A' && c <= 'Z'))
			       ? DETECT_RESPONSE
			       : DETECT_NO;
	}
	/* servers read the header by itself */
	if (n == MYSQL_HEADER && total == n && !(word >> 24 & 0xff) && length > 4 &&
	    length < 1 << 20)
		return DETECT_MORE;
	/* number 0, and the length that there is */
	if (!n || total < MYSQL_HEADER || total - MYSQL_HEADER > MYSQL_PACKET_MAX ||
	    (word ^ (total - MYSQL_HEADER)) & LOW_BYTES(n < MYSQL_HEADER ? n : MYSQL_HEADER))
		return DETECT_NO;
	if (n < CARRY && n < total) /* the first piece of several */
		return DETECT_MORE;
	if (n < 6)
		return DETECT_NO;
	next = window_load(w, at + 5);
	switch (first) {
	case COM_QUERY:
		/* no query attributes, one set of them */
		if (length > 3 && (next & 0xffff) == 0x100)
			at += 2;
		fallthrough;
	case COM_STMT_PREPARE:
		return mysql_is_sql(w, at + 5) ? DETECT_REQUEST : DETECT_NO;
	case COM_STMT_EXECUTE:
		/* number, flags, 1 */
		if (length < 10 || n < 14 || (__u8)(next >> 32) > 15)
			return DETECT_NO;
		return (__u32)window_load(w, at + 10) == 1 ? DETECT_REQUEST : DETECT_NO;
	}
	return DETECT_NO;
}

#endif
