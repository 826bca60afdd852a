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

struct thread_struct {
	unsigned long fsbase; /* x86-64: of the thread's TLS */
};

struct task_struct {
	int pid;
	int tgid;
	struct thread_struct thread;
	struct signal_struct *signal;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	__u64 start_boottime;
	struct files_struct *files;
	struct mm_struct *mm;
	char comm[16];
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

struct pt_regs {
	unsigned long r14;
	unsigned long ax;
	unsigned long bx;
	unsigned long cx;
	unsigned long di;
	unsigned long si;
	unsigned long dx;
	unsigned long r10;
	unsigned long r8;
	unsigned long r9;
};

/* Contexts of the tracepoints syscalls:sys_enter_* and sys_exit_*, as ftrace lays them out. */
struct trace_event_raw_sys_enter {
	unsigned long args[6];
};

struct trace_event_raw_sys_exit {
	long ret;
};

#pragma clang attribute pop

/*
 * Typed access to a kernel object at an address we found ourselves: plain loads where
 * the kernel has bpf_rdonly_cast, a probe read elsewhere.
 * Linux kernel commit a35b9af4ec2c ("bpf: Add a kfunc to type cast from bpf uapi ctx to
 * kernel ctx") and fd264ca02094 ("bpf: Add a kfunc to type cast") (in v6.2).
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

#define LOAD(type, obj, field)                                                                     \
	({                                                                                         \
		const void *__obj = (const void *)(obj);                                           \
		typeof(((type *)0)->field) __v;                                                    \
		if (bpf_rdonly_cast)                                                               \
			__v = ((type *)bpf_rdonly_cast(__obj, bpf_core_type_id_kernel(type)))      \
				      ->field;                                                     \
		else                                                                               \
			bpf_core_read(&__v, sizeof(__v), &((type *)__obj)->field);                 \
		__v;                                                                               \
	})

#endif
