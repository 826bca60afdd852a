/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * hook.bpf.h - what the hooks of sends and receives have in common, wherever they are.
 */
#ifndef WIRESPAN_HOOK_H
#define WIRESPAN_HOOK_H

#include "conn.bpf.h"
#include "life.bpf.h"
#include "runtime.bpf.h"

/* It happens now, on this thread. */
static __always_inline void io_stamp(struct io *io, __u8 tx, __u8 early)
{
	io->start_ns = io->end_ns = bpf_ktime_get_ns();
	io->pid_tgid = bpf_get_current_pid_tgid();
	io->tx = tx;
	io->early = early;
}

/* `done` bytes have moved already: where in the stream did they begin? */
static __always_inline void io_place(struct io *io, long done)
{
	if (!io->is_tcp)
		io->seq = 0;
	else
		io->seq = (io->tx ? sock_write_seq(io) : sock_copied_seq(io)) - (__u32)done;
}

/* `done` bytes have moved that can't be read from user memory. */
static __always_inline void io_unseen(struct io *io, long done)
{
	io->gone = 0;
	io->left = done;
	io_place(io, done);
}

/* The pending send of this thread, if any: its io with times and the address of its socket. */
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
	io->msg = pending->msg;
	sk = pending->sk;
	bpf_map_delete_elem(&pending_sends, &key);
	__sync_fetch_and_add(&pending_hints[key & 1023], -1);
	c = bpf_map_lookup_elem(&conns, &sk);
	if (c && c->deferred)
		c->deferred--;
	io->sk = sk;
	io->end_ns = bpf_ktime_get_ns();
	io->pid_tgid = key;
	io->tx = 1;
	io->early = 0;
	return io;
}

#endif
