/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * tracer.bpf.c - the hooks. Sends are taken at their entry, receives at their exit, with
 * the arguments still in the task's saved registers. A send that may be cut short by a full
 * send buffer is noted at its entry and taken at its exit, when it is known how much went.
 *
 * Works from the tracepoints of the system calls, so it sees what applications ask for and
 * not what drivers do. sendfile and splice are seen by number only; io_uring not at all,
 * but the sequence numbers tell afterwards that bytes went by.
 */
#include "conn.bpf.h"
#include "life.bpf.h"
#include "runtime.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MMSGS 16 /* messages of one sendmmsg or recvmmsg that are looked at */

static __always_inline struct pt_regs *task_regs(void)
{
	return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
}

/*
 * The hooks are small: they find the socket and the buffers and leave the rest to `work`,
 * which so is verified once instead of once a hook. A tail call costs a jump.
 */
int work(void *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} works SEC(".maps") = { .values = { [0] = (void *)&work } };

static __always_inline int leave_to_work(void *ctx, struct io *io, __u32 op)
{
	io->op = op;
	bpf_tail_call(ctx, &works, 0);
	return 0;
}

/* An I/O of this thread on a descriptor, stamped; NULL if that is no socket of interest. */
static __always_inline struct io *io_begin(__u32 fd, __u8 tx, __u8 early)
{
	struct io *io = io_get();

	if (!io || !sock_of_fd(io, fd))
		return NULL;
	io->start_ns = io->end_ns = bpf_ktime_get_ns();
	io->pid_tgid = bpf_get_current_pid_tgid();
	io->tx = tx;
	io->early = early;
	return io;
}

/* `done` bytes have moved already: where in the stream did they begin? */
static __always_inline void io_place(struct io *io, long done)
{
	if (!io->is_tcp)
		io->seq = 0;
	else
		io->seq = (io->tx ? sock_write_seq(io) : sock_copied_seq(io)) - (__u32)done;
}

/* ---- sends ------------------------------------------------------------------------- */

static __always_inline int send_single(void *ctx, __u32 fd, __u64 buf, __u64 len)
{
	struct io *io = io_begin(fd, 1, 1);

	if (!io || !len)
		return 0;
	if (!sock_can_send(io))
		return leave_to_work(ctx, io, IO_DEAD);
	if (sock_may_cut(io, len)) {
		send_defer(io);
		return 0;
	}
	io_single(io, buf, len);
	io_place(io, 0);
	return leave_to_work(ctx, io, IO_BYTES);
}

static __always_inline int send_vector(void *ctx, __u32 fd, __u64 iov, __u64 iovlen)
{
	struct io *io = io_begin(fd, 1, 1);
	int many;

	if (!io)
		return 0;
	if (!sock_can_send(io))
		return leave_to_work(ctx, io, IO_DEAD);
	many = io_vector(io, iov, iovlen, 0);
	if (many < 0)
		return 0;
	if (many || sock_may_cut(io, io->left)) {
		send_defer(io);
		return 0;
	}
	if (!io->left)
		return 0;
	io_place(io, 0);
	return leave_to_work(ctx, io, IO_BYTES);
}

static __always_inline int read_msghdr(struct user_msghdr *msg, __u64 at)
{
	return bpf_probe_read_user(msg, sizeof(*msg), (void *)at);
}

/* A send that connects as well: the stream has no numbers before it returns. */
static __always_inline int send_connecting(__u32 fd)
{
	struct io *io = io_begin(fd, 1, 1);

	if (io)
		send_defer(io);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_write")
int enter_write(struct trace_event_raw_sys_enter *ctx)
{
	return send_single(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_enter_sendto")
int enter_sendto(struct trace_event_raw_sys_enter *ctx)
{
	if (ctx->args[3] & MSG_OOB)
		return 0;
	if (ctx->args[3] & MSG_FASTOPEN)
		return send_connecting(ctx->args[0]);
	return send_single(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_enter_writev")
int enter_writev(struct trace_event_raw_sys_enter *ctx)
{
	return send_vector(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int enter_sendmsg(struct trace_event_raw_sys_enter *ctx)
{
	struct user_msghdr msg;

	if (ctx->args[2] & MSG_FASTOPEN)
		return send_connecting(ctx->args[0]);
	if (ctx->args[2] & MSG_OOB || read_msghdr(&msg, ctx->args[1]))
		return 0;
	return send_vector(ctx, ctx->args[0], msg.iov, msg.iovlen);
}

/* ---- exits of sends: only those noted at their entry ---------------------------------- */

/* The pending send of this thread, if any: its io with times and socket set. */
static __always_inline struct io *send_resume(void)
{
	__u64 key = bpf_get_current_pid_tgid(), sk;
	struct pending_send *pending;
	struct conn *c;
	struct io *io;

	if (!pending_hints[key & 1023])
		return NULL;
	pending = bpf_map_lookup_elem(&pending_sends, &key);
	if (!pending)
		return NULL;
	io = io_get();
	if (!io)
		return NULL;
	io->start_ns = pending->start_ns;
	sk = pending->sk;
	bpf_map_delete_elem(&pending_sends, &key);
	__sync_fetch_and_add(&pending_hints[key & 1023], -1);
	c = bpf_map_lookup_elem(&conns, &sk);
	if (c && c->deferred)
		c->deferred--;
	if (!sock_of_fd(io, LOAD(struct pt_regs, task_regs(), di)) || io->sk != sk)
		return NULL;
	io->end_ns = bpf_ktime_get_ns();
	io->pid_tgid = key;
	io->tx = 1;
	io->early = 0;
	return io;
}

static __always_inline int exit_send_single(struct trace_event_raw_sys_exit *ctx)
{
	struct io *io = send_resume();
	long ret = ctx->ret;

	if (!io || ret <= 0)
		return 0;
	io_single(io, task_regs()->si, ret);
	io_place(io, ret);
	return leave_to_work(ctx, io, IO_BYTES);
}

static __always_inline int exit_send_vector(struct trace_event_raw_sys_exit *ctx, int msghdr)
{
	struct io *io = send_resume();
	long ret = ctx->ret;
	struct pt_regs *regs;
	__u64 iov, iovlen;

	if (!io || ret <= 0)
		return 0;
	regs = task_regs();
	iov = regs->si;
	iovlen = regs->dx;
	if (msghdr) {
		struct user_msghdr msg;

		if (read_msghdr(&msg, iov))
			return 0;
		iov = msg.iov;
		iovlen = msg.iovlen;
	}
	if (io_vector(io, iov, iovlen, ret))
		return 0;
	io_place(io, ret);
	return leave_to_work(ctx, io, IO_BYTES);
}

SEC("tracepoint/syscalls/sys_exit_write")
int exit_write(struct trace_event_raw_sys_exit *ctx)
{
	return exit_send_single(ctx);
}

SEC("tracepoint/syscalls/sys_exit_sendto")
int exit_sendto(struct trace_event_raw_sys_exit *ctx)
{
	return exit_send_single(ctx);
}

SEC("tracepoint/syscalls/sys_exit_writev")
int exit_writev(struct trace_event_raw_sys_exit *ctx)
{
	return exit_send_vector(ctx, 0);
}

SEC("tracepoint/syscalls/sys_exit_sendmsg")
int exit_sendmsg(struct trace_event_raw_sys_exit *ctx)
{
	return exit_send_vector(ctx, 1);
}

/* ---- sends whose bytes never pass through user memory ------------------------------- */

static __always_inline int unseen(void *ctx, struct io *io, long ret)
{
	io->gone = 0;
	io->left = ret;
	io_place(io, ret);
	return leave_to_work(ctx, io, IO_UNSEEN);
}

SEC("tracepoint/syscalls/sys_exit_sendfile64")
int exit_sendfile(struct trace_event_raw_sys_exit *ctx)
{
	struct io *io;

	if (ctx->ret <= 0)
		return 0;
	io = io_begin(task_regs()->di, 1, 0);
	return io ? unseen(ctx, io, ctx->ret) : 0;
}

SEC("tracepoint/syscalls/sys_exit_splice")
int exit_splice(struct trace_event_raw_sys_exit *ctx)
{
	struct pt_regs *regs = task_regs();
	struct io *io;

	if (ctx->ret <= 0)
		return 0;
	/* one end is a pipe, so at most one is a socket */
	io = io_begin(regs->di, 0, 0);
	if (!io)
		io = io_begin(regs->dx, 1, 0);
	return io ? unseen(ctx, io, ctx->ret) : 0;
}

/* ---- receives ------------------------------------------------------------------------ */

static __always_inline int receive_single(void *ctx, long ret, __u64 flags)
{
	struct pt_regs *regs;
	struct io *io;

	if (ret == -EAGAIN || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
		return 0;
	regs = task_regs();
	io = io_begin(regs->di, 0, 0);
	if (!io)
		return 0;
	if (ret <= 0) {
		io->ret = ret;
		return leave_to_work(ctx, io, IO_NONE);
	}
	if (flags & MSG_TRUNC && io->is_tcp) /* discarded: nothing was written to the buffer */
		return unseen(ctx, io, ret);
	io_single(io, regs->si, ret);
	io_place(io, ret);
	return leave_to_work(ctx, io, IO_BYTES);
}

static __always_inline int receive_vector(void *ctx, long ret, __u32 fd, __u64 iov, __u64 iovlen)
{
	struct io *io = io_begin(fd, 0, 0);

	if (!io)
		return 0;
	if (ret <= 0) {
		io->ret = ret;
		return leave_to_work(ctx, io, IO_NONE);
	}
	if (io_vector(io, iov, iovlen, ret))
		return 0;
	io_place(io, ret);
	return leave_to_work(ctx, io, IO_BYTES);
}

SEC("tracepoint/syscalls/sys_exit_read")
int exit_read(struct trace_event_raw_sys_exit *ctx)
{
	return receive_single(ctx, ctx->ret, 0);
}

SEC("tracepoint/syscalls/sys_exit_recvfrom")
int exit_recvfrom(struct trace_event_raw_sys_exit *ctx)
{
	return receive_single(ctx, ctx->ret, task_regs()->r10);
}

SEC("tracepoint/syscalls/sys_exit_readv")
int exit_readv(struct trace_event_raw_sys_exit *ctx)
{
	struct pt_regs *regs = task_regs();

	if (ctx->ret == -EAGAIN)
		return 0;
	return receive_vector(ctx, ctx->ret, regs->di, regs->si, regs->dx);
}

SEC("tracepoint/syscalls/sys_exit_recvmsg")
int exit_recvmsg(struct trace_event_raw_sys_exit *ctx)
{
	struct pt_regs *regs = task_regs();
	struct user_msghdr msg;

	if (ctx->ret == -EAGAIN || regs->dx & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
		return 0;
	if (read_msghdr(&msg, regs->si))
		return 0;
	return receive_vector(ctx, ctx->ret, regs->di, msg.iov, msg.iovlen);
}

/* ---- several messages in one call ------------------------------------------------------ */

SEC("tracepoint/syscalls/sys_enter_sendmmsg")
int enter_sendmmsg(struct trace_event_raw_sys_enter *ctx)
{
	struct io *io = io_begin(ctx->args[0], 1, 0);

	if (!io || !sock_can_send(io))
		return 0;
	io->vector = ctx->args[1];
	io->ret = ctx->args[2];
	return leave_to_work(ctx, io, IO_MANY);
}

SEC("tracepoint/syscalls/sys_exit_recvmmsg")
int exit_recvmmsg(struct trace_event_raw_sys_exit *ctx)
{
	struct pt_regs *regs = task_regs();
	struct io *io;

	if (ctx->ret <= 0 || regs->r10 & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
		return 0;
	io = io_begin(regs->di, 0, 0);
	if (!io)
		return 0;
	io->vector = regs->si;
	io->ret = ctx->ret;
	return leave_to_work(ctx, io, IO_MANY);
}

SEC("tracepoint/syscalls/sys_enter_connect")
int enter_connect(struct trace_event_raw_sys_enter *ctx)
{
	struct io *io = cfg_link ? io_begin(ctx->args[0], 1, 0) : NULL;

	return io ? leave_to_work(ctx, io, IO_CONNECT) : 0;
}

/* ---- the work ------------------------------------------------------------------------- */

/*
 * Each message of a vector in turn. A receive knows the lengths; a send is taken to go out
 * whole, and what is sent again later is recognised by its place in the stream.
 */
static __always_inline void many(struct io *io)
{
	struct user_mmsghdr msg;
	__u64 vector = io->vector;
	__u32 seq = 0, total = 0, i;
	long len;

	for (i = 0; i < MMSGS && i < io->ret && !io->tx; i++) {
		if (bpf_probe_read_user(&msg, sizeof(msg), (void *)(vector + i * sizeof(msg))))
			return;
		total += (__u32)msg.len;
	}
	if (io->is_tcp)
		seq = io->tx ? sock_write_seq(io) : sock_copied_seq(io) - total;
	for (i = 0; i < MMSGS && i < io->ret; i++) {
		if (bpf_probe_read_user(&msg, sizeof(msg), (void *)(vector + i * sizeof(msg))))
			return;
		len = io->tx ? 0 : (__u32)msg.len;
		if (!io->tx && !len)
			continue;
		if (io_vector(io, msg.hdr.iov, msg.hdr.iovlen, len))
			return;
		len = io->left;
		io->seq = seq;
		seq += len;
		if (len)
			process(io);
	}
}

SEC("tracepoint")
int work(void *ctx __attribute__((unused)))
{
	struct io *io = io_get();

	if (!io)
		return 0;
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
	}
	return 0;
}
