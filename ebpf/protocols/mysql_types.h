/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * mysql_types.h - the protocol's numbers, and what a MySQL parser remembers of a connection.
 *
 * A message is one packet, or several of which all but the last have PACKET_MAX bytes. In
 * `length` stands what is to come of the packet at hand; when it is 0 the packet has ended.
 */
#ifndef WIRESPAN_MYSQL_TYPES_H
#define WIRESPAN_MYSQL_TYPES_H

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

#endif
