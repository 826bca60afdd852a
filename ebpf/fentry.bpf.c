/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * fentry.bpf.c - the same as tracer.bpf.c, hooked into the kernel's functions instead of its
 * system calls: what is no socket passes by without a program, and what io_uring and sendfile
 * do is seen like anything else. The kernel has the buffers in its own form then, a struct
 * iov_iter, which has gone on by as much as was moved when a function returns.
 *
 * Sends are taken as the security module is asked, which is before anything is sent, whatever
 * the family; those that may be cut short at the trace point at their end (Linux 6.3). Every
 * program that parses is verified by itself, so there are as few as can be.
 *
 * Unlike those of trace points, these programs can be preempted where the kernel can, and would
 * find another's struct io. They forbid it where they may, with Linux 6.16; on older kernels
 * user space takes them only where the kernel is not preempted (tracer/kernel/hooks.py).
 */
#define IO_READ_IOVECS bpf_probe_read_kernel
#include "hook.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IOVECS_MOST 1024 /* UIO_MAXIOV */

#ifdef __TARGET_ARCH_x86
#define SYSCALL(name) "__x64_sys_" name
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL(name) "__arm64_sys_" name
#endif

#define MSG(msg, field) LOAD(struct msghdr, msg, field)

/* What a function returned: how many arguments lie before that depends on the kernel. */
static __always_inline long result(__u64 *ctx)
{
	__u64 ret = 0;

	bpf_get_func_ret(ctx, &ret);
	return ret;
}

/* An I/O of this thread on a socket, stamped; NULL if that is none of interest. */
static __always_inline struct io *io_begin(void *socket, void *msg, __u8 tx, __u8 early)
{
	struct io *io = io_get();

	if (!io || !sock_of_socket(io, socket))
		return NULL;
	io_stamp(io, tx, early);
	io->msg = (__u64)msg;
	return io;
}

static __always_inline __u64 msg_iovecs(void *msg)
{
	if (bpf_core_field_exists(((struct iov_iter *)0)->__iov))
		return (__u64)MSG(msg, msg_iter.__iov);
	return (__u64)LOAD(struct iov_iter___before_6_4, msg, iov);
}

/*
 * The next `n` bytes of io->msg, or, where it has gone on by as many already, the last ones.
 * Returns 0 if they aren't in user memory, or can't be found there.
 */
static __always_inline int io_message(struct io *io, __u64 n, int gone_on)
{
	void *msg = (void *)io->msg;
	__u64 at = MSG(msg, msg_iter.iov_offset), iovecs, pieces, back = gone_on ? n : 0;
	__u32 type = MSG(msg, msg_iter.iter_type), i;
	struct user_iovec piece;

	if (type == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		io_single(io, (__u64)MSG(msg, msg_iter.ubuf) + at - back, n);
		return 1;
	}
	if (type != bpf_core_enum_value(enum iter_type, ITER_IOVEC))
		return 0;
	iovecs = msg_iovecs(msg);
	pieces = MSG(msg, msg_iter.nr_segs);
	for (i = 0; i < IOVECS_MOST && at < back; i++) {
		back -= at;
		iovecs -= sizeof(piece);
		if (bpf_probe_read_kernel(&piece, sizeof(piece), (void *)iovecs))
			return 0;
		at = piece.len;
		pieces++;
	}
	if (at < back || io_vector(io, iovecs, pieces, n))
		return 0;
	at -= back;
	io->batch[0].base += at;
	io->batch[0].len -= at;
	return 1;
}

/* `n` bytes have moved. */
static __always_inline void moved(struct io *io, long n, int readable)
{
	if (readable && io_message(io, n, 1)) {
		io_place(io, n);
		process(io);
	} else {
		io_unseen(io, n);
		process_unseen(io);
	}
}

/* ---- sends --------------------------------------------------------------------------- */

/* struct socket *sock, struct msghdr *msg, int size */
HOOK("fentry/security_socket_sendmsg", socket_send, __u64 *ctx)
{
	void *msg = (void *)ctx[1];
	__u32 flags = MSG(msg, msg_flags);
	__u64 n = MSG(msg, msg_iter.count);
	struct io *io;

	if (flags & MSG_OOB)
		return;
	io = io_begin((void *)ctx[0], msg, 1, 1);
	if (!io)
		return;
	if (flags & MSG_FASTOPEN) { /* connects as well: the stream has no numbers yet */
		send_defer(io);
	} else if (!n) {
		return;
	} else if (!sock_can_send(io)) {
		send_dead(io);
	} else if (sock_may_cut(io, n) || !io_message(io, n, 0)) {
		send_defer(io);
	} else {
		io_place(io, 0);
		process(io);
	}
}

/* struct sock *sk, int ret, int flags */
HOOK("raw_tp/sock_send_length", socket_sent, __u64 *ctx)
{
	void *sk = (void *)ctx[0];
	int ret = ctx[1];
	struct io *io;

	if (!cfg_ready)
		return;
	io = send_resume();
	if (!io || io->sk != (__u64)sk || ret <= 0)
		return;
	if (sock_of_socket(io, LOAD(struct sock, sk, sk_socket)))
		moved(io, ret, 1);
}

/* ---- receives ------------------------------------------------------------------------ */

static __always_inline void received(void *socket, void *msg, __u64 len, __u32 flags, int ret)
{
	struct io *io;

	if ((ret == -EAGAIN && len != 1) || flags & RECEIVED_ELSEWHERE)
		return;
	io = io_begin(socket, msg, 0, 0);
	if (!io)
		return;
	if (ret == -EAGAIN) {
		link_looked(io);
	} else if (ret > 0) { /* with MSG_TRUNC nothing was written to the buffer */
		moved(io, ret, !(flags & MSG_TRUNC && io->is_tcp));
	} else {
		io->ret = ret;
		receive_none(io);
	}
}

/* struct sock *sk, struct msghdr *msg, size_t len, int flags, ... (since Linux 5.19) */
HOOK("fexit/tcp_recvmsg", tcp_received, __u64 *ctx)
{
	received(LOAD(struct sock, (void *)ctx[0], sk_socket), (void *)ctx[1], ctx[2], ctx[3],
		 result(ctx));
}

/* struct socket *sock, struct msghdr *msg, size_t size, int flags */
HOOK("fexit/unix_stream_recvmsg", unix_received, __u64 *ctx)
{
	received((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3], result(ctx));
}

static __always_inline void spliced(void *socket, long ret)
{
	struct io *io = ret > 0 ? io_begin(socket, NULL, 0, 0) : NULL;

	if (io)
		moved(io, ret, 0);
}

/* struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe, size_t len, unsigned flags */
HOOK("fexit/tcp_splice_read", tcp_spliced, __u64 *ctx)
{
	spliced((void *)ctx[0], result(ctx));
}

HOOK("fexit/unix_stream_splice_read", unix_spliced, __u64 *ctx)
{
	spliced((void *)ctx[0], result(ctx));
}

/* ---- connections ----------------------------------------------------------------------- */

static __always_inline void connecting(void *socket)
{
	struct io *io = cfg_link ? io_begin(socket, NULL, 1, 0) : NULL;

	if (io)
		link_connect(io);
}

HOOK("fentry/inet_stream_connect", inet_connect, __u64 *ctx)
{
	connecting((void *)ctx[0]);
}

HOOK("fentry/unix_stream_connect", unix_connect, __u64 *ctx)
{
	connecting((void *)ctx[0]);
}

static __always_inline void accepted_socket(void *socket)
{
	struct thread *thread = accepting();
	struct io *io = io_get();

	if (thread && io && sock_of_socket(io, socket))
		accepted(thread, io);
}

/* struct socket *sock, struct socket *newsock, which has a sock if that worked */
HOOK("fexit/inet_accept", inet_accepted, __u64 *ctx)
{
	accepted_socket((void *)ctx[1]);
}

HOOK("fexit/unix_accept", unix_accepted, __u64 *ctx)
{
	accepted_socket((void *)ctx[1]);
}

/* The last reference is gone. */
HOOK("fentry/unix_release", unix_released, __u64 *ctx)
{
	struct io *io = io_get();

	if (io && sock_of_socket(io, (void *)ctx[0]))
		unix_closed(io->sk, io->ino);
}

/* struct socket *sock, int mode: as shutdown(2) has it */
HOOK("fentry/unix_shutdown", unix_shutting, __u64 *ctx)
{
	struct io *io = io_get();

	if (io && (__u32)ctx[1] && sock_of_socket(io, (void *)ctx[0]))
		unix_shut_down(io->sk, io->ino);
}

/* ---- system calls that tell for whom something runs --------------------------------------- */

HOOK("fentry/" SYSCALL("futex"), futexes, __u64 *ctx)
{
	if (cfg_ready)
		futex((const struct pt_regs *)ctx[0]);
}

HOOK("fentry/" SYSCALL("preadv"), marks_of_node, __u64 *ctx)
{
	node_marks((const struct pt_regs *)ctx[0]);
}

HOOK("fentry/" SYSCALL("msync"), marks_of_jvm, __u64 *ctx)
{
	jvm_marks((const struct pt_regs *)ctx[0]);
}

#ifdef __TARGET_ARCH_x86
HOOK("fexit/" SYSCALL("epoll_wait"), epoll_waited, __u64 *ctx)
{
	(void)ctx;
	turn();
}
#endif

HOOK("fexit/" SYSCALL("epoll_pwait"), epoll_pwaited, __u64 *ctx)
{
	(void)ctx;
	turn();
}
