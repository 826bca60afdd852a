/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * parsers.c - drives ebpf/protocols/http1.h on the host as ebpf/exchange.bpf.h does in the
 * kernel: windows with carried bytes, content skipped by number, requests and responses
 * paired in order. Sockets, times and identities have no part in it.
 *
 * Window and records live on the heap by themselves, so that AddressSanitizer sees a byte
 * read or written beside them.
 */
#include "parsers.h"

#include <stdlib.h>
#include <string.h>

#define HOST_SLOTS 256 /* requests in flight that find room */

struct host {
	struct h1_stream req;
	struct h1_stream resp;
	struct h1_window *win;
	struct flow_record *slots[HOST_SLOTS]; /* by index modulo HOST_SLOTS; NULL: no room */
	struct flow_record *spare;
	struct flow_record *out;
	struct host_result *result;
	const struct host_options *options;
	const __u8 *next; /* bytes of the segment not yet presented */
	__u64 left;
	__u64 now;
	__u32 seq[2]; /* place in each stream, behind the bytes presented so far */
	__u32 started;
	__u32 answered;
	__u32 most;
	__u8 request; /* the segment belongs to the request stream */
	__u8 flipped; /* who was taken for the server sent the first request */
	__u8 known;
	__u8 confirmed;
	__u8 gone;
};

static void note(struct host *h, int request, __u8 outcome)
{
	__u8 *to = request ? &h->result->request : &h->result->response;

	if (!*to || outcome == HOST_BROKEN)
		*to = outcome;
}

static void give_up(struct host *h, __u8 outcome)
{
	note(h, 1, outcome);
	note(h, 0, outcome);
	h->req.state = h->resp.state = H1_SYNC;
	h->gone = 1;
}

static int in_head(const struct h1_stream *s)
{
	return s->state >= H1_METHOD && s->state <= H1_LINE && s->next != H1_CHUNK &&
	       s->next != H1_TRAILER;
}

static struct flow_record *slot_of(struct host *h, __u32 index)
{
	__u32 ahead = index - h->answered; /* wraps for one that was answered */

	if (ahead >= h->started - h->answered || ahead >= HOST_SLOTS)
		return NULL;
	return h->slots[index % HOST_SLOTS];
}

static void slot_free(struct host *h, __u32 index)
{
	struct flow_record *r = slot_of(h, index);

	if (r)
		h->slots[index % HOST_SLOTS] = NULL;
	free(r);
}

static void answer(struct host *h, __u8 end, __u64 at)
{
	struct flow_record *r = slot_of(h, h->answered);
	int whole = end == FLOW_END_RESPONSE || end == FLOW_END_EOF || end == FLOW_END_UPGRADE;

	if (r) {
		r->end = end;
		r->end_ns = at;
		r->response_body_bytes = h->resp.body_bytes;
		if (h->started - h->answered == 1 && h->req.state != H1_START) {
			r->request_body_bytes = h->req.body_bytes;
			if (whole)
				r->flags |= FLOW_FLAG_EARLY;
		}
		if (r->method == FLOW_METHOD_OTHER)
			r->text_len = H1_METHOD_OFF + H1_METHOD_MAX; /* its text lies at the end */
		if (h->result->records < h->most)
			h->out[h->result->records] = *r;
		h->result->records++;
		slot_free(h, h->answered);
	}
	h->answered++;
}

static void end_all(struct host *h, __u8 end, int by_server)
{
	int first = 1;

	for (; h->answered != h->started; first = 0) {
		struct flow_record *r = slot_of(h, h->answered);

		/* what has not ended its head is no request yet */
		if (h->started - h->answered == 1 && in_head(&h->req)) {
			slot_free(h, h->answered);
			h->answered++;
			break;
		}
		if (!first || (r && !r->first_byte_ns))
			h->resp.body_bytes = 0;
		if (r && first && by_server && h->resp.state == H1_BODY_EOF)
			answer(h, FLOW_END_EOF, r->end_ns);
		else
			answer(h, end, h->now);
	}
	h->resp.state = H1_SYNC;
}

static void lost_track(struct host *h, __u8 outcome)
{
	note(h, h->request, outcome);
	if (h->request) {
		if (in_head(&h->req) && h->started != h->answered) {
			slot_free(h, h->started - 1);
			h->started--;
			if (h->started == h->answered) /* what answered it answers nothing */
				h->resp.state = H1_SYNC;
		}
		h->req.state = H1_SYNC;
		h->req.carry_len = 0;
	} else {
		end_all(h, outcome == HOST_GAP ? FLOW_END_GAP : FLOW_END_INVALID, 0);
		h->resp.carry_len = 0;
	}
}

static void begin_request(struct host *h)
{
	struct flow_record *r;

	h1_reset(&h->req);
	h->req.state = H1_METHOD;
	if (h->started == h->answered && h->resp.state == H1_SYNC)
		h->resp.state = H1_START;
	if (h->started - h->answered >= HOST_SLOTS) {
		r = h->spare;
		memset(r, 0, sizeof(*r));
	} else {
		r = calloc(1, sizeof(*r));
		if (!r)
			abort();
		h->slots[h->started % HOST_SLOTS] = r;
	}
	if (h->started != h->answered)
		r->flags = FLOW_FLAG_PIPELINED;
	h->started++;
	r->kind = FLOW_EXCHANGE;
	r->protocol = FLOW_PROTO_HTTP1;
	r->role = h->options->role;
	r->start_ns = h->now;
	r->request_seq = h->seq[0] - (h->win->end - h->win->pos);
}

static void begin_response(struct host *h)
{
	struct flow_record *r = slot_of(h, h->answered);

	if (h->answered == h->started) {
		note(h, 0, HOST_ORPHAN);
		h->resp.state = H1_SYNC;
		return;
	}
	h1_reset(&h->resp);
	h->resp.state = H1_STATUS;
	if (r && !r->first_byte_ns) {
		r->first_byte_ns = h->now;
		r->response_seq = h->seq[1] - (h->win->end - h->win->pos);
	}
}

static void ended(struct host *h, __u8 end)
{
	struct flow_record *r;

	if (!h->request) {
		answer(h, end, h->now);
		return;
	}
	r = slot_of(h, h->started - 1);
	if (r) {
		r->request_end_ns = h->now;
		r->request_body_bytes = h->req.body_bytes;
	}
}

static void seen_eof_content(struct host *h, const struct h1_stream *s)
{
	struct flow_record *r = slot_of(h, h->answered);

	if (s->state == H1_BODY_EOF && r)
		r->end_ns = h->now;
}

static void passed(struct host *h, struct h1_stream *s, __u64 n)
{
	seen_eof_content(h, s);
	if (h1_skip(s, n) == H1_END)
		ended(h, FLOW_END_RESPONSE);
}

static void empty_window(struct host *h)
{
	h->win->pos = h->win->end = H1_CARRY;
}

static __u64 skip(struct host *h, __u64 n)
{
	if (n > h->left)
		n = h->left;
	h->next += n;
	h->left -= n;
	h->seq[!h->request] += n;
	return n;
}

/* Present the next bytes behind those carried over; what else lies in the window is junk. */
static void load(struct host *h, struct h1_stream *s)
{
	struct h1_window *w = h->win;
	__u32 n = h->left < h->options->window ? h->left : h->options->window;

	memset(w->bytes, '\n', sizeof(w->bytes));
	memcpy(w->bytes, s->carry, H1_CARRY);
	memcpy(w->bytes + H1_CARRY, h->next, n);
	memset(w->bytes + H1_CARRY + n, 0, H1_CARRY);
	w->pos = H1_CARRY - s->carry_len;
	w->end = H1_CARRY + n;
	s->carry_len = 0;
	skip(h, n);
}

static int carry(struct host *h, struct h1_stream *s)
{
	struct h1_window *w = h->win;

	if (w->end - w->pos > H1_CARRY)
		return 0;
	memcpy(s->carry, w->bytes + w->end - H1_CARRY, H1_CARRY);
	s->carry_len = w->end - w->pos;
	empty_window(h);
	return 1;
}

/* Take one step on the connection. Returns 0 when this segment is done with. */
static int advance(struct host *h)
{
	struct h1_stream *s = h->request ? &h->req : &h->resp;
	__u64 content = h1_skippable(s), n = h->win->end - h->win->pos;
	struct flow_record *r;
	enum h1_step result;

	if (content) {
		if (n > content)
			n = content;
		h->win->pos += n;
		if (!n)
			n = skip(h, content);
		if (n)
			passed(h, s, n);
		return n != 0;
	}
	if (s->state == H1_SYNC) {
		if (h->request && h->options->resync && !n && h->left) {
			load(h, s);
			if (h1_detect(h->win)) {
				s->state = H1_START;
				return 1;
			}
		}
		empty_window(h);
		skip(h, h->left);
		return 0;
	}
	if (!n) {
		if (!h->left)
			return 0;
		load(h, s);
	}
	r = slot_of(h, h->request ? h->started - 1 : h->answered);
	result = h1_step(s, r ? r : h->spare, h->win);
	if (h->request && (s->state >= H1_NAME || result == H1_END || result == H1_HEAD_END))
		h->confirmed = 1;
	switch (result) {
	case H1_AGAIN:
	case H1_INTERIM:
		return 1;
	case H1_HEAD_END:
		seen_eof_content(h, s);
		return 1;
	case H1_MORE:
		if (carry(h, s))
			return 1;
		give_up(h, HOST_BROKEN);
		return 0;
	case H1_BEGIN:
		if (h->request)
			begin_request(h);
		else
			begin_response(h);
		return 1;
	case H1_END:
		ended(h, FLOW_END_RESPONSE);
		return 1;
	case H1_TUNNEL:
		ended(h, FLOW_END_UPGRADE);
		give_up(h, HOST_TUNNEL);
		return 0;
	case H1_INVALID:
		if (h->confirmed)
			lost_track(h, HOST_INVALID);
		else
			give_up(h, HOST_OTHER);
		return !h->gone;
	}
	give_up(h, HOST_BROKEN);
	return 0;
}

static void closed(struct host *h, int by_server)
{
	if (h->options->role == FLOW_CLIENT)
		end_all(h, by_server ? FLOW_END_PEER : FLOW_END_LOCAL, by_server);
	else if (by_server) /* a client that sends no more may still wait for the answer */
		end_all(h, FLOW_END_LOCAL, by_server);
}

static void segment(struct host *h, const struct host_segment *seg)
{
	__u64 limit = 16 * seg->len + 64;
	struct h1_stream none = {};
	__u32 steps;

	h->request = seg->response == h->flipped;
	if (seg->kind == HOST_CLOSE) {
		if (h->known)
			closed(h, !h->request);
		return;
	}
	if (seg->kind == HOST_UNSEEN) {
		struct h1_stream *s = h->request ? &h->req : &h->resp;

		h->seq[!h->request] += seg->len;
		if (!h->known)
			return;
		if (h1_skippable(s) >= seg->len)
			passed(h, s, seg->len);
		else
			lost_track(h, HOST_GAP);
		return;
	}
	h->left = seg->len;
	empty_window(h);
	if (!h->known && seg->len) {
		h->flipped = seg->response;
		h->request = 1;
		load(h, &none);
		if (!h1_detect(h->win)) {
			give_up(h, HOST_OTHER);
			return;
		}
		h->known = 1;
	}
	for (steps = 0; advance(h); steps++)
		if (steps > limit) {
			give_up(h, HOST_BROKEN);
			break;
		}
	if (steps > h->result->most_steps)
		h->result->most_steps = steps;
}

void host_run(const __u8 *bytes, const struct host_segment *segments, __u32 n,
	      const struct host_options *options, struct flow_record *out, __u32 most,
	      struct host_result *result)
{
	struct host h = { .options = options, .out = out, .most = most, .result = result };
	__u32 i;

	memset(result, 0, sizeof(*result));
	h.win = malloc(sizeof(*h.win));
	h.spare = calloc(1, sizeof(*h.spare));
	if (!h.win || !h.spare)
		abort();
	h.req.state = H1_START;
	h.resp.flags = H1_RESPONSE;
	for (i = 0; i < n && !h.gone; i++) {
		h.now = segments[i].at;
		h.next = bytes;
		segment(&h, &segments[i]);
		if (segments[i].kind == HOST_BYTES)
			bytes += segments[i].len;
	}
	result->in_flight = h.gone ? 0 : h.started - h.answered;
	result->request_state = h.req.state;
	result->response_state = h.resp.state;
	for (i = 0; i < HOST_SLOTS; i++)
		free(h.slots[i]);
	free(h.spare);
	free(h.win);
}

int host_step(struct h1_stream *s, struct flow_record *r, const __u8 *bytes, __u32 n, __u32 *pos)
{
	struct h1_window *w = malloc(sizeof(*w));
	int result;

	if (!w)
		abort();
	memset(w->bytes, '\n', sizeof(w->bytes));
	memcpy(w->bytes + H1_CARRY, bytes, n);
	memset(w->bytes + H1_CARRY + n, 0, H1_CARRY);
	w->pos = H1_CARRY;
	w->end = H1_CARRY + n;
	result = h1_step(s, r, w);
	*pos = w->pos - H1_CARRY;
	free(w);
	return result;
}
