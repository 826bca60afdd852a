/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * replay.c - conn.bpf.h, exchange.bpf.h and the parsers, compiled for the host: this file
 * stands in for the kernel under them. Maps are hash tables, the ring is a list, sockets are
 * what replay_open() says. See replay.h.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdlib.h>
#include <string.h>

/* What libbpf's headers, kernel.h, sock.bpf.h and filter.bpf.h are in the kernel's build. */
#define WIRESPAN_KERNEL_H
#define WIRESPAN_SOCK_H
#define WIRESPAN_FILTER_H

#define SEC(name)
#define __noinline __attribute__((noinline))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#define AF_UNIX 1
#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define TCP_CLOSE 7

#define LOAD(type, obj, field) ((void)(obj), 0)
#define bpf_core_read(to, n, from) memset(to, 0, n)
#define bpf_core_enum_value_exists(type, value) 1
#define bpf_get_current_task() 0
#define THREAD_POINTER(task) ((void)(task), 0)
#define bpf_get_current_cgroup_id() 0
#define barrier() ((void)0)

enum host_map_type {
	HOST_ARRAY = BPF_MAP_TYPE_PERCPU_ARRAY
};

static void *host_lookup(const void *map, int type, __u32 key_size, __u32 value_size,
			 const void *key);
static long host_update(const void *map, __u32 most, __u32 key_size, __u32 value_size,
			const void *key, const void *value, __u64 flags);
static long host_delete(const void *map, __u32 key_size, const void *key);
static long host_each(const void *map, long (*f)(void *, const void *, void *, void *), void *ctx);
static void *host_reserve(__u64 size);

#define HOST_MOST(m) (sizeof(*(m)->max_entries) / sizeof(int))
#define HOST_TYPE(m) (sizeof(*(m)->type) / sizeof(int))
#define bpf_map_lookup_elem(m, k)                                                                  \
	host_lookup(m, HOST_TYPE(m), sizeof(*(m)->key), sizeof(*(m)->value), k)
#define bpf_map_update_elem(m, k, v, flags)                                                        \
	host_update(m, HOST_MOST(m), sizeof(*(m)->key), sizeof(*(m)->value), k, v, flags)
#define bpf_map_delete_elem(m, k) host_delete(m, sizeof(*(m)->key), k)
#define bpf_for_each_map_elem(m, f, ctx, flags)                                                    \
	host_each(m, (long (*)(void *, const void *, void *, void *))(f), ctx)
#define bpf_ringbuf_query(ring, what) 0UL
#define bpf_ringbuf_reserve(ring, size, flags) host_reserve(size)
#define bpf_ringbuf_submit(record, flags) ((void)(record), (void)(flags))
static inline int bpf_probe_read_user(void *to, size_t n, const void *from)
{
	asm volatile("" : "+r"(from)); /* gcc warns of places that it knows to be none */
	memcpy(to, from, n);
	return 0;
}

#define bpf_loop(n, f, ctx, flags)                                                                 \
	do {                                                                                       \
		for (__u32 __i = 0; __i < (n); __i++)                                              \
			if (f(__i, ctx))                                                           \
				break;                                                             \
	} while (0)

static __u32 host_window = 464;
static int host_resync = 1;
#define WINDOW_FRESH host_window
#define RESYNC host_resync

#include "io.bpf.h"

/* A socket, as replay_open() described it. */
struct host_sock {
	__u32 tx_first, rx_first; /* first byte of each direction */
	__u32 tx_next, rx_next;	  /* next byte of each direction, as far as known */
	__u16 family, local_port, remote_port;
	__u8 fresh, sent, received, fin_sent, fin_received;
	__u8 request, response; /* enum replay_outcome */
	__u8 local_addr[16];
	__u8 remote_addr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, __u64);
	__type(value, struct host_sock);
} host_socks;

static struct host_sock *host_sock(__u64 id)
{
	return bpf_map_lookup_elem(&host_socks, &id);
}

static __u32 sock_write_seq(const struct io *io)
{
	return host_sock(io->sk)->tx_next;
}

static __u32 sock_copied_seq(const struct io *io)
{
	return host_sock(io->sk)->rx_next;
}

static __u32 sock_first_seq(const struct io *io, int sent)
{
	struct host_sock *sock = host_sock(io->sk);

	return sent ? sock->tx_first : sock->rx_first;
}

static int sock_is_fresh(const struct io *io, __u64 n)
{
	struct host_sock *sock = host_sock(io->sk);

	(void)n;
	return sock->fresh && !sock->sent && !sock->received;
}

static void sock_addresses(const struct io *io, struct flow_record *r)
{
	struct host_sock *sock = host_sock(io->sk);

	r->family = sock->family;
	memcpy(r->local_addr, sock->local_addr, 16);
	memcpy(r->remote_addr, sock->remote_addr, 16);
	r->local_port = sock->local_port;
	r->remote_port = sock->remote_port;
}

static void task_comm(char *to)
{
	memset(to, 0, 16);
}

static int task_carries(void)
{
	return 0;
}

static __u64 task_cgroups(void)
{
	return 0;
}

static void sock_unix_path(void *sk, struct flow_record *r)
{
	(void)sk;
	(void)r;
}

#define sock_unix_is_own(io) 0
#define sock_unix_numbers(io, c) ((void)(io), (void)(c))
#define filter_wants(tgid, local, remote) 1

#include "conn.bpf.h"
#include "replay.h"

/* ---- maps --------------------------------------------------------------------------------- */

#define BUCKETS 4096

struct node {
	struct node *next;
	const void *map;
	__u32 key_size;
	_Alignas(8) __u8 key[64];
	_Alignas(8) __u8 value[];
};

static struct node *buckets[BUCKETS];

static __u32 bucket_of(const void *map, __u32 key_size, const void *key)
{
	const __u8 *bytes = key;
	__u64 h = (unsigned long)map;
	__u32 i;

	for (i = 0; i < key_size; i++)
		h = (h ^ bytes[i]) * 0x100000001b3ULL;
	return (h ^ h >> 32) % BUCKETS;
}

static struct node **find(const void *map, __u32 key_size, const void *key)
{
	struct node **at = &buckets[bucket_of(map, key_size, key)];

	while (*at && ((*at)->map != map || memcmp((*at)->key, key, key_size)))
		at = &(*at)->next;
	return at;
}

static struct node *insert(const void *map, __u32 key_size, __u32 value_size, const void *key)
{
	struct node **at = find(map, key_size, key);

	if (*at)
		return *at;
	*at = calloc(1, sizeof(**at) + value_size);
	if (!*at)
		abort();
	(*at)->map = map;
	(*at)->key_size = key_size;
	memcpy((*at)->key, key, key_size);
	return *at;
}

static void *host_lookup(const void *map, int type, __u32 key_size, __u32 value_size,
			 const void *key)
{
	struct node **at;

	if (type == HOST_ARRAY)
		return insert(map, key_size, value_size, key)->value;
	at = find(map, key_size, key);
	return *at ? (*at)->value : NULL;
}

/* Tables here know no limit but that of pipelined requests, which is the connection's. */
static long host_update(const void *map, __u32 most, __u32 key_size, __u32 value_size,
			const void *key, const void *value, __u64 flags)
{
	(void)most;
	if (flags & BPF_NOEXIST && *find(map, key_size, key))
		return -1;
	memcpy(insert(map, key_size, value_size, key)->value, value, value_size);
	return 0;
}

static long host_delete(const void *map, __u32 key_size, const void *key)
{
	struct node **at = find(map, key_size, key), *gone = *at;

	if (!gone)
		return -1;
	*at = gone->next;
	free(gone);
	return 0;
}

static long host_each(const void *map, long (*f)(void *, const void *, void *, void *), void *ctx)
{
	struct node *node, *next;
	__u32 i;

	for (i = 0; i < BUCKETS; i++)
		for (node = buckets[i]; node; node = next) {
			next = node->next;
			if (node->map == map)
				f(NULL, node->key, node->value, ctx);
		}
	return 0;
}

/* ---- ring --------------------------------------------------------------------------------- */

static struct flow_record *ring;
static __u32 ring_head, ring_count, ring_room;

static void *host_reserve(__u64 size)
{
	(void)size;
	if (ring_head == ring_count)
		ring_head = ring_count = 0;
	if (ring_count == ring_room) {
		ring_room = ring_room ? 2 * ring_room : 256;
		ring = realloc(ring, ring_room * sizeof(*ring));
		if (!ring)
			abort();
	}
	return memset(&ring[ring_count++], 0, sizeof(*ring));
}

/* ---- interface ---------------------------------------------------------------------------- */

void replay_reset(void)
{
	__u32 i;

	for (i = 0; i < BUCKETS; i++)
		while (buckets[i]) {
			struct node *gone = buckets[i];

			buckets[i] = gone->next;
			free(gone);
		}
	ring_head = ring_count = 0;
	host_window = WINDOW;
	host_resync = 1;
}

void replay_window(__u32 bytes)
{
	host_window = bytes && bytes < WINDOW ? bytes : WINDOW;
}

int replay_open(const struct replay_conn *conn)
{
	struct host_sock sock = { .fresh = conn->fresh };
	__u64 id = conn->id;

	sock.tx_first = sock.tx_next = conn->tx_seq;
	sock.rx_first = sock.rx_next = conn->rx_seq;
	sock.family = conn->family;
	sock.local_port = conn->local_port;
	sock.remote_port = conn->remote_port;
	memcpy(sock.local_addr, conn->local_addr, 16);
	memcpy(sock.remote_addr, conn->remote_addr, 16);
	return bpf_map_update_elem(&host_socks, &id, &sock, BPF_ANY);
}

/* What can go wrong in an I/O: a counter that goes up, and what that means for its streams. */
static const struct {
	__u8 is_loss;
	__u8 which;
	__u8 outcome;
	__u8 both; /* for both directions */
} watched[] = {
	{ 1, FLOW_LOSS_INVALID, REPLAY_INVALID, 0 },
	{ 1, FLOW_LOSS_GAP, REPLAY_GAP, 0 },
	{ 1, FLOW_LOSS_ORPHAN, REPLAY_ORPHAN, 0 },
	{ 0, FLOW_COUNT_OTHER, REPLAY_OTHER, 1 },
	{ 0, FLOW_COUNT_LEFT, REPLAY_LEFT, 1 },
	{ 0, FLOW_COUNT_ENCRYPTED, REPLAY_ENCRYPTED, 1 },
	{ 0, FLOW_COUNT_COMPRESSED, REPLAY_COMPRESSED, 1 },
	{ 0, FLOW_COUNT_UPGRADED, REPLAY_TUNNEL, 1 },
};
#define WATCHED (sizeof(watched) / sizeof(watched[0]))

struct before {
	__u64 n[WATCHED];
};

static struct before before(void)
{
	struct before was;
	__u32 i;

	for (i = 0; i < WATCHED; i++)
		was.n[i] = watched[i].is_loss ? replay_loss(watched[i].which)
					      : replay_count(watched[i].which);
	return was;
}

static void note(__u8 *to, __u8 outcome)
{
	if (!*to)
		*to = outcome;
}

static void after(struct host_sock *sock, const struct io *io, const struct before *was)
{
	struct before is = before();
	__u32 i;

	for (i = 0; i < WATCHED; i++) {
		if (is.n[i] == was->n[i])
			continue;
		if (watched[i].both || io->request)
			note(&sock->request, watched[i].outcome);
		if (watched[i].both || !io->request)
			note(&sock->response, watched[i].outcome);
	}
}

static struct io *io_of(struct host_sock *sock, __u64 id, __u32 tx, __u32 seq, __u64 at_ns)
{
	struct io *io = io_get();

	if (!sock->sent && !sock->fresh && tx)
		sock->tx_next = seq;
	if (!sock->received && !sock->fresh && !tx)
		sock->rx_next = seq;
	io->sk = io->ino = id;
	io->start_ns = io->end_ns = at_ns;
	io->pid_tgid = 1ULL << 32 | 1;
	io->tx = tx;
	io->early = 0;
	io->is_tcp = 1;
	io->seq = seq;
	return io;
}

static void moved(struct host_sock *sock, __u32 tx, __u32 seq, __u64 len)
{
	__u32 *next = tx ? &sock->tx_next : &sock->rx_next, end = seq + (__u32)len;

	if ((__s32)(end - *next) > 0)
		*next = end;
	if (tx)
		sock->sent = 1;
	else
		sock->received = 1;
}

void replay_bytes(__u64 id, __u32 tx, __u32 seq, __u64 at_ns, const void *data, __u64 len)
{
	struct host_sock *sock = host_sock(id);
	struct before was = before();
	struct io *io;

	if (!sock || !len)
		return;
	io = io_of(sock, id, tx, seq, at_ns);
	io_single(io, (unsigned long)data, len);
	process(io);
	moved(sock, tx, seq, len);
	after(sock, io, &was);
}

void replay_unseen(__u64 id, __u32 tx, __u32 seq, __u64 at_ns, __u64 len)
{
	struct host_sock *sock = host_sock(id);
	struct before was = before();
	struct io *io;

	if (!sock || !len)
		return;
	io = io_of(sock, id, tx, seq, at_ns);
	io->gone = 0;
	io->left = len;
	process_unseen(io);
	moved(sock, tx, seq, len);
	after(sock, io, &was);
}

void replay_end(__u64 id, __u32 how, __u64 at_ns)
{
	struct host_sock *sock = host_sock(id);
	struct conn *c = conn_of(id, id);
	__u64 key = id;

	if (!sock)
		return;
	switch (how) {
	case REPLAY_FIN_SENT:
		if (c && c->role == FLOW_SERVER)
			end_exchanges(c, id, sock->fin_received ? FLOW_END_PEER : FLOW_END_LOCAL,
				      at_ns);
		sock->fin_sent = 1;
		break;
	case REPLAY_FIN_RECEIVED:
		if (c && c->role == FLOW_CLIENT)
			end_exchanges(c, id, sock->fin_sent ? FLOW_END_LOCAL : FLOW_END_PEER,
				      at_ns);
		sock->fin_received = 1;
		break;
	case REPLAY_RESET:
		if (c) {
			c->error = ECONNRESET;
			end_conn(c, id, FLOW_END_RESET, at_ns);
		}
		break;
	case REPLAY_CLOSED:
		if (c && sock->fin_sent) {
			end_conn(c, id, FLOW_END_LOCAL, at_ns);
		} else if (c) {
			/* still under way: nobody knows how its exchanges end */
			struct io *io = io_get();

			io->sk = id;
			c->t.sure = 0;
			streams_end(c, id, FLOW_END_LOCAL, at_ns);
			forget_all(c, io);
		}
		bpf_map_delete_elem(&host_socks, &key);
		bpf_map_delete_elem(&others, &key);
		break;
	}
}

__u32 replay_take(struct flow_record *out, __u32 most)
{
	__u32 n = ring_count - ring_head;

	if (n > most)
		n = most;
	if (n)
		memcpy(out, ring + ring_head, n * sizeof(*out));
	ring_head += n;
	return n;
}

void replay_state(__u64 id, struct replay_state *state)
{
	struct host_sock *sock = host_sock(id);
	struct conn *c = conn_of(id, id);

	memset(state, 0, sizeof(*state));
	if (sock) {
		state->request = sock->request;
		state->response = sock->response;
	}
	if (c) {
		state->in_flight = c->started - c->answered + c->open;
		state->protocol = c->rec.protocol;
		state->role = c->role;
	}
}

__u64 replay_loss(__u32 which)
{
	return *(__u64 *)bpf_map_lookup_elem(&losses, &which);
}

__u64 replay_count(__u32 which)
{
	return *(__u64 *)bpf_map_lookup_elem(&counts, &which);
}
