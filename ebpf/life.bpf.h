/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * life.bpf.h - hooks that tell when connections end and when processes begin or end.
 */
#ifndef WIRESPAN_LIFE_H
#define WIRESPAN_LIFE_H

#include "conn.bpf.h"

#define MAX_FDS 65536 /* descriptors of a leaving process that are looked at */

/* ---- ends of connections ---------------------------------------------------------------- */

/* Raw arguments: struct sock *sk, int oldstate, int newstate. May run in softirq. */
HOOK("raw_tp/inet_sock_set_state", set_state, struct bpf_raw_tracepoint_args *ctx)
{
	__u64 sk = ctx->args[0], now;
	int before = ctx->args[1], state = ctx->args[2];
	__u8 shutdown;
	struct conn *c;

	if (!cfg_ready)
		return;
	if (state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE)
		return;
	c = bpf_map_lookup_elem(&conns, &sk);
	if (!c)
		return;
	now = bpf_ktime_get_ns();
	shutdown = LOAD(struct sock, (void *)sk, sk_shutdown);
	if (state == TCP_CLOSE) {
		c->error = LOAD(struct sock, (void *)sk, sk_err);
		/*
		 * After an error, or the peer's FIN on a socket closed for sending only, the
		 * application may yet read what came before: its receive or tcp_destroy_sock
		 * tells the end.
		 */
		if (c->error || (before != TCP_ESTABLISHED && before != TCP_CLOSE_WAIT))
			return;
	}
	/* close() empties the receive queue first: with bytes in it this is a shutdown() */
	if (LOAD(struct sock, (void *)sk, sk_receive_queue.qlen))
		return;
	if ((shutdown & SHUTDOWN_MASK) != SHUTDOWN_MASK)
		end_sending(c, sk, now);
	else /* from CLOSE_WAIT: the peer had closed first */
		end_conn(c, sk, before == TCP_CLOSE_WAIT ? FLOW_END_PEER : FLOW_END_LOCAL, now);
}

/* The socket is freed; in case nothing told its end before. */
HOOK("raw_tp/tcp_destroy_sock", destroy_sock, struct bpf_raw_tracepoint_args *ctx)
{
	__u64 sk = ctx->args[0];
	struct conn *c = bpf_map_lookup_elem(&conns, &sk);

	if (c && cfg_ready)
		end_conn(c, sk, FLOW_END_LOCAL, bpf_ktime_get_ns());
}

/* Unix sockets tell no state: their end is the last close of the file, or a shutdown. */

/* Is this descriptor the file's last reference? */
static __always_inline int last_reference(void *file)
{
	struct file___counted *counted = file;

	/* Linux kernel commit 90ee6ed776c0 ("fs: port files to file_ref") (in v6.13) */
	if (bpf_core_field_exists(((struct file *)file)->f_ref))
		return LOAD(struct file, file, f_ref.refcnt.counter) == 0;
	return LOAD(struct file___counted, counted, f_count.counter) == 1;
}

static __always_inline void unix_closed(__u64 sk, __u64 ino)
{
	struct conn *c = conn_of(sk, ino);

	if (c)
		end_conn(c, sk, FLOW_END_LOCAL, bpf_ktime_get_ns());
}

static __always_inline int closing(const struct pt_regs *regs)
{
	struct io *io = io_get();

	if (io && sock_of_fd(io, ARG1(regs)) && !io->is_tcp && last_reference((void *)io->file))
		unix_closed(io->sk, io->ino);
	return 0;
}

static __always_inline void unix_shut_down(__u64 sk, __u64 ino)
{
	struct conn *c = conn_of(sk, ino);

	if (c)
		end_sending(c, sk, bpf_ktime_get_ns());
}

static __always_inline int shutting_down(const struct pt_regs *regs)
{
	struct io *io = io_get();

	if (io && ARG2(regs) && sock_of_fd(io, ARG1(regs)) && !io->is_tcp)
		unix_shut_down(io->sk, io->ino);
	return 0;
}

#ifdef OLD_KERNEL
#define FDS_OLD 2048

GLOBAL_IO(close_old, (fd), __u32 fd)
{
	if (sock_of_fd(io, fd) && !io->is_tcp && last_reference((void *)io->file))
		unix_closed(io->sk, io->ino);
	return 0;
}
#else
struct leaving {
	struct io *io;
	__u32 max_fds;
};

static long close_one(__u32 fd, struct leaving *leaving)
{
	struct io *io = leaving->io;

	if (fd >= leaving->max_fds)
		return 1;
	if (sock_of_fd(io, fd) && !io->is_tcp && last_reference((void *)io->file))
		unix_closed(io->sk, io->ino);
	return 0;
}

#endif

/* A process that ends without closing: killed, or it left that to the kernel. */
HOOK("raw_tp/sched_process_exit", process_exit, struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0];
	__u32 tgid = LOAD(struct task_struct, task, tgid);
	__u32 tid = LOAD(struct task_struct, task, pid), max_fds;
	struct files_struct *files;
	struct io *io;

	if (cfg_link)
		bpf_map_delete_elem(&threads, &tid); /* the number may be another's next */

	if (LOAD(struct signal_struct, LOAD(struct task_struct, task, signal), live.counter))
		return; /* a thread of several */
	if (cfg_filters)
		filter_forget(tgid);
	bpf_map_delete_elem(&runtimes, &tgid);
	if (!bpf_map_lookup_elem(&unix_users, &tgid))
		return;
	bpf_map_delete_elem(&unix_users, &tgid);
	files = LOAD(struct task_struct, task, files);
	io = io_get();
	if (!io || !files)
		return;
	max_fds = LOAD(struct fdtable, LOAD(struct files_struct, files, fdt), max_fds);
#ifdef OLD_KERNEL
	for (__u32 fd = 0; fd < FDS_OLD && fd < max_fds; fd++)
		close_old(io, fd);
#else
	struct leaving leaving = { io, max_fds };

	bpf_loop(MAX_FDS, close_one, &leaving, 0);
#endif
}

/* ---- processes ----------------------------------------------------------------------------- */

/* Raw arguments: struct task_struct *parent, struct task_struct *child. */
HOOK("raw_tp/sched_process_fork", process_fork, struct bpf_raw_tracepoint_args *ctx)
{
	__u32 parent = LOAD(struct task_struct, (void *)ctx->args[0], tgid);
	__u32 child = LOAD(struct task_struct, (void *)ctx->args[1], tgid);
	struct runtime *runtime;

	if (!cfg_link || child == parent) /* a thread */
		return;
	runtime = bpf_map_lookup_elem(&runtimes, &parent);
	if (runtime) /* the image is the same, at the same addresses */
		bpf_map_update_elem(&runtimes, &child, runtime, BPF_ANY);
}

/*
 * An exec wakes the reader at once: what lives for a moment only is gone by its next visit, and
 * with it the environment that names its service. But a host may exec all the time, and a visit
 * costs about a millisecond: so many in a row, and one each so often.
 */
#define EXEC_WAKES 8
#define EXEC_WAKE_NS 100000000ULL

__u64 exec_wake_due_ns = 0;

static __always_inline __u64 exec_flags(__u64 now)
{
	if (exec_wake_due_ns + EXEC_WAKES * EXEC_WAKE_NS < now)
		exec_wake_due_ns = now - EXEC_WAKES * EXEC_WAKE_NS;
	if (exec_wake_due_ns > now)
		return ring_flags();
	exec_wake_due_ns += EXEC_WAKE_NS;
	return BPF_RB_FORCE_WAKEUP;
}

/* Raw arguments: struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm. */
HOOK("raw_tp/sched_process_exec", process_exec, struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0], *bprm = (void *)ctx->args[2];
	struct mm_struct *mm = LOAD(struct task_struct, task, mm);
	__u32 tgid = LOAD(struct task_struct, task, tgid), n;
	__u64 start, end;
	struct flow_record *r;
	struct io *io = io_get();
	long len;

	filter_forget(tgid);
	bpf_map_delete_elem(&runtimes, &tgid); /* until user space has looked at the new image */
	if (!io || !mm)
		return;
	r = &io->spare;
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = FLOW_EXEC;
	r->start_ns = bpf_ktime_get_ns();
	r->tgid = tgid;
	r->task_start_ns = LOAD(struct task_struct, LOAD(struct task_struct, task, group_leader),
				start_boottime);
	r->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	len = bpf_probe_read_kernel_str(r->text, 128, LOAD(struct linux_binprm, bprm, filename));
	if (len < 1)
		len = 1;
	r->fields[FLOW_TEXT_EXE].len = len - 1;
	start = LOAD(struct mm_struct, mm, arg_start);
	end = LOAD(struct mm_struct, mm, arg_end);
	n = end - start;
	if (end - start > 256) {
		n = 256;
		r->truncated = 1 << FLOW_TEXT_ARGV;
	}
	len &= 255;
	if (!bpf_probe_read_user(&r->text[len & 127], n, (void *)start)) {
		r->fields[FLOW_TEXT_ARGV].off = len;
		r->fields[FLOW_TEXT_ARGV].len = n;
		r->text_len = len + n;
	}
	if (hand_over_by(r, exec_flags(r->start_ns)))
		count(FLOW_COUNT_EXECS, 1);
}

#endif
