/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * sock.bpf.h - from a file descriptor to a stream socket, and what the socket says of
 * itself: place in the stream, addresses, whether a send may be cut short.
 */
#ifndef WIRESPAN_SOCK_H
#define WIRESPAN_SOCK_H

#include "io.bpf.h"

/*
 * Is this process known to be filtered out? Others are asked about when they matter, which is
 * also where the hint is set.
 */
static __always_inline int unwanted(void *task)
{
	__u32 tgid = LOAD(struct task_struct, task, tgid), hint = unwanted_hints[tgid & 1023];
	__u8 *verdict;

	if (!hint || hint == tgid)
		return hint;
	verdict = bpf_map_lookup_elem(&verdicts, &tgid); /* the hint is another's */
	return verdict && !*verdict;
}

/* Of its system calls nothing is looked at. */
static __always_inline int task_is_32_bit(void *task)
{
	return IS_32_BIT(task);
}

/* The name of the thread. bpf_get_current_comm() takes 0.1 us, for it goes byte by byte. */
static __always_inline void task_comm(char *to)
{
	load_pair(to,
		  (char *)bpf_get_current_task() + bpf_core_field_offset(struct task_struct, comm));
}

/* Is this thread one of a ForkJoinPool's, by its name? */
static __always_inline int task_carries(void)
{
	static const char pool[] = "ForkJoinPool-";
	char comm[16];

	return !bpf_get_current_comm(comm, sizeof(comm)) &&
	       !__builtin_memcmp(comm, pool, sizeof(pool) - 1);
}

/* A number that stays the same while the thread's cgroups do; 0: not known. */
static __always_inline __u64 task_cgroups(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return bpf_core_field_exists(task->cgroups) ? (__u64)LOAD(struct task_struct, task, cgroups)
						    : 0;
}

/* Is this a TCP or Unix stream socket? Sets io->sk and is_tcp then; returns 0 otherwise. */
static __always_inline int sock_is_stream(struct io *io, void *sk)
{
	__u16 family;

	if (!sk || LOAD(struct sock, sk, sk_type) != SOCK_STREAM)
		return 0;
	family = LOAD(struct sock, sk, __sk_common.skc_family);
	if (family == AF_INET || family == AF_INET6) {
		if (LOAD(struct sock, sk, sk_protocol) != IPPROTO_TCP)
			return 0;
		io->is_tcp = 1;
	} else if (family == AF_UNIX) {
		io->is_tcp = 0;
	} else {
		return 0;
	}
	io->sk = (__u64)sk;
	return 1;
}

/*
 * The sock behind a descriptor of the current task, if it is a TCP or Unix stream socket;
 * sets io->sk, ino and is_tcp. Returns 0 otherwise.
 */
static __always_inline int sock_of_fd(struct io *io, __u32 fd)
{
	void *task = (void *)bpf_get_current_task();
	struct files_struct *files = LOAD(struct task_struct, task, files);
	struct fdtable *fdt = LOAD(struct files_struct, files, fdt);
	struct file **slot = LOAD(struct fdtable, fdt, fd);
	struct socket *socket;
	struct inode *inode;
	struct file *file;

	if (!cfg_ready || (cfg_filters & FILTER_PROCESSES && unwanted(task)) ||
	    task_is_32_bit(task))
		return 0;
	if (fd >= LOAD(struct fdtable, fdt, max_fds))
		return 0;
	file = load_pointer(slot + fd);
	if (!file)
		return 0;
	inode = LOAD(struct file, file, f_inode);
	if ((LOAD(struct inode, inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = LOAD(struct file, file, private_data);
	if (!sock_is_stream(io, LOAD(struct socket, socket, sk)))
		return 0;
	io->file = (__u64)file;
	io->ino = LOAD(struct inode, inode, i_ino);
	return 1;
}

/* As sock_of_fd(), of a struct socket. */
static __always_inline int sock_of_socket(struct io *io, void *socket)
{
	if (!cfg_ready ||
	    (cfg_filters & FILTER_PROCESSES && unwanted((void *)bpf_get_current_task())))
		return 0;
	if (!socket || !sock_is_stream(io, LOAD(struct socket, socket, sk)))
		return 0;
	io->ino = LOAD(struct socket_alloc, socket, vfs_inode.i_ino);
	return 1;
}

/* Is the socket in a state in which a send can succeed? */
static __always_inline int sock_can_send(const struct io *io)
{
	void *sk = (void *)io->sk;
	__u8 state = LOAD(struct sock, sk, __sk_common.skc_state);

	if (LOAD(struct sock, sk, sk_shutdown) & SEND_SHUTDOWN)
		return 0;
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_SYN_SENT ||
	       state == TCP_SYN_RECV;
}

/*
 * May a send of `len` bytes be accepted in part only, or take long? If it surely fits the
 * send buffer, it can be parsed as it enters; if not, only its exit knows how much went.
 * sk_stream_memory_free() lets a send go on while less than sk_sndbuf is queued; 1/8 and a
 * page stand for the overhead of socket buffers.
 */
static __always_inline int sock_may_cut(const struct io *io, __u64 len)
{
	void *sk = (void *)io->sk;
	__s64 room = LOAD(struct sock, sk, sk_sndbuf);

	if (io->is_tcp) {
		__u32 lowat = LOAD(struct tcp_sock, sk, notsent_lowat);

		if (lowat && lowat != ~0U)
			return 1;
		room -= LOAD(struct sock, sk, sk_wmem_queued);
		len += len / 8 + 4096;
	} else {
		room -= LOAD(struct sock, sk, sk_wmem_alloc.refs.counter);
		len += len + 8192;
	}
	return room < 0 || len > (__u64)room;
}

/* Sequence number of the next byte to be sent. */
static __always_inline __u32 sock_write_seq(const struct io *io)
{
	return LOAD(struct tcp_sock, (void *)io->sk, write_seq);
}

/*
 * Sequence number of the next byte the application will receive. The FIN has a number as
 * well, and the receive that reaches it counts it in: tcp_recvmsg_locked(), found_fin_ok.
 */
static __always_inline __u32 sock_copied_seq(const struct io *io)
{
	void *sk = (void *)io->sk;
	__u32 seq = LOAD(struct tcp_sock, sk, copied_seq);

	if (LOAD(struct sock, sk, __sk_common.skc_flags) & (1UL << SOCK_DONE) &&
	    seq == LOAD(struct tcp_sock, sk, rcv_nxt))
		seq--;
	return seq;
}

/*
 * Sequence number of the first byte that was ever sent, or received, on this connection: the
 * same number at both ends, whenever it is asked for. A SYN that was acknowledged counts as a
 * byte at the end that sent it first.
 */
static __always_inline __u32 sock_first_seq(const struct io *io, int sent)
{
	void *sk = (void *)io->sk;

	if (sent)
		return LOAD(struct tcp_sock, sk, snd_una) -
		       (__u32)LOAD(struct tcp_sock, sk, bytes_acked);
	return LOAD(struct tcp_sock, sk, rcv_nxt) -
	       (__u32)LOAD(struct tcp_sock, sk, bytes_received);
}

/* Are the n bytes of this I/O the first ones of their connection, in both directions? */
static __always_inline int sock_is_fresh(const struct io *io, __u64 n)
{
	void *sk = (void *)io->sk;
	__u64 received, unread;

	if (!io->is_tcp)
		return 0;
	received = LOAD(struct tcp_sock, sk, bytes_received);
	if (LOAD(struct tcp_sock, sk, data_segs_out))
		return 0;
	if (io->tx)
		return received == 0;
	unread = LOAD(struct tcp_sock, sk, rcv_nxt) - sock_copied_seq(io);
	/* a FIN that came along counts as one in rcv_nxt */
	return received <= n + unread && received + 1 >= n + unread;
}

static __always_inline void sock_addresses(const struct io *io, struct flow_record *r)
{
	void *sk = (void *)io->sk;

	r->family = LOAD(struct sock, sk, __sk_common.skc_family);
	if (r->family == AF_INET6) {
		bpf_core_read(r->local_addr, 16,
			      &((struct sock *)sk)->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(r->remote_addr, 16, &((struct sock *)sk)->__sk_common.skc_v6_daddr);
	} else if (r->family == AF_INET) {
		*(__u32 *)r->local_addr = LOAD(struct sock, sk, __sk_common.skc_rcv_saddr);
		*(__u32 *)r->remote_addr = LOAD(struct sock, sk, __sk_common.skc_daddr);
	} else {
		return;
	}
	r->local_port = LOAD(struct sock, sk, __sk_common.skc_num);
	r->remote_port = __builtin_bswap16(LOAD(struct sock, sk, __sk_common.skc_dport));
	r->netns = LOAD(struct net, LOAD(struct sock, sk, __sk_common.skc_net.net), ns.inum);
}

/*
 * Unix sockets have no sequence numbers. What both ends know alike: the inode of the end
 * that connected, and how many bytes went since. The accepting end carries its listener's
 * address, the connecting one seldom has any. Where that fails the ids are this end's own.
 */
static __always_inline void sock_unix_numbers(const struct io *io, struct conn *c)
{
	void *sk = (void *)io->sk, *peer = LOAD(struct unix_sock, sk, peer);
	void *own = LOAD(struct unix_sock, sk, addr), *theirs = NULL;
	__u32 base = (__u32)io->ino;

	if (peer)
		theirs = LOAD(struct unix_sock, peer, addr);
	if (own && !theirs && peer) {
		struct socket *socket = LOAD(struct sock, peer, sk_socket);
		struct file *file = socket ? LOAD(struct socket, socket, file) : NULL;

		if (file)
			base = (__u32)LOAD(struct inode, LOAD(struct file, file, f_inode), i_ino);
		else
			c->rec.flags |= FLOW_FLAG_IDS_PRIVATE;
	} else if (own || !theirs) {
		c->rec.flags |= FLOW_FLAG_IDS_PRIVATE;
	}
	/* the connecting end's sends, and the other end's receives, count from its inode */
	c->tx_seq = own ? ~base : base;
	c->rx_seq = own ? base : ~base;
}

/* Is the other end of a Unix socket this tracer: `wirespan status` and `tail`? */
static __always_inline int sock_unix_is_own(const struct io *io)
{
	void *pid = LOAD(struct sock, (void *)io->sk, sk_peer_pid);

	return pid && (__u32)LOAD(struct pid, pid, numbers[0].nr) == cfg_self_tgid;
}

/* Append the path that the accepting end is bound to; an abstract one begins with NUL. */
static __always_inline void sock_unix_path(void *sk, struct flow_record *r)
{
	void *addr = LOAD(struct unix_sock, sk, addr), *peer;
	__u32 at;
	int n;

	if (!addr) {
		peer = LOAD(struct unix_sock, sk, peer);
		addr = peer ? LOAD(struct unix_sock, peer, addr) : NULL;
	}
	if (!addr)
		return;
	n = LOAD(struct unix_address, addr, len) - 2;
	at = r->text_len; /* last: the verifier of 6.1 forgets the bounds of what is spilled */
	if (n <= 0 || n > 108 || at > H1_METHOD_OFF - 128)
		return;
	if (bpf_probe_read_kernel(&r->text[at], n & 127,
				  (char *)addr + bpf_core_field_offset(struct unix_address, name) +
					  2))
		return;
	r->fields[FLOW_TEXT_UNIX_PATH].off = at;
	r->fields[FLOW_TEXT_UNIX_PATH].len = n;
	r->text_len = at + n;
}

#endif
