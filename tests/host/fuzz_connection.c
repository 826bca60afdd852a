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

/* Bits 0: from the server; 1-2: enum host_kind. */
static __u32 read_segments(const __u8 *data, size_t size, __u64 *total)
{
	__u32 n = 0;

	*total = 0;
	while (size >= 3 && n < MOST_SEGMENTS) {
		struct host_segment *s = &segments[n];
		__u64 len = data[1] | data[2] << 8;

		*s = (struct host_segment){ .at = ++n, .response = data[0] & 1 };
		s->kind = (data[0] >> 1 & 3) % 3;
		data += 3;
		size -= 3;
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
	/* each byte belongs to one string; a method unknown lies behind unused room */
	must(kept == r->text_len || (r->method == FLOW_METHOD_OTHER && kept < r->text_len));
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
 * Can `cut` be compared with `whole`? HTTP/1 alone is the same however damaged bytes are cut.
 * Other protocols are told by how long an I/O is, or hand strings over in pieces; that cuts
 * change nothing of sound connections is for tests/host/test_cases.py to show.
 */
static int only_http1(const struct answer *a)
{
	__u32 i;

	for (i = 0; i < a->result.records && i < MOST_RECORDS; i++)
		if (a->records[i].protocol != FLOW_PROTO_HTTP1)
			return 0;
	return a->result.protocol == FLOW_PROTO_HTTP1;
}

static int comparable(void)
{
	return only_http1(&whole) && only_http1(&cut);
}

static void forget_unlike(struct answer *a)
{
	__u32 i;

	/* a part may tell early, or leave it to the next one, that more was sent than is kept */
	for (i = 0; i < a->result.records && i < MOST_RECORDS; i++)
		if (a->records[i].kind == FLOW_PART)
			a->records[i].truncated = 0;
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
	forget_unlike(&cut);
	must(!memcmp(&whole.result, &cut.result, sizeof(whole.result)));
	kept = whole.result.records < MOST_RECORDS ? whole.result.records : MOST_RECORDS;
	must(!memcmp(whole.records, cut.records, kept * sizeof(whole.records[0])));
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
		forget_unlike(&whole);
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
