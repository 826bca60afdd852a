/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * kernel.h - the kernel's structures as far as we read them. CO-RE relocates every
 * field against the BTF of the kernel that runs, so order and size here mean nothing,
 * and the build needs no particular kernel.
 */
#ifndef WIRESPAN_KERNEL_H
#define WIRESPAN_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_TRUNC 0x20
#define MSG_ERRQUEUE 0x2000
#define MSG_FASTOPEN 0x20000000
#define RECEIVED_ELSEWHERE (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) /* no bytes of the stream go */
#define SOCK_DONE 1 /* bit of skc_flags: the peer's FIN has come */
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define SHUTDOWN_MASK 3
#define EAGAIN 11
#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110

/* enum tcp_state, include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct super_block {
	unsigned int s_dev;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

typedef struct {
	long counter;
} atomic_long_t;

typedef struct {
	atomic_long_t refcnt;
} file_ref_t;

struct file {
	file_ref_t f_ref;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
};

struct file___counted {
	atomic_long_t f_count;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
};

struct signal_struct {
	atomic_t live;
};

#ifdef __TARGET_ARCH_arm64
struct thread_struct {
	struct {
		unsigned long tp_value;
	} uw;
};

struct thread_info {
	unsigned long flags;
};
#else
struct thread_struct {
	unsigned long fsbase;
};

struct thread_info {
	__u32 status;
};
#endif

struct list_head {
	struct list_head *next;
	struct list_head *prev;
};

struct task_struct {
	struct thread_info thread_info;
	int pid;
	int tgid;
	struct thread_struct thread;
	struct signal_struct *signal;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	__u64 start_boottime;
	struct files_struct *files;
	struct mm_struct *mm;
	struct css_set *cgroups;
	char comm[16];
};

/* Linux before 5.15 tells a program that traces no groups above its own: they are read. */
struct cgroup {
	int level;
	__u64 ancestor_ids[0];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct linux_binprm {
	const char *filename;
};

struct in6_addr {
	__u8 bytes[16];
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct upid {
	int nr;
};

struct pid {
	struct upid numbers[1];
};

struct sk_buff_head {
	__u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	unsigned short sk_type;
	unsigned short sk_protocol;
	int sk_sndbuf;
	int sk_wmem_queued;
	refcount_t sk_wmem_alloc;
	int sk_err;
	unsigned char sk_shutdown;
	struct socket *sk_socket;
	struct pid *sk_peer_pid;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct iovec;

struct iov_iter {
	__u8 iter_type;
	unsigned long iov_offset;
	const struct iovec *__iov;
	void *ubuf;
	unsigned long count;
	unsigned long nr_segs;
};

/* renamed in Linux 6.4 */
struct iov_iter___before_6_4 {
	const struct iovec *iov;
};

enum iter_type {
	ITER_UBUF,
	ITER_IOVEC,
};

struct msghdr {
	struct iov_iter msg_iter;
	unsigned int msg_flags;
};

struct tcp_sock {
	__u32 write_seq;
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u32 snd_nxt;
	__u32 data_segs_out;
	__u32 notsent_lowat;
	__u32 snd_una;
	__u64 bytes_received;
	__u64 bytes_acked;
};

struct unix_address;

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
};

struct sockaddr_un {
	char sun_path[108];
};

struct unix_address {
	int len;
	struct sockaddr_un name[0];
};

#ifdef __TARGET_ARCH_x86
struct pt_regs {
	unsigned long r14;
	unsigned long ax;
	unsigned long bx;
	unsigned long cx;
	unsigned long di;
	unsigned long si;
	unsigned long dx;
	unsigned long r10;
	unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
};
#endif

#pragma clang attribute pop

/*
 * Typed access to a kernel object at an address we found ourselves: plain loads where
 * the kernel has bpf_rdonly_cast, a probe read elsewhere.
 * Linux kernel commit a35b9af4ec2c ("bpf: Add a kfunc to type cast from bpf uapi ctx to
 * kernel ctx") and fd264ca02094 ("bpf: Add a kfunc to type cast") (in v6.2).
 */
#ifdef OLD_KERNEL
#define bpf_rdonly_cast(obj, btf_id) ((void *)NULL)
#define HAS_RDONLY_CAST 0
#else
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
#define HAS_RDONLY_CAST bpf_rdonly_cast
#endif

#define LOAD(type, obj, field)                                                                     \
	({                                                                                         \
		const void *__obj = (const void *)(obj);                                           \
		typeof(((type *)0)->field) __v;                                                    \
		if (HAS_RDONLY_CAST)                                                               \
			__v = ((type *)bpf_rdonly_cast(__obj, bpf_core_type_id_kernel(type)))      \
				      ->field;                                                     \
		else                                                                               \
			bpf_core_read(&__v, sizeof(__v), &((type *)__obj)->field);                 \
		__v;                                                                               \
	})

/* A pointer at an address of the kernel's: of an array, which has no name in BTF. */
static __always_inline void *load_pointer(const void *at)
{
	void *pointer = NULL;

	if (HAS_RDONLY_CAST)
		/* any structure that begins with a pointer would do */
		return ((struct list_head *)bpf_rdonly_cast(
				at, bpf_core_type_id_kernel(struct list_head)))
			->next;
	bpf_probe_read_kernel(&pointer, sizeof(pointer), at);
	return pointer;
}

/* 16 bytes from an address of the kernel's. */
static __always_inline void load_pair(void *to, const void *at)
{
	if (HAS_RDONLY_CAST) {
		const struct list_head *pair =
			bpf_rdonly_cast(at, bpf_core_type_id_kernel(struct list_head));

		((__u64 *)to)[0] = (__u64)pair->next;
		((__u64 *)to)[1] = (__u64)pair->prev;
	} else {
		bpf_probe_read_kernel(to, 16, at);
	}
}

/*
 * Programs of functions, the kernel's or an application's, can be preempted where the kernel can,
 * from Linux 7.0 on those of trace points, too, and would find what another has put into their
 * CPU's struct io. They forbid it where functions may be called so: where the verifier has this
 * field (Linux 6.16).
 */
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;

struct bpf_subprog_info {
	__u8 might_sleep : 1;
} __attribute__((preserve_access_index));

#define CAN_HOLD                                                                                   \
	(bpf_core_field_exists(((struct bpf_subprog_info *)0)->might_sleep) &&                     \
	 bpf_preempt_disable && bpf_preempt_enable)

/* A program with its body, which follows. hold: that has its CPU to itself. */
#define PROGRAM(hold, section, name, argument)                                                     \
	static __always_inline void name##_body(argument);                                         \
	SEC(section)                                                                               \
	int name(argument)                                                                         \
	{                                                                                          \
		if (hold)                                                                          \
			bpf_preempt_disable();                                                     \
		name##_body(ctx);                                                                  \
		if (hold)                                                                          \
			bpf_preempt_enable();                                                      \
		return 0;                                                                          \
	}                                                                                          \
	static __always_inline void name##_body(argument)

#define HOOK(section, name, argument) PROGRAM(CAN_HOLD, section, name, argument)

/* System calls: their numbers, and their arguments from the registers saved at their entry. */
#ifdef __TARGET_ARCH_x86

/* arch/x86/entry/syscalls/syscall_64.tbl */
enum syscall_nr {
	NR_READ = 0,
	NR_WRITE = 1,
	NR_CLOSE = 3,
	NR_READV = 19,
	NR_WRITEV = 20,
	NR_MSYNC = 26,
	NR_SENDFILE = 40,
	NR_CONNECT = 42,
	NR_ACCEPT = 43,
	NR_SENDTO = 44,
	NR_RECVFROM = 45,
	NR_SENDMSG = 46,
	NR_RECVMSG = 47,
	NR_SHUTDOWN = 48,
	NR_FUTEX = 202,
	NR_EPOLL_WAIT = 232,
	NR_SPLICE = 275,
	NR_EPOLL_PWAIT = 281,
	NR_ACCEPT4 = 288,
	NR_PREADV = 295,
	NR_RECVMMSG = 299,
	NR_SENDMMSG = 307,
};

/* In a system call of a 32-bit program, whose numbers are others: TS_COMPAT. */
#define IS_32_BIT(task) (LOAD(struct task_struct, task, thread_info.status) & 2)
/* Where the thread's TLS is. */
#define THREAD_POINTER(task) LOAD(struct task_struct, (void *)(task), thread.fsbase)

/* Registers in a uprobe: what a C function returns and gets, what Go passes (ABIInternal) and g. */
#define RETURNED(ctx) ((ctx)->ax)
#define C_ARG2(ctx) ((ctx)->si)
#define GO_ARG1(ctx) ((ctx)->ax)
#define GO_ARG2(ctx) ((ctx)->bx)
#define GO_ARG3(ctx) ((ctx)->cx)
#define GO_ARG4(ctx) ((ctx)->di)
#define GO_G(ctx) ((ctx)->r14)

#define SYSCALL_NR(regs) LOAD(struct pt_regs, regs, orig_ax)
#define ARG1(regs) LOAD(struct pt_regs, regs, di)
#define ARG2(regs) LOAD(struct pt_regs, regs, si)
#define ARG3(regs) LOAD(struct pt_regs, regs, dx)
#define ARG4(regs) LOAD(struct pt_regs, regs, r10)

#elif defined(__TARGET_ARCH_arm64)

/* include/uapi/asm-generic/unistd.h */
enum syscall_nr {
	NR_CLOSE = 57,
	NR_READ = 63,
	NR_WRITE = 64,
	NR_READV = 65,
	NR_WRITEV = 66,
	NR_PREADV = 69,
	NR_SENDFILE = 71,
	NR_SPLICE = 76,
	NR_EPOLL_PWAIT = 22,
	NR_FUTEX = 98,
	NR_ACCEPT = 202,
	NR_CONNECT = 203,
	NR_SENDTO = 206,
	NR_RECVFROM = 207,
	NR_SHUTDOWN = 210,
	NR_SENDMSG = 211,
	NR_RECVMSG = 212,
	NR_MSYNC = 227,
	NR_ACCEPT4 = 242,
	NR_RECVMMSG = 243,
	NR_SENDMMSG = 269,
	NR_EPOLL_WAIT = 0x10000, /* there is none */
};

/* TIF_32BIT, arch/arm64/include/asm/thread_info.h */
#define IS_32_BIT(task) (LOAD(struct task_struct, task, thread_info.flags) >> 22 & 1)
#define THREAD_POINTER(task) LOAD(struct task_struct, (void *)(task), thread.uw.tp_value)

#define RETURNED(ctx) ((ctx)->regs[0])
#define C_ARG2(ctx) ((ctx)->regs[1])
#define GO_ARG1(ctx) ((ctx)->regs[0])
#define GO_ARG2(ctx) ((ctx)->regs[1])
#define GO_ARG3(ctx) ((ctx)->regs[2])
#define GO_ARG4(ctx) ((ctx)->regs[3])
#define GO_G(ctx) ((ctx)->regs[28])

#define SYSCALL_NR(regs) LOAD(struct pt_regs, regs, syscallno)
#define ARG1(regs) LOAD(struct pt_regs, regs, orig_x0)
#define ARG2(regs) LOAD(struct pt_regs, regs, regs[1])
#define ARG3(regs) LOAD(struct pt_regs, regs, regs[2])
#define ARG4(regs) LOAD(struct pt_regs, regs, regs[3])

#endif

#endif
