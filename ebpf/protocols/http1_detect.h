/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* http1_detect.h - is a connection one of HTTP/1? */
#ifndef WIRESPAN_HTTP1_DETECT_H
#define WIRESPAN_HTTP1_DETECT_H

#include "http1_types.h"

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

#endif
