/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * tracer.bpf.c - the hooks. Sends are taken at their entry, receives at their exit, with
 * the arguments still in the task's saved registers. A send that may be cut short by a full
 * send buffer is noted at its entry and taken at its exit, when it is known how much went.
 *
 * All system calls pass two programs, at the raw tracepoints sys_enter and sys_exit, which
 * look away from all but a few: a tracepoint of a call of its own costs more than that (perf
 * has to copy its arguments first), and is found by way of tracefs, which is root's alone.
 *
 * Sees what applications ask for and not what drivers do. sendfile and splice are seen by
 * number only; io_uring not at all, but the sequence numbers tell afterwards that bytes went by.
 */
#include "hook.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MMSGS 16 /* messages of one sendmmsg or recvmmsg that are looked at */

/*
 * The hooks find the socket and the buffers, and leave the rest to `work`, by way of `enum
 * io_op`. It so is verified once instead of twice. A tail call costs a jump.
 *
 * From Linux 7.0 on (commit f7d327654b88) programs of trace points can be preempted. There
 * (PREEMPTED) they forbid it, which allows no tail call; and one program that two others go on
 * in may not be entered anew while it stands still: its stack is one for each CPU.
 */
#ifdef PREEMPTED
#define SYSCALL_HOOK HOOK
#else
#define SYSCALL_HOOK(section, name, argument) PROGRAM(0, section, name, argument)

int work(void *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} works SEC(".maps") = { .values = { [0] = (void *)&work } };
#endif

/* An I/O of this thread on a descriptor, stamped; NULL if that is no socket of interest. */
static __always_inline struct io *io_begin(__u32 fd, __u8 tx, __u8 early)
{
	struct io *io = io_get();

	if (!io || !sock_of_fd(io, fd))
		return NULL;
	io_stamp(io, tx, early);
	return io;
}

static __always_inline int read_msghdr(struct user_msghdr *msg, __u64 at)
{
	return bpf_probe_read_user(msg, sizeof(*msg), (void *)at);
}

/* ---- sends ------------------------------------------------------------------------- */

static __always_inline enum io_op send_single(__u32 fd, __u64 buf, __u64 len)
{
	struct io *io = io_begin(fd, 1, 1);

	if (!io || !len)
		return IO_DONE;
	if (!sock_can_send(io))
		return IO_DEAD;
	if (sock_may_cut(io, len)) {
		send_defer(io);
		return IO_DONE;
	}
	io_single(io, buf, len);
	io_place(io, 0);
	return IO_BYTES;
}

static __always_inline enum io_op send_vector(__u32 fd, __u64 iov, __u64 iovlen)
{
	struct io *io = io_begin(fd, 1, 1);
	int many;

	if (!io)
		return IO_DONE;
	if (!sock_can_send(io))
		return IO_DEAD;
	many = io_vector(io, iov, iovlen, 0);
	if (many < 0)
		return IO_DONE;
	if (many || sock_may_cut(io, io->left)) {
		send_defer(io);
		return IO_DONE;
	}
	if (!io->left)
		return IO_DONE;
	io_place(io, 0);
	return IO_BYTES;
}

/* A send that connects as well: the stream has no numbers before it returns. */
static __always_inline enum io_op send_connecting(__u32 fd)
{
	struct io *io = io_begin(fd, 1, 1);

	if (io)
		send_defer(io);
	return IO_DONE;
}

static __always_inline enum io_op send_to(const struct pt_regs *regs)
{
	__u64 flags = ARG4(regs);

	if (flags & MSG_OOB)
		return IO_DONE;
	if (flags & MSG_FASTOPEN)
		return send_connecting(ARG1(regs));
	return send_single(ARG1(regs), ARG2(regs), ARG3(regs));
}

static __always_inline enum io_op send_message(const struct pt_regs *regs)
{
	__u64 flags = ARG3(regs);
	struct user_msghdr msg;

	if (flags & MSG_FASTOPEN)
		return send_connecting(ARG1(regs));
	if (flags & MSG_OOB || read_msghdr(&msg, ARG2(regs)))
		return IO_DONE;
	return send_vector(ARG1(regs), msg.iov, msg.iovlen);
}

/* ---- exits of sends: only those noted at their entry ---------------------------------- */

/* The pending send of this thread, if it is the one that returns. */
static __always_inline struct io *send_returns(const struct pt_regs *regs)
{
	struct io *io = send_resume();
	__u64 sk;

	if (!io)
		return NULL;
	sk = io->sk;
	return sock_of_fd(io, ARG1(regs)) && io->sk == sk ? io : NULL;
}

static __always_inline enum io_op sent_single(const struct pt_regs *regs, long ret)
{
	struct io *io = send_returns(regs);

	if (!io || ret <= 0)
		return IO_DONE;
	io_single(io, ARG2(regs), ret);
	io_place(io, ret);
	return IO_BYTES;
}

static __always_inline enum io_op sent_vector(const struct pt_regs *regs, long ret, int msghdr)
{
	struct io *io = send_returns(regs);
	__u64 iov, iovlen;

	if (!io || ret <= 0)
		return IO_DONE;
	iov = ARG2(regs);
	iovlen = ARG3(regs);
	if (msghdr) {
		struct user_msghdr msg;

		if (read_msghdr(&msg, iov))
			return IO_DONE;
		iov = msg.iov;
		iovlen = msg.iovlen;
	}
	if (io_vector(io, iov, iovlen, ret))
		return IO_DONE;
	io_place(io, ret);
	return IO_BYTES;
}

/* ---- sends whose bytes never pass through user memory ------------------------------- */

static __always_inline enum io_op unseen(struct io *io, long ret)
{
	io_unseen(io, ret);
	return IO_UNSEEN;
}

static __always_inline enum io_op sent_file(const struct pt_regs *regs, long ret)
{
	struct io *io;

	if (ret <= 0)
		return IO_DONE;
	io = io_begin(ARG1(regs), 1, 0);
	return io ? unseen(io, ret) : IO_DONE;
}

static __always_inline enum io_op spliced(const struct pt_regs *regs, long ret)
{
	struct io *io;

	if (ret <= 0)
		return IO_DONE;
	/* one end is a pipe, so at most one is a socket */
	io = io_begin(ARG1(regs), 0, 0);
	if (!io)
		io = io_begin(ARG3(regs), 1, 0);
	return io ? unseen(io, ret) : IO_DONE;
}

/* ---- receives ------------------------------------------------------------------------ */

static __always_inline enum io_op received_single(const struct pt_regs *regs, long ret, __u64 flags)
{
	struct io *io;

	if ((ret == -EAGAIN && ARG3(regs) != 1) || flags & RECEIVED_ELSEWHERE)
		return IO_DONE;
	io = io_begin(ARG1(regs), 0, 0);
	if (!io)
		return IO_DONE;
	if (ret == -EAGAIN)
		return IO_LOOKED;
	if (ret <= 0) {
		io->ret = ret;
		return IO_NONE;
	}
	if (flags & MSG_TRUNC && io->is_tcp) /* discarded: nothing was written to the buffer */
		return unseen(io, ret);
	io_single(io, ARG2(regs), ret);
	io_place(io, ret);
	return IO_BYTES;
}

static __always_inline enum io_op received_vector(long ret, __u32 fd, __u64 iov, __u64 iovlen)
{
	struct io *io = io_begin(fd, 0, 0);

	if (!io)
		return IO_DONE;
	if (ret <= 0) {
		io->ret = ret;
		return IO_NONE;
	}
	if (io_vector(io, iov, iovlen, ret))
		return IO_DONE;
	io_place(io, ret);
	return IO_BYTES;
}

static __always_inline enum io_op received_message(const struct pt_regs *regs, long ret)
{
	struct user_msghdr msg;

	if (ret == -EAGAIN || ARG3(regs) & RECEIVED_ELSEWHERE || read_msghdr(&msg, ARG2(regs)))
		return IO_DONE;
	return received_vector(ret, ARG1(regs), msg.iov, msg.iovlen);
}

/* ---- several messages in one call ------------------------------------------------------ */

static __always_inline enum io_op many_of(struct io *io, __u64 vector, long count)
{
	io->vector = vector;
	io->ret = count;
	return IO_MANY;
}

static __always_inline enum io_op send_many(const struct pt_regs *regs)
{
	struct io *io = io_begin(ARG1(regs), 1, 0);

	return io && sock_can_send(io) ? many_of(io, ARG2(regs), ARG3(regs)) : IO_DONE;
}

static __always_inline enum io_op received_many(const struct pt_regs *regs, long ret)
{
	struct io *io;

	if (ret <= 0 || ARG4(regs) & RECEIVED_ELSEWHERE)
		return IO_DONE;
	io = io_begin(ARG1(regs), 0, 0);
	return io ? many_of(io, ARG2(regs), ret) : IO_DONE;
}

static __always_inline enum io_op connecting(const struct pt_regs *regs)
{
	struct io *io = cfg_link ? io_begin(ARG1(regs), 1, 0) : NULL;

	return io ? IO_CONNECT : IO_DONE;
}

static __always_inline void accepted_fd(long fd)
{
	struct thread *thread = accepting();
	struct io *io = io_get();

	if (thread && io && fd >= 0 && sock_of_fd(io, fd))
		accepted(thread, io);
}

/* ---- the hooks ------------------------------------------------------------------------- */

static __always_inline enum io_op entered(const struct pt_regs *regs, long nr)
{
	switch (nr) {
	case NR_WRITE:
		return send_single(ARG1(regs), ARG2(regs), ARG3(regs));
	case NR_SENDTO:
		return send_to(regs);
	case NR_WRITEV:
		return send_vector(ARG1(regs), ARG2(regs), ARG3(regs));
	case NR_SENDMSG:
		return send_message(regs);
	case NR_SENDMMSG:
		return send_many(regs);
	case NR_CONNECT:
		return connecting(regs);
	case NR_CLOSE:
		closing(regs);
		break;
	case NR_SHUTDOWN:
		shutting_down(regs);
		break;
	case NR_FUTEX:
		futex(regs);
		break;
	case NR_PREADV:
		node_marks(regs);
		break;
	case NR_MSYNC:
		jvm_marks(regs);
		break;
	}
	return IO_DONE;
}

static __always_inline enum io_op left(const struct pt_regs *regs, long ret)
{
	switch (SYSCALL_NR(regs)) {
	case NR_READ:
		return received_single(regs, ret, 0);
	case NR_RECVFROM:
		return received_single(regs, ret, ARG4(regs));
	case NR_READV:
		if (ret == -EAGAIN)
			break;
		return received_vector(ret, ARG1(regs), ARG2(regs), ARG3(regs));
	case NR_RECVMSG:
		return received_message(regs, ret);
	case NR_RECVMMSG:
		return received_many(regs, ret);
	case NR_WRITE:
	case NR_SENDTO:
		return sent_single(regs, ret);
	case NR_WRITEV:
		return sent_vector(regs, ret, 0);
	case NR_SENDMSG:
		return sent_vector(regs, ret, 1);
	case NR_SENDFILE:
		return sent_file(regs, ret);
	case NR_SPLICE:
		return spliced(regs, ret);
	case NR_EPOLL_WAIT:
	case NR_EPOLL_PWAIT:
		turn();
		break;
	case NR_ACCEPT:
	case NR_ACCEPT4:
		accepted_fd(ret);
		break;
	}
	return IO_DONE;
}

/* ---- the work ------------------------------------------------------------------------- */

/* How many bytes came, where several messages were received. */
GLOBAL_IO(many_bytes, ())
{
	__u32 i, total = 0;
	__u64 at;

	at = io->vector;
	for (i = 0; i < MMSGS && i < io->ret; i++) {
		if (bpf_probe_read_user(&io->message, sizeof(io->message), (void *)at))
			break;
		total += (__u32)io->message.len;
		at += sizeof(io->message);
	}
	return total;
}

/* Take the next message of a vector up: io->left bytes. Returns 0 where that fails. */
GLOBAL_IO(many_next, ())
{
	struct user_mmsghdr *msg;
	long len;

	msg = &io->message;
	if (bpf_probe_read_user(msg, sizeof(*msg), (void *)io->vector))
		return 0;
	io->vector += sizeof(*msg);
	io->left = 0;
	len = io->tx ? 0 : (__u32)msg->len;
	if (!io->tx && !len)
		return 1;
	return !io_vector(io, msg->hdr.iov, msg->hdr.iovlen, len);
}

/*
 * Each message of a vector in turn. A receive knows the lengths; a send is taken to go out
 * whole, and what is sent again later is recognised by its place in the stream.
 */
static __always_inline void many(struct io *io)
{
	__u32 seq = 0, i;

	if (io->is_tcp)
		seq = io->tx ? sock_write_seq(io) : sock_copied_seq(io) - (__u32)many_bytes(io);
	for (i = 0; i < MMSGS && i < io->ret && many_next(io); i++) {
		io->seq = seq;
		seq += (__u32)io->left;
		if (io->left)
			process(io);
	}
}

static __always_inline int work_on(struct io *io)
{
	switch (io->op) {
	case IO_BYTES:
		return process(io);
	case IO_UNSEEN:
		return process_unseen(io);
	case IO_NONE:
		receive_none(io);
		return 0;
	case IO_DEAD:
		send_dead(io);
		return 0;
	case IO_MANY:
		many(io);
		return 0;
	case IO_CONNECT:
		return link_connect(io);
	case IO_LOOKED:
		return link_looked(io);
	}
	return 0;
}

#ifndef PREEMPTED
SEC("raw_tp")
int work(void *ctx __attribute__((unused)))
{
	struct io *io = io_get();

	return io ? work_on(io) : 0;
}
#endif

/* ---- the hooks ------------------------------------------------------------------------- */

static __always_inline void leave_to_work(void *ctx __attribute__((unused)), enum io_op op)
{
	struct io *io = op ? io_get() : NULL;

	if (!io)
		return;
	io->op = op;
#ifdef PREEMPTED
	work_on(io);
#else
	bpf_tail_call(ctx, &works, 0);
#endif
}

/* Raw arguments: struct pt_regs *regs, long id. */
SYSCALL_HOOK("raw_tp/sys_enter", sys_enter, struct bpf_raw_tracepoint_args *ctx)
{
	if (cfg_ready)
		leave_to_work(ctx, entered((const struct pt_regs *)ctx->args[0], ctx->args[1]));
}

/* Raw arguments: struct pt_regs *regs, long ret. */
SYSCALL_HOOK("raw_tp/sys_exit", sys_exit, struct bpf_raw_tracepoint_args *ctx)
{
	if (cfg_ready)
		leave_to_work(ctx, left((const struct pt_regs *)ctx->args[0], ctx->args[1]));
}
