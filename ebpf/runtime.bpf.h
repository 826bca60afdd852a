/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * runtime.bpf.h - hooks that tell what runs for whom: turns of event loops, accepted sockets,
 * copies of CPython's contexts, calls of Go's net/http. The uprobes are attached by user space
 * to the files of processes that it knows (tracer/runtimes/).
 */
#ifndef WIRESPAN_RUNTIME_H
#define WIRESPAN_RUNTIME_H

#include "conn.bpf.h"
#include "python.bpf.h"

/* ---- turns ------------------------------------------------------------------------------ */

/* A turn is over: who was heard in it says nothing of the next one. */
static __always_inline int turn(void)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tid = (__u32)pid_tgid;
	struct thread *thread = cfg_link ? thread_of(tid) : NULL;
	struct runtime *runtime;

	if (!thread) {
		runtime = runtime_of(pid_tgid);
		if (!runtime || !(runtime->event_loop & EVENT_LOOP_CHECKS))
			return 0;
		thread = thread_make(runtime, tid);
		if (!thread)
			return 0;
	}
	thread->polls = 1;
	thread->last.id = 0;
	/* a loop may go on with what it accepted in a later turn, but then in the same context */
	if (thread->accepted_told || !thread->accepted_in)
		thread->accepted = 0;
	thread->accepts = thread->made = thread->made_for = 0;
	thread->messages = 0;
	if (thread->in_hand.count)
		thread->polled = 1;
	request_over(thread);
	return 0;
}

/* Node: timers and setImmediate() run between two turns of their own. */
SEC("uprobe.multi")
int node_turn(void *ctx __attribute__((unused)))
{
	return turn();
}

/* ---- threads ---------------------------------------------------------------------------- */

#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAKE_BITSET 10
#define FUTEX_COMMAND 127
#define HANDED_WITHIN_NS 250000000ULL /* of the answer: user space waits no longer */

/*
 * A thread of a pool that made a request for nobody known, or read the answer to one, wakes,
 * after the answer, the one that waits for it, and that one serves. It must have begun to wait
 * before the answer came: who waits for a mere lock mostly does so later. Each one that it wakes
 * is told, for if there are several, user space takes none of them.
 */
static __always_inline int woken(__u64 pid_tgid, struct wait_key *key)
{
	struct thread *thread = thread_of((__u32)pid_tgid);
	struct flow_record *r;
	struct wait *wait;
	struct io *io;
	__u64 now;

	if (!thread || !thread->alone_ns || !thread->alone)
		return 0;
	now = bpf_ktime_get_ns();
	if (now - thread->alone_ns > HANDED_WITHIN_NS) {
		thread->alone_ns = 0;
		return 0;
	}
	wait = bpf_map_lookup_elem(&waits, key);
	io = io_get();
	if (!wait || !io || wait->shared || wait->since_ns >= thread->alone_ns ||
	    (thread->alone_read && !wait->answer) || wait->cause.id == thread->handed ||
	    !cause_live(&wait->cause)) {
		/* who reads for others wakes the one that waits first of all */
		if (thread->alone_read && !thread->handed)
			thread->alone = 0;
		return 0;
	}
	r = &io->spare;
	io->pid_tgid = pid_tgid;
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = FLOW_HANDOVER;
	r->start_ns = wait->since_ns;
	r->end_ns = now;
	r->conn_id = thread->alone;
	r->parent = wait->cause.id;
	r->evidence = FLOW_EVIDENCE_WAKEUP;
	tell_process(io, r);
	r->cgroup_id = bpf_get_current_cgroup_id();
	thread->handed = wait->cause.id;
	wait->cause.id = 0;
	hand_over(r);
	return 0;
}

static __always_inline int futex(const struct pt_regs *regs)
{
	__u32 command = ARG2(regs) & FUTEX_COMMAND;
	struct wait wait = {}, *before;
	struct wait_key key;
	struct runtime *runtime;
	struct thread *thread;
	__u64 pid_tgid;

	if (!cfg_link)
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	key.futex = ARG1(regs);
	key.tgid = pid_tgid >> 32;
	if (command == FUTEX_WAKE || command == FUTEX_WAKE_BITSET)
		return woken(pid_tgid, &key);
	if (command != FUTEX_WAIT && command != FUTEX_WAIT_BITSET)
		return 0;
	thread = thread_of((__u32)pid_tgid);
	if (thread && thread->alone_read)
		thread->alone = 0;
	/* what a carrier waits for is its next task */
	if (!thread || thread->in_hand.count != 1 || thread->carries)
		return 0;
	runtime = runtime_of(pid_tgid);
	if (!runtime || key.futex - runtime->locks < runtime->locks_size)
		return 0;
	wait.tid = (__u32)pid_tgid;
	if (runtime->kind == RUNTIME_THREADS) {
		/* A mutex of the C library. Condition variables wait for a bit set. */
		if (command == FUTEX_WAIT)
			return 0;
		/* A thread of the JVM waits for a result on a condition of its own. */
		before = bpf_map_lookup_elem(&waits, &key);
		wait.shared = before && (before->shared || before->tid != wait.tid);
	}
	causes_only(&thread->in_hand, &wait.cause);
	if (runtime->kind == RUNTIME_CPYTHON && ARG4(regs)) {
		__u32 *calls, tid;

		calls = cause_calls(&wait.cause, &tid);
		wait.answer = calls && !calls_count(calls);
	}
	wait.since_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&waits, &key, &wait, BPF_ANY);
	return 0;
}

/* ---- runtimes that tell ------------------------------------------------------------------ */

/*
 * Node's preload and the JVM's agent (deploy/) tell for whom a request is about to be sent, in
 * numbers that they give to the requests they serve, by system calls that do nothing.
 */
enum mark_op {
	MARK_SERVE = 1, /* this request is being served from now on */
	MARK_CALL = 2,	/* a request is about to be sent */
};

/* The exchange in hand on a server's connection, or on a stream of it. */
static __always_inline void mark_serve(const struct io *io, const struct context_key *key,
				       __u32 stream)
{
	struct context known = { .cause.sk = io->sk };
	struct stream_entry *e;
	struct conn *c;
	__u64 sk = io->sk;

	if (stream) {
		c = conn_of(sk, io->ino);
		e = stream_of(sk, stream);
		if (!c || !e || !(e->flags & FLOW_FLAG_IN_HAND))
			return;
		known.cause.index = fate_index(stream, e->fate);
		known.cause.id = stream_exchange(c, e);
	} else {
		/* found by its connection, now that it is the only one there */
		known.cause.index = io->ino;
		bpf_map_update_elem(&contexts, key, &known, BPF_ANY);
		context_cause(key, &known.cause);
	}
	if (known.cause.id)
		bpf_map_update_elem(&contexts, key, &known, BPF_ANY);
	else
		bpf_map_delete_elem(&contexts, key);
}

/* Taken as it is by link_call(); of a call that is nobody's, nothing else is asked. */
static __always_inline void mark_call(const struct io *io, const struct context_key *key,
				      __u32 stream)
{
	struct hint hint = { .ino = io->ino, .evidence = FLOW_EVIDENCE_ASYNC }, *old;
	struct context *known = bpf_map_lookup_elem(&contexts, key);
	__u64 sk = io->sk;

	if (known)
		hint.cause = known->cause;
	old = bpf_map_lookup_elem(&hints, &sk);
	if (old && old->ino == io->ino && old->evidence == FLOW_EVIDENCE_CONNECT) {
		struct cause connected = old->cause;

		bpf_map_delete_elem(&hints, &sk);
		link_calls(&connected, 0); /* connecting counted as its call */
	}
	sk = hint_key(sk, stream);
	bpf_map_update_elem(&hints, &sk, &hint, BPF_ANY);
}

static __always_inline int marked(__u32 op, __u32 fd, __u32 stream, __u64 number)
{
	struct context_key key = { .context = number };
	struct io *io;

	key.tgid = bpf_get_current_pid_tgid() >> 32;
	if (op == MARK_SERVE)
		bpf_map_delete_elem(&contexts, &key); /* of a process that had the same id */
	io = io_get();
	if (!io || !sock_of_fd(io, fd))
		return 0;
	if (op == MARK_SERVE)
		mark_serve(io, &key, stream);
	else if (op == MARK_CALL)
		mark_call(io, &key, stream);
	return 0;
}

/*
 * deploy/node/wirespan.cjs reads from /dev/null at this offset, and the first buffer is a
 * node_mark.
 */
#define NODE_MARK_OFFSET 0x574952455350ULL /* "WIRESP" */
#define NODE_MARK_MAGIC 0x77736e31	   /* "wsn1" */

struct node_mark {
	__u32 magic;
	__u32 op; /* enum mark_op */
	__u32 fd;
	__u32 stream; /* HTTP/2; 0: none */
	__u32 number; /* of the request that is served; 0: none */
	__u32 thread; /* that gave the number */
};

static __always_inline int node_marks(const struct pt_regs *regs)
{
	struct user_iovec first;
	struct node_mark mark;

	if (ARG4(regs) != NODE_MARK_OFFSET || !cfg_link ||
	    bpf_probe_read_user(&first, sizeof(first), (void *)ARG2(regs)) ||
	    first.len != sizeof(mark) ||
	    bpf_probe_read_user(&mark, sizeof(mark), (void *)first.base) ||
	    mark.magic != NODE_MARK_MAGIC)
		return 0;
	return marked(mark.op, mark.fd, mark.stream, (__u64)mark.thread << 32 | mark.number);
}

/*
 * deploy/java's agent flushes nothing: a length that the kernel rounds up to 0, and an address
 * that is a descriptor and a number.
 */
#define JVM_MARK_LENGTH (-0x570ULL) /* less enum mark_op */
#define JVM_MARK_FD 44
#define JVM_MARK_NUMBER 12

static __always_inline int jvm_marks(const struct pt_regs *regs)
{
	__u64 op = JVM_MARK_LENGTH - ARG2(regs), at = ARG1(regs);

	if ((op != MARK_SERVE && op != MARK_CALL) || !cfg_link)
		return 0;
	return marked(op, at >> JVM_MARK_FD, 0, (__u32)(at >> JVM_MARK_NUMBER));
}

/* ---- CPython ---------------------------------------------------------------------------- */

/* The thread that accepts a socket, if that can tell something. */
static __always_inline struct thread *accepting(void)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct runtime *runtime = runtime_of(pid_tgid);

	if (!runtime || runtime->kind != RUNTIME_CPYTHON)
		return NULL;
	return thread_make(runtime, (__u32)pid_tgid);
}

static __always_inline __u64 accepted_key(__u32 tid, __u16 number)
{
	return (__u64)tid << 32 | number % ACCEPTED_MOST;
}

/*
 * A socket is accepted: the contexts that are made from now on where it was accepted belong to
 * it. Where nothing ran then (uvloop), those that are made in this turn, by connection_made():
 * all that comes is accepted and read first, and then the protocols are told of their
 * connections, one after the other.
 */
static __always_inline void accepted(struct thread *thread, const struct io *io)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct context_key key = { accepted_key((__u32)pid_tgid, thread->accepts), pid_tgid >> 32,
				   ACCEPTED };
	struct context which = { .cause = { .sk = io->sk, .index = io->ino } };
	struct runtime *runtime = runtime_of(pid_tgid);
	__u32 in = 0;

	if (runtime && runtime->interpreter)
		in = context_mark(python_context(runtime, thread));
	if (thread->accepted && !thread->accepted_told && in == thread->accepted_in)
		thread->accepted = SEVERAL;
	else
		thread->accepted = io->sk;
	thread->accepted_ino = io->ino;
	thread->accepted_in = in;
	thread->accepted_told = 0;
	if (in)
		return;
	bpf_map_update_elem(&contexts, &key, &which, BPF_ANY);
	thread->accepts++;
}

/* connection_made() has been called for a transport: of which of the sockets of this turn? */
static __always_inline void made(struct thread *thread, __u32 transport, struct context *copy)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct context_key key = { .tgid = pid_tgid >> 32, .kind = ACCEPTED };
	struct context *which;

	if (transport != thread->made_for)
		thread->made++;
	thread->made_for = transport;
	key.context = accepted_key((__u32)pid_tgid, thread->made - 1);
	which = bpf_map_lookup_elem(&contexts, &key);
	if (which && thread->made <= thread->accepts &&
	    thread->accepts - thread->made < ACCEPTED_MOST)
		copy->cause = which->cause;
	else
		copy->channel = NOBODYS;
}

/* Is what begins now begun for the request that this turn began with? */
static __always_inline int for_request(const struct thread *thread, __u32 mark, int known)
{
	/* a loop may begin tasks for others in this turn, too, each from its own (trio) */
	if (!thread->request || (thread->read_in && thread->read_in != mark))
		return 0;
	return thread->messages == 1 ? !known : !thread->doubt;
}

/*
 * PyContext_CopyCurrent(), Context() and the like return a new context: it runs for whom
 * the current one runs, or, where nobody knows, for what this turn began with.
 */
HOOK("uprobe.multi", python_copied, struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct context_key key = { .tgid = pid_tgid >> 32 };
	struct runtime *runtime;
	struct thread *thread;
	struct context copy = {}, *before;
	int known = 0, passes = QUEUED_NOT, called = CALLED_NOT;
	__u64 request = 0, transport = 0;
	__u32 mark;

	if (!cfg_ready || !RETURNED(ctx))
		return;
	thread = thread_of((__u32)pid_tgid);
	runtime = runtime_of(pid_tgid);
	if (!thread || !runtime || runtime->kind != RUNTIME_CPYTHON)
		return;
	key.context = python_context(runtime, thread);
	mark = context_mark(key.context);
	if (key.context)
		known = context_cause(&key, &copy.cause);
	if (runtime->frame && runtime->tornado)
		passes = queued(runtime, thread->python, &request);
	if (runtime->frame && !copy.cause.sk && thread->accepted && !thread->accepted_in)
		called = protocol_called(runtime, thread->python, &transport);
	if (passes == QUEUED_OUT) {
		struct context_key waited = { request, key.tgid, REQUEST };

		__builtin_memset(&copy, 0, sizeof(copy));
		before = bpf_map_lookup_elem(&contexts, &waited);
		if (before)
			copy = *before;
		else
			copy.channel = NOBODYS;
		bpf_map_delete_elem(&contexts, &waited);
	} else if (known == NOBODYS) {
		copy.channel = NOBODYS;
	} else if (copy.cause.sk) {
		/* it runs for whom the current one does */
	} else if (called == CALLED_MADE) {
		made(thread, context_mark(transport), &copy);
	} else if (thread->accepted && called == CALLED_NOT &&
		   (!thread->accepted_in || thread->accepted_in == mark)) {
		/* in uvloop's turn, what was heard since may be meant, or another of several */
		if (thread->accepted_in || (!thread->messages && thread->accepted != SEVERAL)) {
			copy.cause.sk = thread->accepted;
			copy.cause.index = thread->accepted_ino;
			thread->accepted_told = 1;
		}
	} else if (for_request(thread, mark, known)) {
		copy.cause = thread->last;
	}
	if (thread->request == REQUEST_READ) {
		thread->request = REQUEST_COPIED;
		if (thread->doubt)
			thread->doubt--;
	}
	key.context = RETURNED(ctx);
	if (thread->accepted_in == context_mark(key.context)) /* that one is gone */
		thread->accepted = 0;
	bpf_map_update_elem(&contexts, &key, &copy, BPF_ANY);
	if (passes == QUEUED_IN) { /* the timer's copy runs for whom the request will */
		key.context = request;
		key.kind = REQUEST;
		if (!copy.cause.sk)
			copy.channel = NOBODYS;
		bpf_map_update_elem(&contexts, &key, &copy, BPF_ANY);
	}
}

/* ---- Go --------------------------------------------------------------------------------- */

/*
 * ABIInternal of Go 1.17 and later: arguments and g are in registers, GO_ARG1() and so on.
 * The probes are in the functions' prologues, where all of them are still in place.
 */
static __always_inline struct runtime *go_runtime(__u32 tgid)
{
	struct runtime *runtime = bpf_map_lookup_elem(&runtimes, &tgid);

	return cfg_ready && runtime && runtime->kind == RUNTIME_GO ? runtime : NULL;
}

/*
 * The socket of a net.Conn at `at`. It is a *net.TCPConn, whose first word points to a netFD,
 * whose Sysfd is behind a mutex of 16 bytes (Go 1.9 to 1.26).
 */
static __always_inline struct io *go_socket(__u64 at)
{
	struct io *io = io_get();
	__u32 fd = 0;

	if (!io || bpf_probe_read_user(&at, sizeof(at), (void *)(at + 8)) ||
	    bpf_probe_read_user(&at, sizeof(at), (void *)at) ||
	    bpf_probe_read_user(&fd, sizeof(fd), (void *)(at + 16)) || !sock_of_fd(io, fd))
		return NULL;
	return io;
}

/* net/http.(*persistConn).roundTrip: another goroutine will write the request. */
HOOK("uprobe.multi", go_round_trip, struct pt_regs *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct runtime *runtime = go_runtime(tgid);
	struct hint hint = {};
	struct io *io;
	__u64 sk;

	if (!runtime || !runtime->round_trip)
		return;
	io = go_socket(GO_ARG1(ctx) + runtime->round_trip);
	if (!io)
		return;
	if (goroutine_cause(runtime, &hint.cause, GO_G(ctx), tgid, 1))
		hint.evidence = FLOW_EVIDENCE_GOROUTINE;
	hint.ino = io->ino;
	sk = io->sk;
	bpf_map_update_elem(&hints, &sk, &hint, BPF_ANY);
}

/* The id of a stream of grpc-go; `embedded`: where in it its *Stream is, plus 1. */
static __always_inline __u32 grpc_stream(const struct runtime *runtime, __u64 at, __u32 embedded)
{
	__u32 id = 0;

	if (embedded && bpf_probe_read_user(&at, sizeof(at), (void *)(at + embedded - 1)))
		return 0;
	bpf_probe_read_user(&id, sizeof(id), (void *)(at + runtime->grpc_stream_id));
	return id;
}

/* grpc.(*Server).handleStream(ServerTransport, stream): this goroutine serves it. */
HOOK("uprobe.multi", go_grpc_serve, struct pt_regs *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct runtime *runtime = go_runtime(tgid);
	struct context_key key = { .tgid = tgid, .kind = GOROUTINE };
	struct context known = {};
	struct stream_entry *e;
	__u64 sk, parent;
	struct conn *c;
	struct io *io;
	__u32 id;

	if (!runtime || !runtime->grpc_server_conn)
		return;
	io = go_socket(GO_ARG3(ctx) + runtime->grpc_server_conn);
	if (!io)
		return;
	id = grpc_stream(runtime, GO_ARG4(ctx), runtime->grpc_server_stream);
	sk = io->sk;
	c = conn_of(sk, io->ino);
	e = stream_of(sk, id);
	key.context = goroutine_of(runtime, GO_G(ctx), &parent);
	if (!c || !e || !key.context || !(e->flags & FLOW_FLAG_IN_HAND))
		return;
	known.cause.sk = sk;
	known.cause.index = fate_index(id, e->fate);
	known.cause.id = stream_exchange(c, e);
	bpf_map_update_elem(&contexts, &key, &known, BPF_ANY);
}

/*
 * http2Client.Write(stream): the goroutine that made a call sends its message. The header of
 * the call is written by another one, before this or after.
 */
HOOK("uprobe.multi", go_grpc_write, struct pt_regs *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct runtime *runtime = go_runtime(tgid);
	struct hint hint = {};
	struct io *io;
	__u64 sk;
	__u32 id;

	if (!runtime || !runtime->grpc_client_conn)
		return;
	if (!goroutine_cause(runtime, &hint.cause, GO_G(ctx), tgid, 1) || !hint.cause.id)
		return;
	io = go_socket(GO_ARG1(ctx) + runtime->grpc_client_conn);
	if (!io)
		return;
	id = grpc_stream(runtime, GO_ARG2(ctx), runtime->grpc_client_stream);
	sk = io->sk;
	hint.evidence = FLOW_EVIDENCE_GOROUTINE;
	hint.ino = io->ino;
	hint_leave(sk, id, &hint);
}

/*
 * What one goroutine hands to another that waits for it, over a channel: the receiver runs for
 * whom the sender did, until it gets the next thing over this channel. runtime.sudog begins
 * with the goroutine that waits, runtime.hchan with how many elements wait and may wait.
 */
static __always_inline int go_handed(struct pt_regs *ctx, int receiver_waits)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct runtime *runtime = go_runtime(tgid);
	struct context_key key = { .tgid = tgid, .kind = GOROUTINE };
	struct context handed = { .channel = GO_ARG1(ctx) };
	__u64 current = GO_G(ctx), waiting, parent, room = 0;
	struct context *known;
	int found;

	if (!runtime || bpf_probe_read_user(&waiting, sizeof(waiting), (void *)GO_ARG2(ctx)))
		return 0;
	/*
	 * A channel with a buffer: from a full one another's element is received than that of who
	 * waits, and what lies in it is received unseen, so nobody knew until when this one holds.
	 */
	if (bpf_probe_read_user(&room, sizeof(room), (void *)(GO_ARG1(ctx) + 8)) || room)
		return 0;
	key.context = goroutine_of(runtime, receiver_waits ? waiting : current, &parent);
	if (!key.context)
		return 0;
	known = bpf_map_lookup_elem(&contexts, &key);
	if (known && known->channel == INHERITED) {
		if (cause_live(&known->cause))
			return 0;
	} else if (known && known->channel != handed.channel) {
		return 0; /* it serves, or works for another channel */
	}
	if (!known &&
	    goroutine_cause(runtime, &handed.cause, receiver_waits ? waiting : current, tgid, 1))
		return 0; /* it was started for an exchange */
	found = goroutine_cause(runtime, &handed.cause, receiver_waits ? current : waiting, tgid,
				1);
	if (!found)
		__builtin_memset(&handed.cause, 0, sizeof(handed.cause));
	if (known || handed.cause.id)
		bpf_map_update_elem(&contexts, &key, &handed, BPF_ANY);
	return 0;
}

/* runtime.send(hchan, sudog): the receiver waits. */
HOOK("uprobe.multi", go_send, struct pt_regs *ctx)
{
	go_handed(ctx, 1);
}

/* runtime.recv(hchan, sudog): the sender waits. */
HOOK("uprobe.multi", go_recv, struct pt_regs *ctx)
{
	go_handed(ctx, 0);
}

#endif
