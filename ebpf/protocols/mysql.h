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
 * A message is one packet, or several of which all but the last have PACKET_MAX bytes. In
 * `length` stands what is to come of the packet at hand; when it is 0 the packet has ended.
 */
#ifndef WIRESPAN_MYSQL_H
#define WIRESPAN_MYSQL_H

#include "parser.h"

#define MYSQL_PACKET_MAX 0xffffff
#define MYSQL_HEADER 4 /* length (3 bytes, little-endian) and sequence number */
#define MYSQL_LOGIN 32 /* what of HandshakeResponse41 is of fixed length: all of SSLRequest */
#define MYSQL_QUERY_MOST 4096 /* bytes kept, over all parts */
#define MYSQL_NAME_MOST 256   /* 64 characters of up to four bytes */
#define MYSQL_ERROR_MOST 256
#define MYSQL_VERSION_MOST 64

enum mysql_state {
	MYSQL_HEAD = 2, /* at a packet's header */
	MYSQL_REST,	/* in the rest of a packet, which is passed over */
	MYSQL_KEEP,	/* in a string that is kept and ends with the packet (SQLSTATE: sooner) */
	/* requests */
	MYSQL_ATTRIBUTES, /* how many query attributes stand before the text */
	MYSQL_ID,	  /* a statement's number */
	MYSQL_CAPS,	  /* the client's capabilities */
	MYSQL_USER,	  /* a user's name, up to a NUL */
	MYSQL_AUTH,	  /* length of the authentication data */
	MYSQL_AUTH_NUL,	  /* authentication data, up to a NUL */
	MYSQL_DATABASE,	  /* a database's name, up to a NUL */
	/* responses; the packet's first byte is behind */
	MYSQL_VERSION,	/* the server's version, up to a NUL */
	MYSQL_GREETING, /* what follows it: the server's capabilities */
	MYSQL_OK,
	MYSQL_EOF,
	MYSQL_ERR,
	MYSQL_COUNT, /* number of columns; the first byte is still ahead */
	MYSQL_PREPARED,
};

/* What packet a response comes to next: stream.own[MYSQL_EXPECT]. */
enum mysql_expect {
	EXPECT_BEGIN = 0, /* its first one */
	EXPECT_GREETING,
	EXPECT_AUTH,	/* OK, ERR, or more of the authentication */
	EXPECT_RESULT,	/* OK, ERR, a number of columns, a file's name */
	EXPECT_PREPARE, /* OK with a statement's number */
	EXPECT_STRING,	/* COM_STATISTICS */
	EXPECT_FIELDS,	/* definitions up to an EOF: COM_FIELD_LIST */
	/* from here on packets are numbered without a gap */
	EXPECT_COLUMNS,	    /* own[MYSQL_COLUMNS] definitions */
	EXPECT_COLUMNS_END, /* the EOF behind them */
	EXPECT_LEARN,	    /* it, or what comes where it is left out */
	EXPECT_ROWS,
};

enum mysql_phase {
	PHASE_NONE = 0,
	PHASE_GREETED, /* the client is to answer the greeting */
	PHASE_AUTH,    /* the client may send more of the authentication */
	PHASE_READY,
	PHASE_FILE, /* the client is to send a file: LOAD DATA LOCAL INFILE */
	PHASE_COMPRESSED,
};

/* Indices of stream.own[]. */
enum mysql_stream_own {
	MYSQL_EXPECT = 0,
	MYSQL_COLUMNS,	  /* definitions to come */
	MYSQL_LATER,	  /* and those behind them: columns behind parameters */
	MYSQL_CLIENT = 0, /* requests: the client's capabilities */
};

/* Indices of talk.own[]. */
enum mysql_talk_own {
	MYSQL_SHARED = 0, /* capabilities of the server, then of both sides */
	MYSQL_PHASE,
	MYSQL_EOFS,  /* enum mysql_eofs */
	MYSQL_TRAIL, /* a response ended but for an EOF that may follow: its number | 256 */
};

/* Is there an EOF packet behind definitions? */
enum mysql_eofs {
	EOFS_UNKNOWN = 0, /* the connection phase was not seen */
	EOFS_SENT,
	EOFS_LEFT_OUT, /* CLIENT_DEPRECATE_EOF */
};

enum mysql_flag {
	MYSQL_CONTINUES = 1, /* the packet had PACKET_MAX bytes: the next one goes on with it */
	MYSQL_ENDS_ROWS = 2, /* an OK where an EOF stood: its count of rows means nothing */
};

enum mysql_capability {
	CAP_CONNECT_WITH_DB = 1 << 3,
	CAP_COMPRESS = 1 << 5,
	CAP_PROTOCOL_41 = 1 << 9,
	CAP_SSL = 1 << 11,
	CAP_SECURE_CONNECTION = 1 << 15,
	CAP_PLUGIN_AUTH_LENENC = 1 << 21,
	CAP_DEPRECATE_EOF = 1 << 24,
	CAP_ZSTD = 1 << 26,
	CAP_QUERY_ATTRIBUTES = 1 << 27,
};

enum mysql_status {
	STATUS_MORE_RESULTS = 8,
	STATUS_CURSOR = 0x40,
};

enum mysql_command {
	COM_QUIT = 0x01,
	COM_INIT_DB = 0x02,
	COM_QUERY = 0x03,
	COM_FIELD_LIST = 0x04,
	COM_STATISTICS = 0x09,
	COM_CONNECT = 0x0b, /* never sent: the connection phase */
	COM_CHANGE_USER = 0x11,
	COM_BINLOG_DUMP = 0x12,
	COM_TABLE_DUMP = 0x13,
	COM_STMT_PREPARE = 0x16,
	COM_STMT_EXECUTE = 0x17,
	COM_STMT_SEND_LONG_DATA = 0x18,
	COM_STMT_CLOSE = 0x19,
	COM_STMT_RESET = 0x1a,
	COM_STMT_FETCH = 0x1c,
	COM_BINLOG_DUMP_GTID = 0x1e,
	COM_RESET_CONNECTION = 0x1f,
	COM_CLONE = 0x20,
	COM_SUBSCRIBE = 0x21, /* group replication */
	COM_STMT_BULK_EXECUTE = 0xfa,
};

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

/* Bytes that a length-encoded integer of this first byte takes; 0 if it is none. */
static __always_inline __u32 mysql_int_size(__u8 first)
{
	if (first < 0xfb)
		return 1;
	return first == 0xfc ? 3 : first == 0xfd ? 4 : first == 0xfe ? 9 : 0;
}

static __always_inline __u64 mysql_int(const struct window *w, __u32 at, __u32 size)
{
	if (size == 1)
		return window_byte(w, at);
	return window_load(w, at + 1) & LOW_BYTES(size - 1);
}

/* n bytes of the packet at `pos` were read. */
static __always_inline void mysql_take(struct stream *s, struct window *w, __u32 n)
{
	w->pos += n;
	s->length -= n;
}

/* The packet has ended: what does that end? */
static __always_inline enum step mysql_packet_end(struct talk *t, struct stream *s,
						  struct flow_record *r)
{
	__u32 phase = t->own[MYSQL_PHASE];

	s->length = 0;
	s->state = MYSQL_HEAD;
	if (s->flags & MYSQL_CONTINUES)
		return STEP_AGAIN;
	if (s->response) {
		s->state = s->next;
		if (s->state != STATE_START)
			return STEP_AGAIN;
		if (r->method == COM_CONNECT && !r->code &&
		    t->own[MYSQL_SHARED] & (CAP_COMPRESS | CAP_ZSTD))
			t->own[MYSQL_PHASE] = PHASE_COMPRESSED;
		else if (phase != PHASE_FILE)
			t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_END;
	}
	s->state = STATE_START;
	if (phase == PHASE_FILE)
		return STEP_AGAIN;
	switch (r->method) {
	case COM_QUIT:
	case COM_STMT_CLOSE:
	case COM_STMT_SEND_LONG_DATA:
		return STEP_ALONE;
	}
	return STEP_END;
}

/* Pass over the rest of the packet. */
static __always_inline enum step mysql_rest(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	__u64 n = s->length;

	s->length = 0;
	s->state = MYSQL_REST;
	if (n > window_left(w)) {
		s->skip = n;
		return STEP_AGAIN;
	}
	s->body_bytes += n;
	w->pos += n;
	return mysql_packet_end(t, s, r);
}

static __always_inline enum step mysql_passed(struct talk *t, struct stream *s,
					      struct flow_record *r)
{
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/* Keep a string up to the packet's end; SQLSTATE: `number` bytes, the message follows. */
static __always_inline enum step mysql_keep(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	int sqlstate = s->response && s->field == FLOW_TEXT_SQLSTATE;
	__u64 n = sqlstate ? s->number : s->length;
	__u32 taken;

	if (!n)
		return mysql_packet_end(t, s, r);
	if (!window_left(w))
		return STEP_MORE;
	if (n > CARRY + WINDOW)
		n = CARRY + WINDOW;
	if (keep_bytes(s, r, w, n, &taken) == STEP_FULL)
		return STEP_FULL;
	if (!taken)
		return mysql_rest(t, s, r, w);
	s->length -= taken;
	if (sqlstate) {
		s->number -= taken;
		if (!s->number)
			keep_begin(s, FLOW_TEXT_ERROR, MYSQL_ERROR_MOST);
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/*
 * Step over a string that a NUL or the packet's end ends, and keep it if the state says so;
 * then the state is `next`.
 */
static __always_inline enum step mysql_string(struct talk *t, struct stream *s,
					      struct flow_record *r, struct window *w, __u8 next)
{
	__u32 n = window_left(w), i, taken = 0, found = 0;

	if (!n)
		return STEP_MORE;
	if (n > s->length)
		n = s->length;
	if (n > 8 * STRIDE)
		n = 8 * STRIDE;
	for (i = 0; i < STRIDE; i++) {
		__u64 marks = word_equal(window_load(w, w->pos + 8 * i), 0);
		__u32 at;

		if (8 * i >= n)
			break;
		if (!marks)
			continue;
		at = word_index(marks) + 8 * i;
		if (at < n) {
			n = at;
			found = 1;
		}
		break;
	}
	if (n && (s->state == MYSQL_DATABASE || s->state == MYSQL_VERSION)) {
		if (keep_bytes(s, r, w, n, &taken) == STEP_FULL)
			return STEP_FULL;
		s->length -= taken;
		if (taken && taken < n)
			return STEP_AGAIN;
		n -= taken;
	}
	mysql_take(s, w, n + found);
	if (!s->length)
		return mysql_packet_end(t, s, r);
	if (found)
		s->state = next;
	return STEP_AGAIN;
}

/* A command: what of it is kept? */
static __always_inline enum step mysql_command(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	switch (r->method) {
	case COM_QUERY:
		s->state = MYSQL_ATTRIBUTES;
		keep_begin(s, FLOW_TEXT_QUERY, MYSQL_QUERY_MOST);
		break;
	case COM_STMT_PREPARE:
		s->state = MYSQL_KEEP;
		keep_begin(s, FLOW_TEXT_QUERY, MYSQL_QUERY_MOST);
		break;
	case COM_INIT_DB:
		s->state = MYSQL_KEEP;
		keep_begin(s, FLOW_TEXT_DATABASE, MYSQL_NAME_MOST);
		break;
	case COM_CHANGE_USER:
		s->own[MYSQL_CLIENT] = CAP_SECURE_CONNECTION | CAP_CONNECT_WITH_DB;
		s->state = MYSQL_USER;
		break;
	case COM_STMT_EXECUTE:
	case COM_STMT_SEND_LONG_DATA:
	case COM_STMT_CLOSE:
	case COM_STMT_RESET:
	case COM_STMT_FETCH:
	case COM_STMT_BULK_EXECUTE:
		if (s->length < 4)
			return STEP_INVALID;
		s->state = MYSQL_ID;
		return STEP_AGAIN;
	default:
		/* what has no meaning the server answers with an error */
		if (r->method > COM_SUBSCRIBE && !t->sure)
			return STEP_INVALID;
		return mysql_rest(t, s, r, w);
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/* The header of a request, and the command behind it. */
static __always_inline enum step mysql_request(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 length = word & MYSQL_PACKET_MAX;

	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	if (s->flags & MYSQL_CONTINUES) {
		if (length != MYSQL_PACKET_MAX)
			s->flags &= ~MYSQL_CONTINUES;
		w->pos += MYSQL_HEADER;
		s->length = length;
		return mysql_rest(t, s, r, w);
	}
	if (!length || word >> 24 & 0xff)
		return STEP_INVALID;
	if (window_left(w) < MYSQL_HEADER + 1)
		return STEP_MORE;
	if (length == MYSQL_PACKET_MAX)
		s->flags |= MYSQL_CONTINUES;
	w->pos += MYSQL_HEADER + 1;
	s->length = length - 1;
	s->head = 0;
	r->method = word >> 32;
	t->own[MYSQL_PHASE] = PHASE_READY;
	return mysql_command(t, s, r, w);
}

/* Between requests: a command, or what the client adds to the exchange at hand. */
static __always_inline enum step mysql_between(struct talk *t, struct stream *s,
					       struct flow_record *r, struct window *w)
{
	__u32 phase = t->own[MYSQL_PHASE], length, number;
	__u64 word = window_load(w, w->pos);

	if (!window_left(w))
		return STEP_MORE;
	if (phase == PHASE_COMPRESSED)
		return STEP_COMPRESSED;
	if (phase == PHASE_NONE || phase == PHASE_READY)
		return STEP_BEGIN;
	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	length = word & MYSQL_PACKET_MAX;
	number = word >> 24 & 0xff;
	/* the numbers of a file's packets come round; if it was lost track of this is a command */
	if (!number && (phase != PHASE_FILE || !t->in_flight)) {
		t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_BEGIN;
	}
	w->pos += MYSQL_HEADER;
	s->flags = length == MYSQL_PACKET_MAX ? MYSQL_CONTINUES : 0;
	s->length = length;
	if (phase == PHASE_FILE && !length) {
		t->own[MYSQL_PHASE] = PHASE_READY;
		return STEP_END;
	}
	if (phase != PHASE_GREETED)
		return mysql_rest(t, s, r, w);
	if (length < MYSQL_LOGIN)
		return STEP_INVALID;
	s->state = MYSQL_CAPS;
	return STEP_AGAIN;
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

/* How many query attributes stand before the text? The text behind any is not looked for. */
static __always_inline enum step mysql_attributes(struct talk *t, struct stream *s,
						  struct flow_record *r, struct window *w)
{
	__u8 first = window_byte(w, w->pos);
	__u32 a, b;

	if (!window_left(w))
		return STEP_MORE;
	s->state = MYSQL_KEEP;
	if (t->own[MYSQL_EOFS] == EOFS_UNKNOWN) {
		/* capabilities are not known, but no text begins so */
		if (first >= '\t')
			return mysql_keep(t, s, r, w);
	} else if (!(t->own[MYSQL_SHARED] & CAP_QUERY_ATTRIBUTES)) {
		return mysql_keep(t, s, r, w);
	}
	s->state = MYSQL_ATTRIBUTES;
	a = mysql_int_size(first);
	if (!a || a >= s->length)
		return STEP_INVALID;
	if (window_left(w) <= a)
		return STEP_MORE;
	b = mysql_int_size(window_byte(w, w->pos + a));
	if (!b || a + b > s->length)
		return STEP_INVALID;
	if (window_left(w) < a + b)
		return STEP_MORE;
	if (mysql_int(w, w->pos, a)) {
		r->truncated |= 1 << FLOW_TEXT_QUERY;
		return mysql_rest(t, s, r, w);
	}
	mysql_take(s, w, a + b);
	s->state = MYSQL_KEEP;
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

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

/* A result is complete: another one follows, or the response is. */
static __always_inline void mysql_result_end(struct stream *s, const struct flow_record *r,
					     __u32 status)
{
	s->next = STATE_START;
	if (!(status & STATUS_MORE_RESULTS))
		return;
	switch (r->method) {
	case COM_QUERY:
	case COM_STMT_EXECUTE:
	case COM_STMT_BULK_EXECUTE:
		s->own[MYSQL_EXPECT] = EXPECT_RESULT;
		s->next = MYSQL_HEAD;
	}
}

static __always_inline enum step mysql_ok(struct talk *t, struct stream *s, struct flow_record *r,
					  struct window *w)
{
	__u32 left = window_left(w), a, b;

	/* affected rows, last insert's id: integers; status 2 */
	if (!left)
		return STEP_MORE;
	a = mysql_int_size(window_byte(w, w->pos));
	if (!a || a >= s->length)
		return STEP_INVALID;
	if (left <= a)
		return STEP_MORE;
	b = mysql_int_size(window_byte(w, w->pos + a));
	if (!b || a + b + 2 > s->length)
		return STEP_INVALID;
	if (left < a + b + 2)
		return STEP_MORE;
	if (!(s->flags & MYSQL_ENDS_ROWS))
		r->rows_affected += mysql_int(w, w->pos, a);
	t->sure = 1;
	mysql_result_end(s, r, window_load(w, w->pos + a + b) & 0xffff);
	mysql_take(s, w, a + b + 2);
	return mysql_rest(t, s, r, w);
}

/* All definitions have come: what follows them? */
static __always_inline void mysql_columns_end(struct talk *t, struct stream *s,
					      const struct flow_record *r)
{
	__u32 eofs = t->own[MYSQL_EOFS];

	if (eofs == EOFS_SENT) {
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS_END;
	} else if (r->method != COM_STMT_PREPARE) {
		s->own[MYSQL_EXPECT] = eofs == EOFS_UNKNOWN ? EXPECT_LEARN : EXPECT_ROWS;
	} else if (s->own[MYSQL_LATER]) {
		s->own[MYSQL_EXPECT] = EXPECT_LEARN;
	} else {
		s->next = STATE_START;
		if (eofs == EOFS_UNKNOWN)
			t->own[MYSQL_TRAIL] = 0x100 | ((s->digits + 1) & 0xff);
	}
}

static __always_inline enum step mysql_eof(struct talk *t, struct stream *s, struct flow_record *r,
					   struct window *w)
{
	__u32 status = window_load(w, w->pos) >> 16 & 0xffff;

	if (window_left(w) < 4)
		return STEP_MORE;
	mysql_take(s, w, 4);
	if (s->own[MYSQL_EXPECT] != EXPECT_COLUMNS_END) {
		mysql_result_end(s, r, status);
	} else if (r->method == COM_STMT_PREPARE) {
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
		s->own[MYSQL_COLUMNS] = s->own[MYSQL_LATER];
		s->own[MYSQL_LATER] = 0;
		if (!s->own[MYSQL_COLUMNS])
			s->next = STATE_START;
	} else if (status & STATUS_CURSOR) {
		mysql_result_end(s, r, status); /* rows come by COM_STMT_FETCH */
	} else {
		s->own[MYSQL_EXPECT] = EXPECT_ROWS;
	}
	return mysql_packet_end(t, s, r);
}

static __always_inline enum step mysql_err(struct talk *t, struct stream *s, struct flow_record *r,
					   struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 need = s->length < 8 ? 2 : 8, code = word & 0xffff;
	int sqlstate = need == 8 && (__u8)(word >> 16) == '#';

	if (s->length < 2)
		return STEP_INVALID;
	if (window_left(w) < need)
		return STEP_MORE;
	if (code == 0xffff) /* how far MariaDB has come, no error */
		return mysql_rest(t, s, r, w);
	/* before the connection phase there is no SQLSTATE */
	if (!t->sure && !sqlstate && r->method != COM_CONNECT)
		return STEP_INVALID;
	t->sure = 1;
	r->code = code;
	s->next = STATE_START;
	s->state = MYSQL_KEEP;
	keep_begin(s, FLOW_TEXT_ERROR, MYSQL_ERROR_MOST);
	mysql_take(s, w, 2);
	if (sqlstate) {
		mysql_take(s, w, 1);
		keep_begin(s, FLOW_TEXT_SQLSTATE, 5);
		s->number = 5;
	}
	return s->length ? STEP_AGAIN : mysql_packet_end(t, s, r);
}

/*
 * The number of columns. A byte that says whether their definitions follow stands before it
 * (MySQL, CLIENT_OPTIONAL_RESULTSET_METADATA) or behind it (MariaDB,
 * MARIADB_CLIENT_CACHE_METADATA); the lengths tell, so the capabilities need not be known.
 */
static __always_inline enum step mysql_count(struct talk *t, struct stream *s,
					     struct flow_record *r, struct window *w)
{
	__u32 n = s->length, at = w->pos, size, defined = 1;
	__u64 count;

	if (window_left(w) < n)
		return STEP_MORE;
	size = mysql_int_size(window_byte(w, at));
	if (size == 1 && n > 1 && window_byte(w, at) <= 1 && window_byte(w, at + 1)) {
		defined = window_byte(w, at++);
		size = mysql_int_size(window_byte(w, at)) + 1;
	} else if (n == size + 1) {
		defined = window_byte(w, at + size);
		if (defined > 1)
			return STEP_INVALID;
		count = mysql_int(w, at, size);
		goto known;
	}
	if (n != size)
		return STEP_INVALID;
	count = mysql_int(w, at, w->pos == at ? size : size - 1);
known:
	if (!count || count > 0xffff) /* a table has 4096 at most */
		return STEP_INVALID;
	t->sure = 1;
	mysql_take(s, w, n);
	s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
	s->own[MYSQL_COLUMNS] = count;
	if (!defined)
		mysql_columns_end(t, s, r);
	return mysql_packet_end(t, s, r);
}

/* OK of COM_STMT_PREPARE: number 4, columns 2, parameters 2, filler 1, warnings 2, defined 1 */
static __always_inline enum step mysql_prepared(struct talk *t, struct stream *s,
						struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 columns, params;

	if (window_left(w) < s->length)
		return STEP_MORE;
	r->stream_id = (__u32)word;
	columns = word >> 32 & 0xffff;
	params = word >> 48;
	if (s->length == 12 && !window_byte(w, w->pos + 11))
		columns = params = 0;
	t->sure = 1;
	mysql_take(s, w, s->length);
	s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
	s->own[MYSQL_COLUMNS] = params ? params : columns;
	s->own[MYSQL_LATER] = params ? columns : 0;
	if (!s->own[MYSQL_COLUMNS])
		s->next = STATE_START;
	return mysql_packet_end(t, s, r);
}

/* Does another protocol follow this command, unless the server refuses it? */
static __always_inline int mysql_leaves(const struct flow_record *r)
{
	return r->method == COM_BINLOG_DUMP || r->method == COM_TABLE_DUMP ||
	       r->method == COM_BINLOG_DUMP_GTID || r->method == COM_CLONE ||
	       r->method == COM_SUBSCRIBE;
}

/* What the first packet of this command's response is. */
static __always_inline __u32 mysql_expected(const struct flow_record *r)
{
	switch (r->method) {
	case COM_CONNECT:
		return EXPECT_GREETING;
	case COM_CHANGE_USER:
		return EXPECT_AUTH;
	case COM_STMT_PREPARE:
		return EXPECT_PREPARE;
	case COM_STATISTICS:
		return EXPECT_STRING;
	case COM_FIELD_LIST:
		return EXPECT_FIELDS;
	case COM_STMT_FETCH:
		return EXPECT_ROWS;
	}
	return EXPECT_RESULT;
}

/* The packet that is an EOF or, CLIENT_DEPRECATE_EOF, an OK that begins like one. */
static __always_inline enum step mysql_end_packet(struct stream *s)
{
	s->state = s->length == 4 ? MYSQL_EOF : MYSQL_OK;
	s->flags |= MYSQL_ENDS_ROWS;
	return s->length < 4 ? STEP_INVALID : STEP_AGAIN;
}

/* The header of a response's packet, and its first byte. */
static __always_inline enum step mysql_response(struct talk *t, struct stream *s,
						struct flow_record *r, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 length = word & MYSQL_PACKET_MAX, expect = s->own[MYSQL_EXPECT];
	__u8 number = word >> 24, first = word >> 32;
	int ends;

	if (window_left(w) < MYSQL_HEADER)
		return STEP_MORE;
	if (s->flags & MYSQL_CONTINUES || expect >= EXPECT_COLUMNS)
		if (number != (__u8)(s->digits + 1))
			return STEP_INVALID;
	if (s->flags & MYSQL_CONTINUES) {
		if (length != MYSQL_PACKET_MAX)
			s->flags &= ~MYSQL_CONTINUES;
		s->digits = number;
		w->pos += MYSQL_HEADER;
		s->length = length;
		return mysql_rest(t, s, r, w);
	}
	if (!length)
		return STEP_INVALID;
	if (window_left(w) < MYSQL_HEADER + 1)
		return STEP_MORE;
	if (expect == EXPECT_BEGIN) {
		if (t->own[MYSQL_PHASE] == PHASE_NONE)
			r->method = COM_CONNECT; /* STEP_OPEN */
		expect = mysql_expected(r);
		if (!t->sure && number != (expect == EXPECT_GREETING ? 0 : 1))
			return STEP_INVALID;
		s->own[MYSQL_EXPECT] = expect;
		s->head = 0;
	}
	s->digits = number;
	s->flags = length == MYSQL_PACKET_MAX ? MYSQL_CONTINUES : 0;
	s->next = MYSQL_HEAD;
	s->length = length - 1;
	w->pos += MYSQL_HEADER + 1;
	if (first == 0xff) {
		s->state = MYSQL_ERR;
		return s->length < 2 ? STEP_INVALID : STEP_AGAIN;
	}
	if (mysql_leaves(r))
		return STEP_LEAVE;
	/* a string whose length takes so long a form takes more than one packet */
	ends = first == 0xfe && length != MYSQL_PACKET_MAX;
	switch (expect) {
	case EXPECT_GREETING:
		if (first != 10)
			return STEP_INVALID;
		s->state = MYSQL_VERSION;
		keep_begin(s, FLOW_TEXT_VERSION, MYSQL_VERSION_MOST);
		return s->length ? STEP_AGAIN : STEP_INVALID;
	case EXPECT_AUTH:
		if (!first && s->length >= 6) {
			s->state = MYSQL_OK;
			return STEP_AGAIN;
		}
		if (t->own[MYSQL_PHASE] == PHASE_READY)
			t->own[MYSQL_PHASE] = PHASE_AUTH; /* COM_CHANGE_USER */
		break;
	case EXPECT_RESULT:
		if (ends)
			return mysql_end_packet(s);
		if (first == 0xfb && length > 1 && (t->sure || length < 512)) {
			t->own[MYSQL_PHASE] = PHASE_FILE;
			break;
		}
		if (!first && s->length >= 6) {
			s->state = MYSQL_OK;
			return STEP_AGAIN;
		}
		w->pos--;
		s->length++;
		s->state = MYSQL_COUNT;
		return length > 10 ? STEP_INVALID : STEP_AGAIN;
	case EXPECT_PREPARE:
		s->state = MYSQL_PREPARED;
		return first || s->length < 11 || s->length > 12 ? STEP_INVALID : STEP_AGAIN;
	case EXPECT_STRING:
		s->next = STATE_START;
		break;
	case EXPECT_FIELDS:
		if (ends)
			return mysql_end_packet(s);
		break;
	case EXPECT_COLUMNS_END:
		s->state = MYSQL_EOF;
		return ends && s->length == 4 ? STEP_AGAIN : STEP_INVALID;
	case EXPECT_LEARN:
		if (ends && s->length == 4 && t->own[MYSQL_EOFS] == EOFS_UNKNOWN) {
			t->own[MYSQL_EOFS] = EOFS_SENT;
			s->own[MYSQL_EXPECT] = EXPECT_COLUMNS_END;
			s->state = MYSQL_EOF;
			return STEP_AGAIN;
		}
		t->own[MYSQL_EOFS] = EOFS_LEFT_OUT;
		if (r->method != COM_STMT_PREPARE) {
			s->own[MYSQL_EXPECT] = EXPECT_ROWS;
			goto rows;
		}
		s->own[MYSQL_EXPECT] = EXPECT_COLUMNS;
		s->own[MYSQL_COLUMNS] = s->own[MYSQL_LATER];
		s->own[MYSQL_LATER] = 0;
		fallthrough;
	case EXPECT_COLUMNS:
		s->own[MYSQL_COLUMNS]--;
		if (!s->own[MYSQL_COLUMNS])
			mysql_columns_end(t, s, r);
		break;
	case EXPECT_ROWS:
rows:
		if (ends)
			return mysql_end_packet(s);
		r->rows_returned++;
		break;
	}
	return mysql_rest(t, s, r, w);
}

/* Between responses: the next one, the server's greeting, or an EOF not known to follow. */
static __always_inline enum step mysql_next(struct talk *t, struct stream *s, struct window *w)
{
	__u64 word = window_load(w, w->pos);
	__u32 trail = t->own[MYSQL_TRAIL], n = window_left(w);

	if (!n)
		return STEP_MORE;
	if (t->own[MYSQL_PHASE] == PHASE_COMPRESSED)
		return STEP_COMPRESSED;
	if (trail) {
		if (n < MYSQL_HEADER + 1)
			return STEP_MORE;
		if ((word & LOW_BYTES(5)) == WORD(5, 0, 0, trail & 0xff, 0xfe, 0, 0, 0)) {
			if (n < MYSQL_HEADER + 5)
				return STEP_MORE;
			w->pos += MYSQL_HEADER + 5;
			t->own[MYSQL_EOFS] = EOFS_SENT;
			t->own[MYSQL_TRAIL] = 0;
			return STEP_AGAIN;
		}
		t->own[MYSQL_EOFS] = EOFS_LEFT_OUT;
		t->own[MYSQL_TRAIL] = 0;
	}
	s->flags = 0;
	if (t->own[MYSQL_PHASE] == PHASE_NONE && !t->old && !t->in_flight)
		return STEP_OPEN;
	return STEP_BEGIN;
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
