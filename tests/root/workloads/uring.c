// SPDX-License-Identifier: Apache-2.0
/*
 * uring - an HTTP/1.1 server that moves some of its bytes by io_uring.
 *
 *   uring PLAN      prints its port, answers one request on one connection for each letter
 *
 * p: recv(2) and send(2)     u: io_uring both ways     r: io_uring receives, send(2)
 * s: recv(2), io_uring sends
 *
 * One submission at a time through io_uring_enter; no liburing. Each answer is 200 with
 * the request's number as its body.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring;
static char *sq, *cq;
static struct io_uring_sqe *sqes;
static struct io_uring_params params;

static void setup(void)
{
	size_t sq_size, cq_size;

	ring = syscall(__NR_io_uring_setup, 4, &params);
	if (ring < 0)
		err(3, "io_uring_setup");
	sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	sq = mmap(NULL, sq_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, cq_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = mmap(NULL, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED,
		    ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
		err(1, "mmap");
}

static int submit(int op, int fd, void *data, unsigned int len)
{
	unsigned int *tail = (void *)(sq + params.sq_off.tail);
	unsigned int *mask = (void *)(sq + params.sq_off.ring_mask);
	unsigned int *array = (void *)(sq + params.sq_off.array);
	unsigned int *head = (void *)(cq + params.cq_off.head);
	unsigned int *cq_mask = (void *)(cq + params.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)(cq + params.cq_off.cqes);
	unsigned int slot = *tail & *mask;
	int result;

	memset(&sqes[slot], 0, sizeof(sqes[slot]));
	sqes[slot].opcode = op;
	sqes[slot].fd = fd;
	sqes[slot].addr = (unsigned long)data;
	sqes[slot].len = len;
	array[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		err(1, "io_uring_enter");
	result = cqes[*head & *cq_mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM, 0), conn, got, len;
	static char in[65536], out[256];

	if (argc != 2)
		errx(2, "see the top of uring.c");
	setup();
	if (bind(listener, (void *)&addr, size) || listen(listener, 8) ||
	    getsockname(listener, (void *)&addr, &size))
		err(1, "listen");
	printf("%d\n", ntohs(addr.sin_port));
	fflush(stdout);
	conn = accept(listener, NULL, NULL);
	if (conn < 0)
		err(1, "accept");
	for (int n = 0; argv[1][n]; n++) {
		char way = argv[1][n];

		if (way == 'u' || way == 'r')
			got = submit(IORING_OP_RECV, conn, in, sizeof(in));
		else
			got = recv(conn, in, sizeof(in), 0);
		if (got <= 0)
			errx(1, "receive %d: %d", n, got);
		len = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d", n);
		if (way == 'u' || way == 's')
			got = submit(IORING_OP_SEND, conn, out, len);
		else
			got = send(conn, out, len, 0);
		if (got != len)
			errx(1, "send %d: %d", n, got);
	}
	/* the client closes first */
	while (recv(conn, in, sizeof(in), 0) > 0)
		;
	return 0;
}
