/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * link.bpf.h - for which exchange was a request made? Decided as the request is sent, from
 * what runs there: the thread, CPython's context, the goroutine. No answer beats a wrong one.
 *
 * A thread has an exchange in hand from the end of its request's head on until it is over. An
 * exchange is idle while no call made for it is under way. In an event loop a message can have
 * been sent for whoever was heard last in this turn, and for those that are idle (they may
 * have waited for a timer or a free connection); if that is one exchange, it is it.
 */
#ifndef WIRESPAN_LINK_H
#define WIRESPAN_LINK_H

#include "thread.bpf.h"

static __always_inline void causes_add(struct causes *set, const struct cause *cause, int by)
{
	/* sums, for Linux before 5.12 adds and does nothing else at once */
	__sync_fetch_and_add(&set->sk, by > 0 ? cause->sk : -cause->sk);
	__sync_fetch_and_add(&set->index, by > 0 ? cause->index : -cause->index);
	__sync_fetch_and_add(&set->id, by > 0 ? cause->id : -cause->id);
	__sync_fetch_and_add(&set->count, by);
}

/* The one exchange of a set. */
static __always_inline void causes_only(const struct causes *set, struct cause *cause)
{
	cause->sk = set->sk;
	cause->index = set->index;
	cause->id = set->id;
}

static __always_inline __u64 exchange_id(const struct flow_record *r)
{
	return flow_exchange_id(r->conn_id, r->start_ns, r->request_seq);
}

/* Calls that are under way, of a count that threads change on their own: it may be below 0. */
static __always_inline __u32 calls_count(const __u32 *calls)
{
	return *calls & 0x7fffffff;
}

/* Of an exchange under way: its count of calls, and its thread. NULL if it is over. */
static __always_inline __u32 *cause_calls(const struct cause *cause, __u32 *tid)
{
	__u64 sk = cause->sk;
	struct conn *c = bpf_map_lookup_elem(&conns, &sk);
	struct flow_record *r;

	if (!c || !cause->id || c->role != FLOW_SERVER)
		return NULL;
	if (c->rec.protocol == FLOW_PROTO_HTTP2) {
		struct stream_entry *e = stream_of(sk, cause->index);

		if (!e ||
		    flow_exchange_id(c->rec.conn_id, e->start_ns, e->request_seq) != cause->id)
			return NULL;
		*tid = e->request_tid;
		return &e->calls;
	}
	r = slot_of(c, sk, cause->index);
	if (!r || !(r->flags & FLOW_FLAG_IN_HAND) || exchange_id(r) != cause->id)
		return NULL;
	*tid = r->request_tid;
	return &r->calls;
}

/* Tells a context apart from the few that run in the same turn: of its address what varies. */
static __always_inline __u32 context_mark(__u64 context)
{
	return context >> 4;
}

/*
 * For whom does a context run? Returns 1 if it is known, then cause->id may yet be 0: for
 * nobody; NOBODYS if that stays so. A context that belongs to a connection runs for the one
 * exchange on it.
 */
static __always_inline int context_cause(const struct context_key *key, struct cause *cause)
{
	struct context *known = bpf_map_lookup_elem(&contexts, key);
	struct conn *c;
	__u64 sk;

	if (!known)
		return 0;
	*cause = known->cause;
	if (cause->id || !cause->sk)
		return known->channel == NOBODYS ? NOBODYS : 1;
	sk = cause->sk;
	c = bpf_map_lookup_elem(&conns, &sk);
	if (!c || c->ino != cause->index || c->role != FLOW_SERVER ||
	    c->rec.protocol == FLOW_PROTO_HTTP2 || c->started - c->answered != 1 ||
	    c->inline_index != c->answered || !(c->rec.flags & FLOW_FLAG_IN_HAND))
		return 1;
	cause->index = fate_index(c->answered, fate_of(&c->rec));
	cause->id = exchange_id(&c->rec);
	return 1;
}

static __always_inline int cause_live(const struct cause *cause)
{
	__u32 tid;

	return cause_calls(cause, &tid) != NULL;
}

/*
 * For whom does a goroutine run: what it read itself, was handed over a channel, or, where
 * that may be asked for, was started for.
 */
POINTERS int goroutine_cause(struct runtime *runtime, struct cause *cause, __u64 g, __u32 tgid,
			     __u32 inherit)
{
	struct context_key key = { .tgid = tgid, .kind = GOROUTINE };
	struct context *known;
	struct io *io;
	__u64 goid;

	if (!runtime || !cause || !g ||
	    bpf_probe_read_user(&key.context, sizeof(key.context), (void *)(g + runtime->goid)))
		return 0;
	goid = key.context;
	if (!goid)
		return 0;
	known = bpf_map_lookup_elem(&contexts, &key);
	if (known) {
		*cause = known->cause;
		return !known->channel || cause_live(cause);
	}
	if (!inherit || !runtime->parent_goid ||
	    bpf_probe_read_user(&key.context, sizeof(key.context),
				(void *)(g + runtime->parent_goid)) ||
	    !key.context)
		return 0;
	known = bpf_map_lookup_elem(&contexts, &key);
	if (!known)
		return 0;
	*cause = known->cause;
	io = io_get();
	if (!io || !cause_live(cause))
		return 0;
	io->inherited.cause = *cause;
	io->inherited.channel = INHERITED;
	/* the parent may serve another exchange by the next time */
	key.context = goid;
	bpf_map_update_elem(&contexts, &key, &io->inherited, BPF_ANY);
	return 1;
}

/* The mark under which a hint for one stream of a connection is kept. */
static __always_inline __u64 hint_key(__u64 sk, __u32 stream)
{
	return stream ? (sk ^ (__u64)stream << 32) | 1 : sk;
}

/*
 * A CPython server may begin a task as soon as it has read a request, or wake one later, when
 * others have been read as well. One request without a context copied at once tells the latter.
 */
#define DOUBT 256

static __always_inline void request_over(struct thread *thread)
{
	if (thread->request == REQUEST_READ)
		thread->doubt = DOUBT;
	thread->request = 0;
}

static __always_inline void heard_one(struct thread *thread)
{
	if (thread->messages < 2)
		thread->messages++;
}

/*
 * The head of a request has been read: its thread, or what runs on it, has it in hand. http1:
 * how many the connection has under way, with this one; a goroutine or a virtual thread that read
 * several at once serves one after the other, unseen, and calls for nobody who could be named.
 */
GLOBAL_IO(link_serve, (index, id, http1), __u64 index, __u64 id, __u32 http1)
{
	struct cause cause = { .sk = 0, .index = index, .id = id };
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct thread *thread;

	if (!runtime)
		return 0;
	cause.sk = io->sk;
	runtime->serves = 1;
	thread = thread_make(runtime, (__u32)io->pid_tgid);
	if (!thread)
		return 0;
	if (http1 && (runtime->kind == RUNTIME_GO || virtual_thread(io))) {
		struct context_key key = { .tgid = io->pid_tgid >> 32, .kind = GOROUTINE };
		struct context known = { .cause = cause };
		__u64 parent;

		if (http1 > 1)
			known.cause.id = 0;
		key.context = runtime->kind == RUNTIME_GO
				      ? goroutine_of(runtime, current_g(runtime), &parent)
				      : io->virtual;
		if (key.context)
			bpf_map_update_elem(&contexts, &key, &known, BPF_ANY);
	}
	causes_add(&thread->in_hand, &cause, 1);
	causes_add(&thread->idle, &cause, 1);
	if (thread->in_hand.count > 1)
		thread->loop = 1;
	thread->polled = 0;
	thread->last = cause;
	heard_one(thread);
	request_over(thread);
	thread->request = REQUEST_READ;
	if (runtime->kind == RUNTIME_CPYTHON && runtime->interpreter)
		thread->read_in = context_mark(python_context(runtime, thread));
	return 1;
}

/* An exchange is over that a thread had in hand. */
static __always_inline int link_served(__u64 sk, __u64 index, __u64 id, __u32 tid, __u32 calls)
{
	struct cause cause = { sk, index, id };
	struct thread *thread = thread_of(tid);

	if (!thread)
		return 0;
	causes_add(&thread->in_hand, &cause, -1);
	if (!calls)
		causes_add(&thread->idle, &cause, -1);
	return 0;
}

/* Event loop: who can have sent this? */
static __always_inline int loop_cause(const struct runtime *runtime, const struct thread *thread,
				      struct cause *cause)
{
	const struct causes *idle = &thread->idle;

#ifdef OLD_KERNEL
	return 0; /* there is no telling who waits for nobody: link_calls() */
#endif
	if (!(runtime->event_loop & EVENT_LOOP_TURNS))
		return 0;
	if (thread->last.id) {
		*cause = thread->last;
		if (idle->count == 0 || (idle->count == 1 && idle->id == cause->id))
			return FLOW_EVIDENCE_LOOP;
	} else if (runtime->event_loop & EVENT_LOOP_TIMERS && idle->count == 1) {
		causes_only(idle, cause);
		return FLOW_EVIDENCE_LOOP;
	}
	cause->id = 0;
	return 0;
}

/* A thread that reads one request and then blocks, if it waits at all, works for that one. */
static __always_inline int thread_cause(const struct thread *thread, struct cause *cause)
{
	if (thread->in_hand.count != 1 || thread->loop || thread->polled)
		return 0;
	causes_only(&thread->in_hand, cause);
	return FLOW_EVIDENCE_THREAD;
}

/*
 * For whom does this thread run now, as far as a request of the protocol tells? Sets io->cause
 * and returns enum flow_evidence.
 */
GLOBAL_IO(link_current, (protocol), __u32 protocol)
{
	__u32 tgid, tid, evidence = 0;
	struct runtime *runtime;
	struct thread *thread;
	struct cause *cause; /* the stack has no room for one */

	cause = &io->cause;
	cause->id = 0;
	tgid = io->pid_tgid >> 32;
	tid = (__u32)io->pid_tgid;
	runtime = runtime_of(io->pid_tgid);
	if (!runtime || runtime->kind == RUNTIME_OPAQUE)
		return 0;
	if (runtime->kind == RUNTIME_GO) {
		/* Go's clients of HTTP have goroutines that write for others */
		if (protocol != FLOW_PROTO_HTTP2 &&
		    goroutine_cause(runtime, cause, current_g(runtime), tgid,
				    protocol != FLOW_PROTO_HTTP1))
			evidence = FLOW_EVIDENCE_GOROUTINE;
		goto found;
	}
	if (runtime->kind == RUNTIME_CPYTHON && runtime->interpreter) {
		struct context_key key = { .tgid = tgid };

		/* a thread of a pool may serve nobody and yet run in a context */
		thread = thread_make(runtime, tid);
		if (!thread)
			return 0;
		key.context = python_context(runtime, thread);
		if (key.context && context_cause(&key, cause)) {
			evidence = FLOW_EVIDENCE_CONTEXT;
			goto found;
		}
		evidence = thread_cause(thread, cause);
		if (!thread->in_hand.count && thread->work.id) {
			*cause = thread->work;
			evidence = FLOW_EVIDENCE_QUEUE;
		}
		goto found;
	}
	/* a virtual thread may go on on one that has read nothing yet */
	thread = runtime->event_loop & EVENT_LOOP_CHECKS ? thread_make(runtime, tid)
							 : thread_of(tid);
	if (thread && thread->carries && virtual_thread(io)) {
		struct context_key key = { io->virtual, tgid, GOROUTINE };
		struct context *known = bpf_map_lookup_elem(&contexts, &key);

		if (known) {
			*cause = known->cause;
			evidence = FLOW_EVIDENCE_THREAD;
		}
		goto found;
	}
	if (!thread || !thread->in_hand.count)
		return 0;
	if (runtime->kind != RUNTIME_NODE)
		evidence = thread_cause(thread, cause);
	if (!evidence)
		evidence = loop_cause(runtime, thread, cause);
found:
	return cause->id ? evidence : 0;
}

/* One call more, or one less, is under way for an exchange. */
static __always_inline int link_calls(struct cause *cause, __u32 more)
{
	struct thread *thread;
	__u32 *calls, was, tid = 0;

	if (!cause)
		return 0;
	calls = cause_calls(cause, &tid);
	if (!calls)
		return 0;
#ifdef OLD_KERNEL
	/* Not in one step: now and then `idle` is wrong, which is of no use there (loop_cause()). */
	was = *calls;
	__sync_fetch_and_add(calls, more ? 1 : -1);
#else
	was = more ? __sync_fetch_and_add(calls, 1) : __sync_fetch_and_add(calls, -1);
#endif
	if (was != !more)
		return 0;
	thread = thread_of(tid);
	if (thread)
		causes_add(&thread->idle, cause, more ? -1 : 1);
	return 0;
}

/* A thread that serves nobody makes a request: whom it wakes with the answer may tell more. */
static __always_inline int link_alone(struct io *io, const struct runtime *runtime, __u64 exchange)
{
	struct thread *thread;

	if (runtime->kind != RUNTIME_THREADS && runtime->kind != RUNTIME_CPYTHON)
		return 0;
	thread = thread_make(runtime, (__u32)io->pid_tgid);
	if (!thread || thread->in_hand.count)
		return 0;
	/* by the time the answer comes a carrier may run, and wake, for another virtual thread */
	if (thread->carries && (!runtime->java_number || virtual_thread(io)))
		return 0;
	thread->alone = exchange;
	thread->alone_ns = thread->handed = thread->alone_read = 0;
	return FLOW_EVIDENCE_WAKEUP;
}

/* How many calls are under way for io->cause; -1 if that is over. */
GLOBAL_IO(calls_of_cause, ())
{
	__u32 *calls, tid;

	calls = cause_calls(&io->cause, &tid);
	return calls ? (int)calls_count(calls) : -1;
}

/* One more is under way. */
GLOBAL_IO(call_of_cause, ())
{
	return link_calls(&io->cause, 1);
}

/* One less. */
GLOBAL_IO(call_less, ())
{
	return link_calls(&io->cause, 0);
}

/*
 * A request begins that this host makes on io->sk, in HTTP/2 on a stream of it; `exchange` is
 * its flow_exchange_id(). Sets io->cause and returns enum flow_evidence; the exchange it was made
 * for has one more call under way.
 */
GLOBAL_IO(link_call, (protocol, stream, exchange), __u32 protocol, __u32 stream, __u64 exchange)
{
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct hint *hint;
	int evidence;
	__u64 sk;

	io->cause.id = 0;
	if (!runtime || !runtime->serves) /* for whom should it ask? */
		return 0;
	sk = hint_key(io->sk, stream);
	hint = bpf_map_lookup_elem(&hints, &sk);
	if (!hint && stream) { /* the connection's first request may be a stream's */
		sk = io->sk;
		hint = bpf_map_lookup_elem(&hints, &sk);
		if (hint && hint->evidence == FLOW_EVIDENCE_ASYNC)
			hint = NULL; /* of several streams, which one is meant? */
	}
	if (hint && hint->ino == io->ino) {
		io->cause = hint->cause;
		evidence = hint->evidence;
		bpf_map_delete_elem(&hints, &sk);
		if (evidence == FLOW_EVIDENCE_ASYNC && !io->cause.id)
			return 0; /* its runtime says that it is nobody's */
		if (evidence != FLOW_EVIDENCE_CONNECT)
			goto found;
		if (stream && runtime->event_loop & EVENT_LOOP_CHECKS)
			call_less(io); /* threads share it: another may have been first */
		else if (calls_of_cause(io) >= 0)
			return evidence; /* connecting counted as the call */
	}
	evidence = link_current(io, protocol);
	/*
	 * Threads share a connection of HTTP/2, and one may write for others, after itself. A
	 * thread makes one call at a time.
	 */
	if ((evidence == FLOW_EVIDENCE_THREAD || evidence == FLOW_EVIDENCE_QUEUE) && stream &&
	    calls_of_cause(io) > 0)
		evidence = 0;
found:
	if (!io->cause.id || !evidence) {
		io->cause.id = 0;
		if (!stream)
			return link_alone(io, runtime, exchange);
		/* a connection of HTTP/2 is shared: who writes need not be who asks */
		return runtime->kind == RUNTIME_CPYTHON ? FLOW_EVIDENCE_WAKEUP : 0;
	}
	/* it may be over: what outlives the response still belongs to it */
	call_of_cause(io);
	return evidence;
}

/* The answer to a request without a parent comes: is it yet the thread's own? */
GLOBAL_IO(link_answered, (exchange), __u64 exchange)
{
	struct thread *thread;

	thread = thread_of((__u32)io->pid_tgid);
	if (thread && thread->alone == exchange)
		thread->alone_ns = io->start_ns;
	return 0;
}

/*
 * A stream of this host's own has its answer. exchange: nobody knows for whom it was; 0: that is
 * known. gRPC's C library has one thread write for another, and one that serves nobody read the
 * answer; that one wakes who waits for it, before it waits itself. Of two answers that come at
 * once there is no telling who was woken for which.
 */
GLOBAL_IO(link_stream_answered, (exchange), __u64 exchange)
{
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct thread *thread;

	if (!runtime || !runtime->serves || runtime->kind != RUNTIME_CPYTHON)
		return 0;
	thread = thread_make(runtime, (__u32)io->pid_tgid);
	if (!thread)
		return 0;
	if (thread->alone_read && thread->alone_ns == io->end_ns)
		exchange = 0;
	thread->alone = exchange;
	thread->alone_ns = io->end_ns;
	thread->handed = 0;
	thread->alone_read = 1;
	return 0;
}

/* A hint for a stream that has begun by now. */
static __always_inline void hint_take(__u64 sk, struct stream_entry *e)
{
	__u64 key = hint_key(sk, e->id);
	struct hint *hint = bpf_map_lookup_elem(&hints, &key);

	if (!hint || e->cause.id)
		return;
	e->cause = hint->cause;
	e->evidence = hint->evidence;
	bpf_map_delete_elem(&hints, &key);
	if (e->cause.id)
		link_calls(&e->cause, 1);
}

/* Whose a stream is may be told just while it begins: both then look for the other. */
static __always_inline void hint_leave(__u64 sk, __u32 stream, const struct hint *hint)
{
	__u64 key = hint_key(sk, stream);
	struct stream_entry *e;

	bpf_map_update_elem(&hints, &key, hint, BPF_ANY);
	e = stream_of(sk, stream);
	if (e)
		hint_take(sk, e);
}

/* Does this thread poll, in a program where such a thread connects for whoever waits longest? */
static __always_inline int polls(const struct runtime *runtime, __u32 tid)
{
	struct thread *thread;

	if (!(runtime->event_loop & EVENT_LOOP_CHECKS))
		return 0;
	thread = thread_of(tid);
	return !thread || (thread->polls && !thread->carries);
}

/* A connection is being opened: its first request is for whom this thread runs now. */
GLOBAL_IO(link_connect, ())
{
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct hint hint = {};
	__u64 sk;

	if (!runtime || !(runtime->event_loop & EVENT_LOOP_CONNECTS) ||
	    polls(runtime, (__u32)io->pid_tgid))
		return 0;
	if (!link_current(io, FLOW_PROTO_UNKNOWN) || !cause_live(&io->cause))
		return 0;
	sk = io->sk;
	hint.cause = io->cause;
	hint.ino = io->ino;
	hint.evidence = FLOW_EVIDENCE_CONNECT;
	if (bpf_map_update_elem(&hints, &sk, &hint, BPF_ANY))
		return 0;
	link_calls(&io->cause, 1);
	return 0;
}

/*
 * One byte was asked for, and there was none: so the JDK's HttpClient looks whether a connection
 * from its pool can be used again, in the thread that will wait for the answer, while others
 * will write the request. It does so as well when it puts one back, for nobody.
 */
GLOBAL_IO(link_looked, ())
{
	struct hint hint = { .evidence = FLOW_EVIDENCE_CHECKOUT }, *before;
	struct runtime *runtime = runtime_of(io->pid_tgid);
	struct conn *c;
	__u64 sk;

	if (!runtime || !runtime->serves || !(runtime->event_loop & EVENT_LOOP_CHECKS))
		return 0;
	sk = io->sk;
	c = bpf_map_lookup_elem(&conns, &sk);
	if (!c || c->ino != io->ino || c->role != FLOW_CLIENT || c->started != c->answered ||
	    c->rec.protocol != FLOW_PROTO_HTTP1)
		return 0;
	before = bpf_map_lookup_elem(&hints, &sk);
	if (before && before->ino == io->ino && before->evidence != FLOW_EVIDENCE_CHECKOUT)
		return 0;
	if (link_current(io, FLOW_PROTO_HTTP1)) {
		hint.cause = io->cause;
		hint.ino = io->ino;
		bpf_map_update_elem(&hints, &sk, &hint, BPF_ANY);
	} else if (before) {
		bpf_map_delete_elem(&hints, &sk);
	}
	return 0;
}

/* A response to a request that was made for an exchange: this turn is that exchange's. */
POINTERS int link_heard(struct io *io, struct cause *cause)
{
	struct thread *thread;

	if (!io || !cause || !cfg_link)
		return 0;
	thread = thread_of((__u32)io->pid_tgid);
	if (!thread)
		return 0;
	thread->last = *cause;
	heard_one(thread);
	request_over(thread);
	return 0;
}

#endif
