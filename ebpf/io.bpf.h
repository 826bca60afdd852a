/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * io.bpf.h - one send or receive: which bytes, of which socket, at which place in its
 * stream. Walks user buffers and iovecs and presents them in bounded windows.
 */
#ifndef WIRESPAN_IO_H
#define WIRESPAN_IO_H

#include "maps.bpf.h"

#define IO_IOVECS 16 /* iovecs fetched at once */

#ifndef IO_READ_IOVECS
#define IO_READ_IOVECS bpf_probe_read_user /* as the application gave them */
#endif

#ifndef WINDOW_FRESH
#define WINDOW_FRESH WINDOW /* tests on the host take fewer bytes at once */
#define RESYNC 1	    /* and may leave a lost stream lost */
#endif

struct user_iovec {
	__u64 base;
	__u64 len;
};

struct user_msghdr {
	__u64 name;
	__u64 namelen;
	__u64 iov;
	__u64 iovlen;
	__u64 control;
	__u64 controllen;
	__u64 flags;
};

struct user_mmsghdr {
	struct user_msghdr hdr;
	__u64 len; /* unsigned int, and padding */
};

/* What the program `work` is to do with an I/O. */
enum io_op {
	IO_DONE,    /* nothing */
	IO_BYTES,   /* bytes that can be read from user memory */
	IO_UNSEEN,  /* bytes known by number only */
	IO_NONE,    /* a receive of nothing: end of stream or an error */
	IO_DEAD,    /* a send on a socket that can't take any */
	IO_MANY,    /* sendmmsg or recvmmsg: several messages */
	IO_CONNECT, /* a connection is being opened */
	IO_LOOKED,  /* one byte was asked for, and there was none */
};

/* The I/O at hand, one of each CPU: no program that uses it can be preempted (HOOK). */
struct io {
	__u64 sk;
	__u64 ino;
	__u64 file;
	__u64 start_ns; /* when the bytes began to move */
	__u64 end_ns;	/* when they had moved; equal unless the send was deferred */
	__u64 pid_tgid;
	__u64 iov; /* address of the next iovec to fetch, for IO_READ_IOVECS */
	__u64 seg; /* what is left of the current piece: user address, length */
	__u64 seg_len;
	__u64 left;	/* bytes of this I/O not yet presented */
	__u32 iov_left; /* iovecs not yet fetched */
	__u32 batch_at;
	__u32 batch_n;
	__u32 seq;    /* place in the stream, behind the bytes presented so far */
	__u8 tx;      /* a send */
	__u8 request; /* these bytes belong to the connection's request stream */
	__u8 gone;    /* the connection was given up: its state is freed */
	__u8 is_tcp;
	__u8 early;	    /* a send at its entry: what can't be read yet can be at its exit */
	__u8 unread;	    /* such bytes were met */
	__u8 fresh;	    /* detectors may take the bytes for the connection's first */
	__u8 lost;	    /* HTTP/2: bytes went by unseen that mattered */
	__u32 place;	    /* OLD_KERNEL: which record of the connection is meant */
	__u32 op;	    /* enum io_op */
	__u32 handed_over;  /* records, on this CPU */
	long ret;	    /* IO_NONE: the call's result; IO_MANY: how many messages */
	__u64 vector;	    /* IO_MANY: user address of the messages */
	__u64 msg;	    /* fentry: address of the struct msghdr */
	struct cause cause; /* what link_call() found */
	__u64 virtual;	    /* what virtual_thread() found */
	struct user_iovec batch[IO_IOVECS];
	struct window win;
	/* what the stack has no room for: the verifier of 6.1 rounds each frame up to 32 bytes */
	struct user_mmsghdr message; /* IO_MANY: the one at hand */
	struct stream_entry stream;  /* HTTP/2: one that begins */
	struct context inherited;    /* a goroutine's, on its way into the map */
	struct flow_record spare;    /* for a request that found no room */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct io);
} ios SEC(".maps");

static __always_inline struct io *io_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ios, &zero);
}

static __always_inline void io_single(struct io *io, __u64 buf, __u64 len)
{
	io->seg = buf;
	io->seg_len = len;
	io->left = len;
	io->iov_left = 0;
	io->batch_at = io->batch_n = 0;
}

static __always_inline int io_fetch(struct io *io)
{
	__u64 n = io->iov_left; /* 64 bits: the verifier of 6.1 loses sight of copies of fewer */

	asm volatile("" : "+r"(n)); /* of which nothing is known but what follows */
	if (n > IO_IOVECS)
		n = IO_IOVECS;
	if (IO_READ_IOVECS(io->batch, n * sizeof(struct user_iovec), (void *)io->iov))
		return -1;
	io->iov += n * sizeof(struct user_iovec);
	io->iov_left -= n;
	io->batch_at = 0;
	io->batch_n = n;
	return 0;
}

/*
 * An I/O over iovecs. `total` is the number of bytes if known (a receive), else 0.
 * Returns -1 if the iovecs can't be read, 1 if there are so many that the total isn't known.
 */
static __always_inline int io_vector(struct io *io, __u64 iov, __u64 iovlen, __u64 total)
{
	__u64 sum = 0;
	__u32 i;

	if (iovlen > 1024) /* UIO_MAXIOV: the call fails */
		return -1;
	io->iov = iov;
	io->iov_left = iovlen;
	io->seg = io->seg_len = 0;
	io->left = total;
	if (io_fetch(io))
		return -1;
	if (total)
		return 0;
	for (i = 0; i < IO_IOVECS; i++) {
		if (i >= io->batch_n)
			break;
		sum += io->batch[i].len;
	}
	io->left = sum;
	return io->iov_left ? 1 : 0;
}

/* Make the current piece non-empty. Returns -1 if an iovec can't be read or none is left. */
static __always_inline int io_piece(struct io *io)
{
	__u32 at;

	if (io->seg_len)
		return 0;
	if (io->batch_at >= io->batch_n) {
		if (!io->iov_left)
			return -1;
		if (io_fetch(io))
			return -1;
	}
	at = io->batch_at & (IO_IOVECS - 1);
	io->seg = io->batch[at].base;
	io->seg_len = io->batch[at].len;
	io->batch_at++;
	return 0;
}

/* Pass over up to n bytes of the current piece without looking; returns how many. */
static __always_inline __u64 io_skip(struct io *io, __u64 n)
{
	if (n >= io->left) {
		/* the rest of the I/O: no need to walk the pieces */
		n = io->left;
		io->seg_len = 0;
		io->iov_left = 0;
		io->batch_at = io->batch_n;
	} else {
		if (io_piece(io))
			return 0;
		if (n > io->seg_len)
			n = io->seg_len;
		io->seg += n;
		io->seg_len -= n;
	}
	io->left -= n;
	io->seq += n;
	return n;
}

static __always_inline void io_empty_window(struct io *io)
{
	io->win.pos = io->win.end = CARRY;
}

/*
 * Present the next bytes behind those carried over. Returns -1 if they can't be read.
 */
static __always_inline int io_load(struct io *io, struct stream *s)
{
	struct word *to = (struct word *)io->win.bytes;
	const struct word *carry = (const struct word *)s->carry;
	__u32 end;
	__u64 n;

	if (io_piece(io))
		return -1;
	n = io->seg_len;
	if (n > io->left)
		n = io->left;
	if (n > WINDOW_FRESH)
		n = WINDOW_FRESH;
	if (bpf_probe_read_user(&io->win.bytes[CARRY], n, (void *)io->seg))
		return -1;
	to[0].v = carry[0].v;
	to[1].v = carry[1].v;
	to[2].v = carry[2].v;
	io->win.pos = CARRY - (s->carry_len & 31);
	s->carry_len = 0;
	end = CARRY + (__u32)n;
	io->win.end = end;
	to = (struct word *)&io->win.bytes[end];
	to[0].v = 0;
	to[1].v = 0;
	to[2].v = 0;
	io->seg += n;
	io->seg_len -= n;
	io->left -= n;
	io->seq += n;
	return 0;
}

/* Keep the undecided bytes for the next window. */
static __always_inline void io_carry(struct io *io, struct stream *s)
{
	__u32 n = io->win.end - io->win.pos, at = io->win.end - CARRY;
	struct word *to = (struct word *)s->carry;
	const struct word *from;

	if (at > WINDOW)
		at = WINDOW;
	if (n > CARRY) /* can't be: no step leaves so much undecided */
		n = CARRY;
	from = (const struct word *)&io->win.bytes[at];
	to[0].v = from[0].v;
	to[1].v = from[1].v;
	to[2].v = from[2].v;
	s->carry_len = n;
	io_empty_window(io);
}

#endif
