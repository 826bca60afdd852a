/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql.h - the client/server protocol of MySQL 5.7 to 9 and MariaDB as a resumable parser.
 * Source: "Client/Server Protocol" in the MySQL source documentation
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html) and in MariaDB's
 * (https://mariadb.com/kb/en/clientserver-protocol/).
 *
 * Handles: the connection phase as one exchange of COM_CONNECT, which the server opens; every
 * command with the true end of its response: OK, ERR, result sets (text and binary, with and
 * without CLIENT_DEPRECATE_EOF, with and without metadata), several results, cursors, prepared
 * statements, LOCAL INFILE, progress reports, messages over 16 MB.
 * Leaves out: what is encrypted or compressed, replication, query attributes' values, versions
 * of the protocol before 4.1. User names and what proves them are never kept.
 *
 * Here: which state is whose. The work is done in mysql_*.h.
 */
#ifndef WIRESPAN_MYSQL_H
#define WIRESPAN_MYSQL_H

#include "mysql_detect.h"
#include "mysql_login.h"
#include "mysql_request.h"
#include "mysql_response.h"

static __always_inline enum step mysql_passed(struct talk *t, struct stream *s,
					      struct flow_record *r)
{
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

static __always_inline enum step mysql_step(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	switch (s->state) {
	case STATE_START:
		return s->response ? mysql_next(t, s, w) : mysql_between(t, s, r, w);
	case MYSQL_HEAD:
		if (!s->response)
			return mysql_request(t, s, r, w);
		return mysql_response(t, s, r, w);
	case MYSQL_KEEP:
		return mysql_keep(t, s, r, w);
	case MYSQL_ATTRIBUTES:
		return mysql_attributes(t, s, r, w);
	case MYSQL_ID:
		if (window_left(w) < 4)
			return STEP_MORE;
		r->stream_id = (__u32)window_load(w, w->pos);
		mysql_take(s, w, 4);
		return mysql_rest(t, s, r, w);
	case MYSQL_CAPS:
		return mysql_caps(t, s, w);
	case MYSQL_USER:
		return mysql_string(t, s, r, w,
				    s->own[MYSQL_CLIENT] &
						    (CAP_SECURE_CONNECTION | CAP_PLUGIN_AUTH_LENENC)
					    ? MYSQL_AUTH
					    : MYSQL_AUTH_NUL);
	case MYSQL_AUTH:
		return mysql_auth(t, s, r, w);
	case MYSQL_AUTH_NUL:
		keep_begin(s, FLOW_TEXT_DATABASE, MYSQL_NAME_MOST);
		return mysql_string(t, s, r, w,
				    s->own[MYSQL_CLIENT] & CAP_CONNECT_WITH_DB ? MYSQL_DATABASE
									       : MYSQL_REST);
	case MYSQL_REST:
		return mysql_rest(t, s, r, w);
	case MYSQL_DATABASE:
		return mysql_string(t, s, r, w, MYSQL_REST);
	case MYSQL_VERSION:
		return mysql_string(t, s, r, w, MYSQL_GREETING);
	case MYSQL_GREETING:
		return mysql_greeting(t, s, r, w);
	case MYSQL_OK:
		return mysql_ok(t, s, r, w);
	case MYSQL_EOF:
		return mysql_eof(t, s, r, w);
	case MYSQL_ERR:
		return mysql_err(t, s, r, w);
	case MYSQL_COUNT:
		return mysql_count(t, s, r, w);
	case MYSQL_PREPARED:
		return mysql_prepared(t, s, r, w);
	}
	return STEP_INVALID;
}

#endif
