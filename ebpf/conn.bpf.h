/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * conn.bpf.h - the life of a connection: recognised by its first request, fed with what is
 * sent and received in the order of the stream, and over when either side says so.
 */
#ifndef WIRESPAN_CONN_H
#define WIRESPAN_CONN_H

#include "advance.bpf.h"

#define STEPS_FAST 32	 /* steps of one I/O that are taken in a plain loop */
#define STEPS_MOST 65536 /* and those in bpf_loop(): Linux 5.17 */
#define STEPS_OLD 1024	 /* or without it */

#ifndef OLD_KERNEL
struct walk {
	struct conn *c;
	struct io *io;
};

static long walk_step(__u32 i __attribute__((unused)), struct walk *walk)
{
	int more = advance(walk->c, walk->io);

	/* hidden from the compiler, for the verifier wants to see a 0 or a 1 */
	asm volatile("" : "+r"(more));
	return more ? 0 : 1;
}

#endif

static __always_inline void walk(struct conn *c, struct io *io)
{
	__u32 i;

	for (i = 0; i < STEPS_FAST; i++)
		if (!advance(c, io))
			return;
#ifndef OLD_KERNEL
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop)) {
		struct walk ctx = { c, io };

		bpf_loop(STEPS_MOST, walk_step, &ctx, 0);
	} else
#endif
		for (i = 0; i < STEPS_OLD; i++)
			if (!advance(c, io))
				break;
	if (!io->gone && !io->unread && (io->left || io->win.pos < io->win.end))
		lost_track(c, io, FLOW_LOSS_TOO_MANY_PARTS);
}

/*
 * n bytes of the stream went by whose content we did not see: sendfile and splice tell when
 * they do it; io_uring and the like are noticed at the next I/O, too late to time an end.
 */
GLOBAL_CONN_IO(pass_unseen, (n, end), __u32 n, __u32 end)
{
	struct stream *s;

	s = io->request ? &c->t.req : &c->t.resp;
	if (c->rec.protocol == FLOW_PROTO_HTTP2 && s->state == H2_CONTENT && s->own[H2_LEFT] >= n) {
		s->digits = H2_NOT_GRPC; /* messages can't be told apart any more */
		s->skip = s->own[H2_LEFT];
	}
	if (s->skip >= n) {
		count(FLOW_COUNT_OPAQUE_BYTES, n);
		if (c->rec.protocol == FLOW_PROTO_HTTP2)
			streams_passed(c, io, s, n);
		else
			heard(c, io, s, record_of(c, io), passed(c, io, s, n), end);
	} else {
		lost_track(c, io, FLOW_LOSS_GAP);
	}
	return 0;
}

/*
 * Where do these bytes stand? Accounts for those that went by unseen before them, and passes
 * over what was seen already (a send that failed and is tried again).
 */
static __always_inline void align(struct conn *c, struct io *io)
{
	__s32 ahead = io->seq - (io->tx ? c->tx_seq : c->rx_seq);
	int i;

	if (ahead > 0) {
		pass_unseen(c, io, ahead, FLOW_END_GAP);
		return;
	}
	if (!ahead)
		return;
	count(FLOW_COUNT_RETRIED, 1);
	for (i = 0; i < IO_IOVECS && ahead < 0 && io->left; i++)
		ahead += io_skip(io, -ahead);
}

/* Leave a send to its exit. */
GLOBAL_IO(send_defer, ())
{
	struct pending_send pending = {};
	struct conn *c;
	__u64 key;

	pending.sk = io->sk;
	pending.start_ns = io->start_ns;
	pending.msg = io->msg;
	c = conn_of(io->sk, io->ino);
	key = io->pid_tgid;
	if (bpf_map_update_elem(&pending_sends, &key, &pending, BPF_ANY)) {
		lose(FLOW_LOSS_PENDING_FULL);
		return 0;
	}
	if (c)
		c->deferred++;
	count(FLOW_COUNT_DEFERRED, 1);
	__sync_fetch_and_add(&pending_hints[key & 1023], 1);
	return 0;
}

/*
 * An address as both ends know it: where one socket is of IPv6 and the other of IPv4, the former
 * has ::ffff:a.b.c.d for the latter's a.b.c.d.
 */
static __always_inline void own_address(__u32 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, 16);
	if (!to[0] && !to[1] && to[2] == __builtin_bswap32(0xffff)) {
		to[0] = to[3];
		to[2] = to[3] = 0;
	}
}

/* The key of a connection of the tracer's own, told from either of its ends. */
static __always_inline void own_key_of(const struct flow_record *id, int at_client,
				       struct own_key *own)
{
	own_address(own->client_addr, at_client ? id->local_addr : id->remote_addr);
	own_address(own->server_addr, at_client ? id->remote_addr : id->local_addr);
	own->client_port = at_client ? id->local_port : id->remote_port;
	own->server_port = at_client ? id->remote_port : id->local_port;
}

/* Is this the far end of a connection of the tracer's own? Its first send told. */
static __always_inline int is_own(const struct flow_record *id)
{
	struct own_key own = {};

	own_key_of(id, 0, &own);
	return bpf_map_lookup_elem(&own_conns, &own) != NULL;
}

static const struct conn blank = {};

/*
 * Recognise a connection by the first bytes of this I/O. They are in the window then, and the
 * connection is in the map; if they were too few to tell its protocol, that is 0.
 */
GLOBAL_IO(recognise, ())
{
	struct stream none = {};
	struct flow_record *id;
	__u64 sk, ino, *other;
	int found, fresh;
	struct conn *c;
	__u32 tgid, at;

	tgid = io->pid_tgid >> 32;
	at = io->seq;
	sk = io->sk;
	ino = io->ino;
	other = bpf_map_lookup_elem(&others, &sk);
	if (other && *other == ino)
		return 0;
	id = &io->spare;
	__builtin_memset(id->local_addr, 0, 32);
	id->local_port = id->remote_port = 0;
	id->netns = 0;
	sock_addresses(io, id);
	if (tgid == cfg_self_tgid) {
		struct own_key own = {};
		__u8 one = 1;

		own_key_of(id, 1, &own);
		bpf_map_update_elem(&own_conns, &own, &one, BPF_ANY);
		bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
		return 0;
	}
	if (cfg_filters && !filter_wants(tgid, id->local_port, id->remote_port)) {
		/* the next process to use the socket may be wanted: only ports are for good */
		if (!(cfg_filters & FILTER_PROCESSES))
			bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
		return 0;
	}
	fresh = sock_is_fresh(io, io->left);
	if (io_load(io, &none)) {
		if (io->early)
			send_defer(io);
		return 0;
	}
	/* of a Unix socket nobody knows whether it is fresh: look for both */
	found = detect(io, fresh || !io->is_tcp);
	if (!found && !io->is_tcp)
		found = detect(io, 0);
	if (!found) {
		if (fresh) {
			count(FLOW_COUNT_OTHER, 1);
			bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
		}
		return 0;
	}
	if (!io->is_tcp && sock_unix_is_own(io)) {
		bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
		return 0;
	}
	if (!io->tx && io->is_tcp && is_own(id)) {
		bpf_map_update_elem(&others, &sk, &ino, BPF_ANY);
		return 0;
	}
	if (bpf_map_update_elem(&conns, &sk, &blank, BPF_ANY)) {
		lose(FLOW_LOSS_CONNS_FULL);
		return 0;
	}
	c = bpf_map_lookup_elem(&conns, &sk);
	if (!c)
		return 0;
	c->ino = ino;
	c->filter_tgid = tgid;
	c->fresh = fresh;
	c->is_tcp = io->is_tcp;
	c->inline_index = ~0U;
	c->foreign = !io->tx;
	c->first_ns = io->start_ns;
	c->rec.conn_id = ino;
	if ((found & 0xff) != DETECT_MORE)
		decided(c, io, found);
	if (io->is_tcp) {
		sock_addresses(io, &c->rec);
		c->tx_seq = io->tx ? at : sock_write_seq(io);
		c->rx_seq = io->tx ? sock_copied_seq(io) : at;
	} else {
		__u8 one = 1;

		bpf_map_update_elem(&unix_users, &tgid, &one, BPF_ANY);
		c->rec.family = AF_UNIX;
		sock_unix_numbers(io, c);
		io->seq += io->tx ? c->tx_seq : c->rx_seq;
	}
	return 1;
}

/* Leave a connection alone that is the far end of one of the tracer's own. */
GLOBAL_CONN_IO(disown_own, ())
{
	if (!is_own(&c->rec))
		return 0;
	disown(c, io);
	return 1;
}

/* The one way in: io->left bytes at io->seq of socket io->sk, to be read from user memory. */
GLOBAL_IO(process, ())
{
	__u32 tgid;
	struct conn *c;
	__u64 sk;

	sk = io->sk;
	tgid = io->pid_tgid >> 32;
	io->gone = 0;
	io->unread = 0;
	io->lost = 0;
	block_reset(io);
	c = bpf_map_lookup_elem(&conns, &sk);
	if (c && c->ino != io->ino) {
		/* the address is another socket's by now */
		forget(c, sk);
		c = NULL;
	}
	if (!c) {
		if (!recognise(io))
			return 0;
		c = bpf_map_lookup_elem(&conns, &sk);
		if (!c)
			return 0;
	} else {
		if (cfg_filters && c->filter_tgid != tgid) {
			if (!filter_wants(tgid, c->rec.local_port, c->rec.remote_port))
				return 0;
			c->filter_tgid = tgid;
		}
		/* a server that spoke first could not tell yet */
		if (!c->foreign && !io->tx) {
			c->foreign = 1;
			if (c->is_tcp && disown_own(c, io))
				return 0;
		}
		io->request = io->tx == (c->role == FLOW_CLIENT);
		io_empty_window(io);
		if (io->is_tcp)
			align(c, io);
		else
			io->seq = io->tx ? c->tx_seq : c->rx_seq;
	}
	walk(c, io);
	if (io->gone)
		return 0;
	if (io->lost)
		streams_end(c, sk, FLOW_END_GAP, io->end_ns);
	if (io->unread)
		send_defer(io); /* align() will pass over what was parsed already */
	if (io->tx)
		c->tx_seq = io->seq;
	else
		c->rx_seq = io->seq;
	return 0;
}

/* As process(), but the bytes can't be read: sendfile and splice. */
GLOBAL_IO(process_unseen, ())
{
	struct conn *c;
	__u32 n;

	c = conn_of(io->sk, io->ino);
	if (!c)
		return 0;
	io->request = io->tx == (c->role == FLOW_CLIENT);
	if (!io->is_tcp)
		n = io->left;
	else if (io->tx)
		n = io->seq + (__u32)io->left - c->tx_seq;
	else
		n = io->seq + (__u32)io->left - c->rx_seq;
	if ((__s32)n <= 0) /* parsed already, by a send that failed and was tried again */
		return 0;
	if (io->tx)
		c->tx_seq += n;
	else
		c->rx_seq += n;
	io->lost = 0;
	pass_unseen(c, io, n, FLOW_END_RESPONSE);
	if (io->lost)
		streams_end(c, io->sk, FLOW_END_GAP, io->end_ns);
	return 0;
}

/* This side will send no more: what ends with it is over, and what waits goes on waiting. */
static __always_inline void end_sending(struct conn *c, __u64 sk, __u64 now)
{
	if (c->role == FLOW_SERVER)
		end_exchanges(c, sk, FLOW_END_LOCAL, now);
}

/* The connection is over for this side. */
static __always_inline void end_conn(struct conn *c, __u64 sk, __u32 end, __u64 now)
{
	if (c->error == ETIMEDOUT)
		end = FLOW_END_TIMEOUT;
	else if (c->error)
		end = FLOW_END_RESET;
	end_exchanges(c, sk, end, now);
	forget(c, sk);
}

/* A send on a socket that can't take any. */
static __always_inline void send_dead(struct io *io)
{
	__u64 sk = io->sk;
	struct conn *c = conn_of(sk, io->ino);

	if (!c)
		return;
	if (LOAD(struct sock, (void *)sk, sk_shutdown) & SEND_SHUTDOWN &&
	    LOAD(struct sock, (void *)sk, __sk_common.skc_state) != TCP_CLOSE)
		return; /* half-closed by the application itself: EPIPE, and nothing else changes */
	if (!c->error)
		c->error = ECONNRESET;
	end_conn(c, sk, FLOW_END_RESET, io->start_ns);
}

/* A receive of nothing: end of stream or an error. */
static __always_inline void receive_none(struct io *io)
{
	__u64 sk = io->sk;
	struct conn *c = conn_of(sk, io->ino);
	long ret = io->ret;

	if (!c)
		return;
	if (ret < 0) {
		if (ret != -ECONNRESET && ret != -ETIMEDOUT && ret != -EPIPE)
			return;
		if (!c->error)
			c->error = -ret;
		end_conn(c, sk, FLOW_END_RESET, io->start_ns);
		return;
	}
	if (!(LOAD(struct sock, (void *)sk, sk_shutdown) & RCV_SHUTDOWN))
		return; /* asked for no bytes */
	if (c->role == FLOW_CLIENT)
		end_exchanges(c, sk, FLOW_END_PEER, io->start_ns);
}

#endif
