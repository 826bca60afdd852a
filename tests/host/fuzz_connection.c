/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * fuzz_connection.c - libFuzzer target for every protocol; scripts/fuzz.sh gives it the seeds
 * and the dictionary of one. An input is four bytes that say how to cut, one of options (bit
 * 0: the connection is older than the tracer), then a connection: a row of segments, each an
 * operation, a length (two bytes, little-endian) and, if they are seen, its bytes.
 * tests/host/seeds.py writes such inputs.
 *
 * Every input runs whole, byte by byte and cut at random through a small window; the
 * answers must be the same and must hold together.
 */
#include "parsers.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_SEGMENTS 256
#define MOST_PIECES 8192
#define MOST_RECORDS 512

struct answer {
	struct host_result result;
	struct flow_record records[MOST_RECORDS];
};

static struct host_segment segments[MOST_SEGMENTS];
static struct host_segment pieces[MOST_PIECES];
static struct answer whole, cut;
static __u8 bytes[65536];

/* Bits 0: from the server; 1-2: enum host_kind. Who has closed sends no more. */
static __u32 read_segments(const __u8 *data, size_t size, __u64 *total)
{
	int closed[2] = {};
	__u32 n = 0;

	*total = 0;
	while (size >= 3 && n < MOST_SEGMENTS) {
		struct host_segment *s = &segments[n];
		__u64 len = data[1] | data[2] << 8;

		*s = (struct host_segment){ .at = ++n, .response = data[0] & 1 };
		s->kind = (data[0] >> 1 & 3) % 3;
		data += 3;
		size -= 3;
		if (closed[s->response]) {
			len = s->kind != HOST_BYTES ? 0 : len > size ? size : len;
			data += len;
			size -= len;
			n--;
			continue;
		}
		closed[s->response] = s->kind == HOST_CLOSE;
		if (s->kind == HOST_UNSEEN)
			s->len = len ? len : 1; /* nothing unseen is no segment */
		if (s->kind != HOST_BYTES)
			continue;
		if (len > size)
			len = size;
		if (len > sizeof(bytes) - *total)
			len = sizeof(bytes) - *total;
		memcpy(bytes + *total, data, len);
		s->len = len;
		*total += len;
		data += len;
		size -= len;
	}
	return n;
}

/* Cut seen segments into pieces of 1 to `most` bytes; 0 pieces if they find no room. */
static __u32 cut_segments(__u32 n, __u32 most, __u32 random)
{
	__u32 count = 0, i;

	for (i = 0; i < n; i++) {
		__u64 left = segments[i].len;

		do {
			struct host_segment *p = &pieces[count];
			__u32 len;

			if (count++ == MOST_PIECES)
				return 0;
			random = random * 1664525 + 1013904223;
			len = 1 + (random >> 16) % most;
			*p = segments[i];
			p->len = p->kind == HOST_BYTES && left > len ? len : left;
			left -= p->len;
		} while (left);
	}
	return count;
}

#define must(holds)                                                                                \
	do {                                                                                       \
		if (!(holds)) {                                                                    \
			fprintf(stderr, "line %d: must hold: %s\n", __LINE__, #holds);             \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* Most bytes of another header that a traceparent takes the place of. */
#define TEXT_REPLACED 216

static void check_strings(const struct flow_record *r)
{
	__u32 kept = 0, i;

	must(r->text_len <= FLOW_TEXT_BYTES);
	for (i = 0; i < FLOW_TEXT_FIELDS; i++) {
		const struct flow_field *f = &r->fields[i];

		must(f->off + f->len <= r->text_len);
		kept += f->len;
	}
	if (r->protocol != FLOW_PROTO_HTTP1)
		return;
	/* each byte belongs to one string, or to the one whose place a traceparent took; a
	 * method unknown lies behind unused room */
	must(kept <= r->text_len);
	must(kept + TEXT_REPLACED >= r->text_len || r->method == FLOW_METHOD_OTHER);
	must(r->fields[FLOW_TEXT_TARGET].off == 0);
	/* an early response may come before the target */
	must(r->fields[FLOW_TEXT_TARGET].len || r->flags & FLOW_FLAG_EARLY);
	must(r->method == FLOW_METHOD_OTHER || !r->fields[FLOW_TEXT_METHOD].len);
}

/* `last`: the time of the last segment. */
static void check_exchange(const struct flow_record *r, __u64 last)
{
	must(r->end <= FLOW_END_INVALID);
	must(r->start_ns && r->start_ns <= r->end_ns && r->end_ns <= last);
	must(!r->request_end_ns || r->start_ns <= r->request_end_ns);
	must(!r->first_byte_ns ||
	     (r->start_ns <= r->first_byte_ns && r->first_byte_ns <= r->end_ns));
	if (r->protocol != FLOW_PROTO_HTTP1)
		return;
	must(r->method <= FLOW_METHOD_QUERY);
	must(r->status == 0 || (r->status >= 100 && r->status <= 999));
	must(!r->status || r->first_byte_ns);
	must(r->version == 0 || (r->version >= 10 && r->version <= 19));
}

/* `passed`: bytes of all segments, `n`: their number. */
static void check(const struct answer *a, __u64 passed, __u32 n)
{
	__u64 content = 0;
	__u32 i;

	must(a->result.request <= REPLAY_COMPRESSED && a->result.response <= REPLAY_COMPRESSED);
	for (i = 0; i < a->result.records && i < MOST_RECORDS; i++) {
		const struct flow_record *r = &a->records[i];

		must(r->kind == FLOW_EXCHANGE || (r->kind >= FLOW_PART && r->kind <= FLOW_CLOSED));
		must(r->protocol >= FLOW_PROTO_HTTP1 && r->protocol <= FLOW_PROTO_POSTGRESQL);
		if (r->kind != FLOW_CLOSED)
			check_strings(r);
		if (r->kind != FLOW_EXCHANGE)
			continue;
		check_exchange(r, n);
		content += r->request_body_bytes + r->response_body_bytes;
		must(content <= passed); /* no byte counts twice */
	}
}

/*
 * An exchange with the strings of its parts joined: per slot how many bytes and their FNV-1a
 * hash. Where one part ends and the next begins is up to the cuts.
 */
struct joined {
	struct flow_record r;
	__u64 hash[FLOW_TEXT_FIELDS];
	__u32 len[FLOW_TEXT_FIELDS];
};

static struct joined joined_whole[MOST_RECORDS], joined_cut[MOST_RECORDS];

static void join_strings(struct joined *j, const struct flow_record *r)
{
	__u32 i, k;

	for (i = 0; i < FLOW_TEXT_FIELDS; i++) {
		const struct flow_field *f = &r->fields[i];

		for (k = 0; k < f->len; k++)
			j->hash[i] = (j->hash[i] ^ (__u8)r->text[f->off + k]) * 0x100000001b3ULL;
		j->len[i] += f->len;
	}
}

/* Exchanges, each with its parts; parts whose exchange never came are left out. */
static __u32 join(const struct answer *a, struct joined *to)
{
	__u32 kept = a->result.records < MOST_RECORDS ? a->result.records : MOST_RECORDS;
	__u32 n = 0, i, k;

	for (i = 0; i < kept; i++) {
		struct joined *j = &to[n];

		if (a->records[i].kind != FLOW_EXCHANGE)
			continue;
		memset(j, 0, sizeof(*j));
		j->r = a->records[i];
		for (k = 0; k <= i; k++)
			if ((k == i || a->records[k].kind == FLOW_PART) &&
			    a->records[k].request_seq == j->r.request_seq &&
			    a->records[k].start_ns == j->r.start_ns)
				join_strings(j, &a->records[k]);
		j->r.version = j->r.protocol == FLOW_PROTO_HTTP1 ? j->r.version : 0;
		j->r.text_len = 0;
		memset(j->r.fields, 0, sizeof(j->r.fields));
		memset(j->r.text, 0, sizeof(j->r.text));
		n++;
	}
	return n;
}

/*
 * Can `cut` be compared with `whole`? Detectors of other protocols than HTTP/1 are told how
 * long an I/O is; once both were taken for the same, the same must become of them.
 */
static int comparable(void)
{
	return whole.result.protocol == cut.result.protocol && whole.result.protocol &&
	       whole.result.protocol != FLOW_PROTO_HTTP2 && whole.result.records < MOST_RECORDS &&
	       cut.result.records < MOST_RECORDS;
}

static void same(__u32 n, __u32 most, __u32 random, __u32 window)
{
	struct host_options options = { .window = window, .role = FLOW_CLIENT };
	__u32 count = cut_segments(n, most, random), kept;

	if (!count)
		return;
	host_run(bytes, pieces, count, &options, cut.records, MOST_RECORDS, &cut.result);
	if (!comparable())
		return;
	kept = join(&whole, joined_whole);
	must(kept == join(&cut, joined_cut));
	must(!memcmp(joined_whole, joined_cut, kept * sizeof(joined_whole[0])));
	must(whole.result.request == cut.result.request &&
	     whole.result.response == cut.result.response &&
	     whole.result.in_flight == cut.result.in_flight);
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size);

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct host_options options = { .window = WINDOW, .role = FLOW_CLIENT };
	__u64 total, passed = 0;
	__u32 random, n, i;
	__u8 *exact;

	if (size < sizeof(random) + 1)
		return 0;
	memcpy(&random, data, sizeof(random));
	options.old = data[sizeof(random)] & 1;
	n = read_segments(data + sizeof(random) + 1, size - sizeof(random) - 1, &total);
	for (i = 0; i < n; i++)
		passed += segments[i].len;
	exact = malloc(total ? total : 1); /* so that a byte read behind the last one is noticed */
	must(exact != NULL);
	memcpy(exact, bytes, total);
	host_run(exact, segments, n, &options, whole.records, MOST_RECORDS, &whole.result);
	free(exact);
	check(&whole, passed, n);
	if (!options.old) { /* an older connection is recognised by whole I/Os */
		same(n, 1, 0, WINDOW);
		same(n, 1 + random % 64, random, CARRY + (random >> 8) % (WINDOW - CARRY));
	}
	/* what the kernel does behind a refusal depends on cuts; it must hold together */
	options.resync = 1;
	options.role = FLOW_SERVER;
	host_run(bytes, segments, n, &options, cut.records, MOST_RECORDS, &cut.result);
	check(&cut, passed, n);
	return 0;
}
