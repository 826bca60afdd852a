/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_login.h - the connection phase: the server's greeting, the client's answer.
 */
#ifndef WIRESPAN_MYSQL_LOGIN_H
#define WIRESPAN_MYSQL_LOGIN_H

#include "mysql_packet.h"

/* The server's capabilities, behind its version. */
static __always_inline enum step mysql_greeting(struct talk *t, struct stream *s,
						struct flow_record *r, struct window *w)
{
	__u32 at = w->pos;

	/* thread 4, scramble 8, filler 1, capabilities 2, collation 1, status 2, more of them 2 */
	if (s->length < 20)
		return STEP_INVALID;
	if (window_left(w) < 20)
		return STEP_MORE;
	t->own[MYSQL_SHARED] = (window_load(w, at + 13) & 0xffff) |
			       (__u32)(window_load(w, at + 18) & 0xffff) << 16;
	t->own[MYSQL_PHASE] = PHASE_GREETED;
	s->own[MYSQL_EXPECT] = EXPECT_AUTH;
	mysql_take(s, w, 20);
	return mysql_rest(t, s, r, w);
}

/* The capabilities at the head of SSLRequest and HandshakeResponse41. */
static __always_inline enum step mysql_caps(struct talk *t, struct stream *s, struct window *w)
{
	__u32 caps = window_load(w, w->pos);

	if (window_left(w) < 4)
		return STEP_MORE;
	if (!(caps & CAP_PROTOCOL_41))
		return STEP_INVALID;
	t->own[MYSQL_SHARED] &= caps;
	t->own[MYSQL_EOFS] = t->own[MYSQL_SHARED] & CAP_DEPRECATE_EOF ? EOFS_LEFT_OUT : EOFS_SENT;
	t->sure = 1;
	if (s->length == MYSQL_LOGIN)
		return caps & CAP_SSL ? STEP_ENCRYPTED : STEP_INVALID;
	t->own[MYSQL_PHASE] = PHASE_AUTH;
	s->own[MYSQL_CLIENT] = caps;
	mysql_take(s, w, 4);
	s->skip = MYSQL_LOGIN - 4;
	s->length -= s->skip;
	s->state = MYSQL_USER;
	return STEP_AGAIN;
}

/* Pass over the authentication data behind a user's name. */
static __always_inline enum step mysql_auth(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u32 caps = s->own[MYSQL_CLIENT], size = 1;
	__u64 n;

	if (!window_left(w))
		return STEP_MORE;
	if (caps & CAP_PLUGIN_AUTH_LENENC)
		size = mysql_int_size(window_byte(w, w->pos));
	if (!size || size > s->length)
		return STEP_INVALID;
	if (window_left(w) < size)
		return STEP_MORE;
	n = mysql_int(w, w->pos, size);
	mysql_take(s, w, size);
	if (n > s->length)
		return STEP_INVALID;
	if (!(caps & CAP_CONNECT_WITH_DB))
		return mysql_rest(t, s, r, w);
	s->length -= n;
	s->skip = n;
	s->state = MYSQL_DATABASE;
	keep_begin(s, FLOW_TEXT_DATABASE, MYSQL_NAME_MOST);
	return s->skip || s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

#endif
