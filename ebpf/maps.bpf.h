/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * maps.bpf.h - every map and every knob: key, value, lifetime, bound.
 * Sizes are the defaults; the loader changes max_entries as options say.
 */
#ifndef WIRESPAN_MAPS_H
#define WIRESPAN_MAPS_H

#include "flow.h"
#include "kernel.h"
#include "protocols/table.h"

/* An exchange that this host serves: what the requests made for it refer to. */
struct cause {
	__u64 sk;    /* its connection */
	__u64 index; /* HTTP/1: number of the request; HTTP/2: stream; above 32 bits its fate */
	__u64 id;    /* flow_exchange_id(); 0: no exchange */
};

#define RECORD_PLACE 1024 /* OLD_KERNEL: how far apart the records of a connection are */

/* One direction of a connection as seen from this socket. */
struct conn {
	__u64 ino;	    /* the socket's inode: tells a reused address from the same socket */
	__u32 tx_seq;	    /* sequence number of the next byte to be sent, as we know it */
	__u32 rx_seq;	    /* and of the next one to be received */
	__u32 started;	    /* requests begun */
	__u32 answered;	    /* responses ended; started - answered are in flight */
	__u32 inline_index; /* number of the request that `rec` holds */
	__u32 filter_tgid;  /* process that the filter last passed */
	__u32 base;	    /* sequence number of the first byte of the response stream */
	__u32 open;	    /* HTTP/2: streams under way */
	__u64 first_ns;	    /* time of the first byte, until a request begins with it */
	__u32 error;	    /* errno the kernel closed it with */
	__u8 role;	    /* enum flow_role; 0 until the protocol is known */
	__u8 confirmed;	    /* counted: no other protocol can be meant */
	__u8 fresh;	    /* seen from its first byte on */
	__u8 is_tcp;
	__u8 deferred;	    /* sends under way that will be parsed at their exit */
	__u8 upgraded;	    /* HTTP/1 gave it to another protocol: which one is not yet known */
	__u8 lost;	    /* HTTP/2: blocks were lost; bit 0 of requests, 1 of responses */
	__u8 foreign;	    /* known not to be the far end of one of the tracer's own */
	__u32 last_stream;  /* HTTP/2: that began here */
	struct cause cause; /* client: of the exchange in `rec` */
	__u64 cgroups;	    /* address of the task's css_set, */
	__u64 cgroup_id;    /* when this was its cgroup's id */
	struct talk t;
	struct flow_record rec; /* identity of the connection, and its oldest exchange */
#ifdef OLD_KERNEL
	__u8 pad[RECORD_PLACE - sizeof(struct flow_record)];
	struct flow_record spare; /* as in struct io, at a place the verifier knows from `rec` */
#endif
};

/* Records on their way to user space. One type, one size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} records SEC(".maps");

/* Connections that speak a protocol we parse, by struct sock *; removed when it closes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct conn);
} conns SEC(".maps");

/* Requests in flight behind the first one of their connection. Removed at their end. */
struct pipelined_key {
	__u64 sk;
	__u64 index;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct pipelined_key);
	__type(value, struct flow_record);
} pipelined SEC(".maps");

/* HTTP/2 streams under way. Removed at their end, or with their connection. */
struct stream_key {
	__u64 sk;
	__u64 id;
};

struct stream_entry {
	__u64 sk;
	__u64 start_ns;
	__u64 request_end_ns;
	__u64 first_byte_ns;
	__u64 request_bytes;
	__u64 response_bytes;
	struct h2_messages request;
	struct h2_messages response;
	__u32 request_seq;
	__u32 request_tid;
	__u32 response_tid;
	__u32 flags; /* enum flow_flag */
	__u32 id;
	__u32 code; /* of RST_STREAM */
	__u32 end;  /* enum flow_end */
	__u32 calls;
	__u32 evidence; /* enum flow_evidence */
	__u32 fate;	/* as in flow_record: level | lot << 8 */
	__u32 pad;
	struct cause cause;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct stream_key);
	__type(value, struct stream_entry);
} streams SEC(".maps");

/* Sockets found to speak something else, or filtered out: struct sock * to inode. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1792);
	__type(key, __u64);
	__type(value, __u64);
} others SEC(".maps");

/* Processes that use Unix connections we parse: their sockets are looked for when they end. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} unix_users SEC(".maps");

/*
 * Sends that may be cut short, between entry and exit; by thread. One that is evicted is
 * noticed as a gap in the stream.
 */
struct pending_send {
	__u64 sk;
	__u64 start_ns;
	__u64 msg; /* fentry: struct msghdr *, until the send returns */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, __u64);
	__type(value, struct pending_send);
} pending_sends SEC(".maps");

/* The tracer's own connections, so that the far end of them on this host is known too. */
struct own_key {
	__u32 client_addr[4];
	__u32 server_addr[4];
	__u32 client_port;
	__u32 server_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, struct own_key);
	__type(value, __u8);
} own_conns SEC(".maps");

/*
 * How a process runs what it does at once, told by user space (tracer/runtimes/). Processes
 * that are not in here link nothing: a thread may mean nothing in them.
 */
enum runtime_kind {
	RUNTIME_THREADS = 1, /* a thread that serves one request and no other works for it */
	RUNTIME_CPYTHON = 2,
	RUNTIME_GO = 3,
	RUNTIME_NODE = 4,
	RUNTIME_OPAQUE = 5, /* has contexts of its own, that can't be read */
};

/* What is known of a program whose threads are event loops. */
enum event_loop {
	EVENT_LOOP_TURNS = 1, /* what a thread sends, it sends for whom it served or heard last */
	EVENT_LOOP_CONNECTS = 2, /* a connection opened for an exchange carries its request */
	EVENT_LOOP_TIMERS = 4,	 /* one thread does all: nobody but it can have been waiting */
	/* who takes a connection from a pool reads a byte first; threads that poll don't connect
	 * for whom they serve (the JVM) */
	EVENT_LOOP_CHECKS = 8,
};

struct runtime {
	__u64 interpreter; /* CPython: address of the pointer to the main interpreter; 0: unknown */
	__u32 kind;	   /* enum runtime_kind */
	/* CPython: where in PyInterpreterState and PyThreadState */
	__u32 threads_head;
	__u32 next;
	__u32 thread_id; /* pthread_self(): the thread's FS base */
	__u32 context;
	__s32 tls_state; /* the thread's own state, from its FS base; 0: in the list alone */
	/* Go: g from the FS base, and what is where in it */
	__s32 tls_g;
	__u32 goid;
	__u32 parent_goid; /* 0: none, before Go 1.21 */
	__u32 round_trip;  /* where in net/http.persistConn its conn is; 0: there is none */
	/* grpc-go: where in ClientStream and ServerStream a *Stream is, plus 1; 0: they are one */
	__u32 grpc_client_stream;
	__u32 grpc_server_stream;
	__u32 grpc_stream_id;	/* in Stream */
	__u32 grpc_client_conn; /* in http2Client */
	__u32 grpc_server_conn; /* in http2Server */
	/* CPython: its locks that say nothing of who waits for whom (the GIL) are in here */
	__u32 locks_size;
	__u64 locks;
	__u32 entered;	  /* CPython: where in a Context is whether something runs in it */
	__u32 event_loop; /* enum event_loop */
	__u32 serves;	  /* set by the kernel's side: it has read a request */
	/* CPython: where in an object its type is, and in a type its name */
	__u16 object_type;
	__u16 type_name;
	/*
	 * where in PyThreadState the innermost frame is, 0: unknown; cframe: there is a pointer to
	 * what has it at this place, plus 1; 0: there it is itself
	 */
	__u16 frame;
	__u16 cframe;
	/* where in a frame its code, its caller and its arguments are */
	__u16 frame_code;
	__u16 frame_previous;
	__u16 frame_locals;
	__u16 code_name; /* where in a code object its name is */
	__u16 text;	 /* where in a string of ASCII its characters begin */
	__u16 tornado;	 /* it has loaded tornado, or may: frames are to be looked at for it */
	/*
	 * JVM: where in a thread's vector of TLS blocks is libjvm's, in that the pointer to its
	 * JavaThread, and in that one the number of the Java thread that runs, 0: unknown, and
	 * whether it is a virtual one
	 */
	__u16 java_dtv;
	__u16 java_thread;
	__u16 java_number;
	__u16 java_continuation;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1536);
	__type(key, __u32);
	__type(value, struct runtime);
} runtimes SEC(".maps");

/* Some exchanges, of which only their number and, if there is just one, which can be told. */
struct causes {
	__u64 sk;
	__u64 index;
	__u64 id; /* all XORed */
	__u64 count;
};

enum request_seen {
	REQUEST_READ = 1,   /* and nothing was done yet */
	REQUEST_COPIED = 2, /* and a context was copied then: for a task that will serve it */
};

/* Threads that serve, by number. */
struct thread {
	struct causes in_hand; /* exchanges whose request it read and that are not over */
	struct causes idle;    /* those of them that wait for no call of their own */
	struct cause last;     /* that of the last message received in this turn */
	__u64 accepted;	       /* socket accepted last: in this turn, or see accepted_in; SEVERAL */
	__u64 accepted_ino;
	__u64 python;  /* its PyThreadState */
	__u8 messages; /* received in this turn: 0, 1, more */
	__u8 loop;     /* it had several in hand at once: an event loop */
	__u8 polled;   /* it polled while it had one in hand: may be one, too */
	/* CPython */
	__u8 request;		/* enum request_seen: the message received last was a request */
	__u16 doubt;		/* how many more requests must be followed by a copy of a context */
	__u8 accepted_told;	/* a context was copied for `accepted` */
	__u8 polls : 1,		/* EVENT_LOOP_CHECKS: it ever did */
		carries : 1,	/* likewise: it is a ForkJoinPool's, or carries virtual threads */
		alone_read : 1; /* `alone` was made by another thread, this one read the answer */
	__u32 accepted_in; /* what ran then, context_mark(); if something did, `accepted` stays */
	__u32 read_in;	   /* what ran as `last` was read, likewise; 0: nothing */
	__u32 made_for;	   /* uvloop: the transport for which connection_made() was last */
	__u16 accepts;	   /* uvloop: sockets accepted in this turn, */
	__u16 made;	   /* and for how many of them connection_made() was since */
	/* a thread that serves nobody: its last request without a parent, when its answer came */
	__u64 alone;
	__u64 alone_ns;
	__u64 handed; /* the exchange of whom it woke last, since */
	/* CPython: a pool's thread: for whom what it has in hand was put in its queue */
	struct cause work;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1792);
	__type(key, __u32);
	__type(value, struct thread);
} threads SEC(".maps");

/* Contexts of CPython, goroutines, virtual threads: for whom they run. By process. */
enum context_kind {
	CONTEXT = 0,   /* of CPython; also a number that Node's preload or the JVM's agent gave */
	GOROUTINE = 1, /* or a virtual thread of a JVM */
	WORK_ITEM = 2, /* CPython: in a pool's queue */
	REQUEST = 3,   /* CPython: in the queue of tornado's client of HTTP */
	ACCEPTED = 4,  /* CPython: a thread's number, and which of the sockets of this turn it is */
};

#define SEVERAL (~0ULL)
#define ACCEPTED_MOST 64 /* sockets of a turn that are remembered */

struct context_key {
	__u64 context;
	__u32 tgid;
	__u32 kind; /* enum context_kind */
};

#define INHERITED 1 /* no channel: started for the exchange */
#define NOBODYS 2   /* CPython: it runs for somebody, but nothing tells for whom */

struct context {
	struct cause cause; /* id 0: the connection alone is known, whose inode is `index` */
	__u64 channel;	    /* goroutine: how it came by it, if it didn't read the request itself */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4864);
	__type(key, struct context_key);
	__type(value, struct context);
} contexts SEC(".maps");

/* What becomes of a request's trace, for the server's side of it on this host; taken by that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, __u64);
	__type(value, __u32);
} fates SEC(".maps");

/* For whom a socket was connected, or is about to be written to; taken by its next request. */
struct hint {
	struct cause cause;
	__u64 ino;
	__u32 evidence;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct hint);
} hints SEC(".maps");

/* Threads that serve and wait, by the futex they wait on. */
struct wait_key {
	__u64 futex;
	__u64 tgid;
};

struct wait {
	struct cause cause; /* id 0: nobody waits there now */
	__u64 since_ns;
	__u32 tid;
	__u16 shared; /* several threads have waited on it, so it is none's own */
	__u16 answer; /* CPython: for so long at most, so for no mutex; and for none of its calls */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct wait_key);
	__type(value, struct wait);
} waits SEC(".maps");

/* What the filters said of a process, by tgid; dropped when it execs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} verdicts SEC(".maps");

enum filter_value {
	FILTER_INCLUDE = 1,
	FILTER_EXCLUDE = 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u16);
	__type(value, __u8);
} filter_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} filter_pids SEC(".maps");

struct exe_file {
	__u64 ino;
	__u32 dev;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct exe_file);
	__type(value, __u8);
} filter_exe_files SEC(".maps");

struct exe_name {
	char name[32];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct exe_name);
	__type(value, __u8);
} filter_exe_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, __u8);
} filter_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOW_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOW_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

/* Knobs, written by the loader (map .data): after load, cfg_ready after attach. */
SEC(".data") __u32 cfg_self_tgid = 0; /* the tracer's own process; never traced */
SEC(".data") __u32 cfg_ready = 0;     /* every hook is attached: no exchange is seen by half */
SEC(".data") __u32 cfg_filters = 0;   /* which filters are set: enum filter_bit */

enum filter_bit {
	FILTER_PORTS = 1,
	FILTER_PORTS_OUT = 2,
	FILTER_PIDS = 4,
	FILTER_PIDS_OUT = 8,
	FILTER_EXES = 16,
	FILTER_EXES_OUT = 32,
	FILTER_CGROUPS = 64,
	FILTER_CGROUPS_OUT = 128,
	FILTER_PROCESSES = 252, /* all but ports */
};

/* The reader sleeps until the next record: set by user space, which maps it (kernel/ring.py). */
__u32 ring_awaited = 0;

/* Processes that filters leave out, by the low bits of their number: spares the look-up. */
__u32 unwanted_hints[1024] = {};

/* Threads with a pending send, by the low bits of their id: a zero spares the look-up. */
__u32 pending_hints[1024] = {};

/* Types that cross to user space, anchored so that BTF holds them. */
const struct flow_record *__btf_flow_record __attribute__((unused));
const enum flow_kind *__btf_flow_kind __attribute__((unused));
const enum flow_protocol *__btf_flow_protocol __attribute__((unused));
const enum flow_role *__btf_flow_role __attribute__((unused));
const enum flow_end *__btf_flow_end __attribute__((unused));
const enum flow_method *__btf_flow_method __attribute__((unused));
const enum flow_flag *__btf_flow_flag __attribute__((unused));
const enum flow_evidence *__btf_flow_evidence __attribute__((unused));
const enum flow_text *__btf_flow_text __attribute__((unused));
const enum flow_family *__btf_flow_family __attribute__((unused));
const enum flow_loss *__btf_flow_loss __attribute__((unused));
const enum flow_count *__btf_flow_count __attribute__((unused));

/* Atomic, for a softirq may count on the CPU whose syscall program it interrupts. */
static __always_inline void lose(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&losses, &reason);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void count(__u32 what, __u64 by)
{
	__u64 *n = bpf_map_lookup_elem(&counts, &what);

	if (n)
		__sync_fetch_and_add(n, by);
}

#endif
