// SPDX-License-Identifier: Apache-2.0
/*
 * ways - HTTP/1.1 client and server that move their bytes by the system call asked for.
 *
 *   ways serve SEND RECV COUNT             prints its port, answers COUNT requests, ends
 *   ways get PORT PATH SEND RECV COUNT     makes COUNT requests on one connection
 *
 * SEND: write writev sendto sendmsg sendmmsg sendfile manyiov
 * RECV: read readv recvfrom recvmsg recvmmsg
 *
 * Vectors cut the head into pieces of 1, 2, 3, 5, 8... bytes; sendmmsg and recvmmsg carry
 * three messages a call; sendfile carries the body from a memfd after the head was written;
 * manyiov is a writev whose body is in hundreds of pieces. The client prints a line for
 * each exchange: path, status, bytes of the request's body, bytes of the response's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define ROOM (1 << 16)

struct conn {
	int fd;
	const char *send;
	const char *recv;
	char buf[ROOM]; /* received and not yet consumed */
	size_t have;
};

/* Cuts data into at most `most` pieces that grow; the last takes the rest. */
static int cut(struct iovec *iov, int most, char *data, size_t len)
{
	size_t size = 1, next = 2;
	int n = 0;

	while (len && n < most) {
		size_t piece = n == most - 1 || size > len ? len : size;

		iov[n].iov_base = data;
		iov[n++].iov_len = piece;
		data += piece;
		len -= piece;
		piece = size + next;
		size = next;
		next = piece;
	}
	return n;
}

static void check(ssize_t done, size_t wanted, const char *what)
{
	if (done < 0)
		err(1, "%s", what);
	if ((size_t)done != wanted)
		errx(1, "%s: %zd of %zu bytes", what, done, wanted);
}

static void by_sendmmsg(int fd, char *data, size_t len)
{
	struct mmsghdr msgs[3] = {};
	struct iovec iov[3][6];
	size_t part = len / 3, done = 0;

	for (int i = 0; i < 3; i++) {
		size_t size = i == 2 ? len - done : part;

		msgs[i].msg_hdr.msg_iov = iov[i];
		msgs[i].msg_hdr.msg_iovlen = cut(iov[i], 6, data + done, size);
		done += size;
	}
	if (sendmmsg(fd, msgs, 3, 0) != 3)
		err(1, "sendmmsg");
	check(msgs[0].msg_len + msgs[1].msg_len + msgs[2].msg_len, len, "sendmmsg");
}

static void by_sendfile(int fd, char *data, size_t head, size_t len)
{
	int file = memfd_create("body", 0);
	off_t offset = 0;

	if (file < 0)
		err(1, "memfd_create");
	check(write(file, data + head, len - head), len - head, "memfd");
	check(send(fd, data, head, len > head ? MSG_MORE : 0), head, "send");
	while ((size_t)offset < len - head)
		if (sendfile(fd, file, &offset, len - head - offset) <= 0)
			err(1, "sendfile");
	close(file);
}

static void by_many_iovecs(int fd, char *data, size_t head, size_t len)
{
	struct iovec iov[900];
	int n = 0;

	iov[n].iov_base = data;
	iov[n++].iov_len = head;
	for (size_t at = head; at < len; at += 7) {
		iov[n].iov_base = data + at;
		iov[n++].iov_len = len - at < 7 ? len - at : 7;
	}
	check(writev(fd, iov, n), len, "writev");
}

static void put(struct conn *c, char *data, size_t head, size_t len)
{
	struct iovec iov[12];
	struct msghdr msg = { .msg_iov = iov };

	if (!strcmp(c->send, "write")) {
		check(write(c->fd, data, len), len, "write");
	} else if (!strcmp(c->send, "sendto")) {
		check(sendto(c->fd, data, len, 0, NULL, 0), len, "sendto");
	} else if (!strcmp(c->send, "writev")) {
		check(writev(c->fd, iov, cut(iov, 12, data, len)), len, "writev");
	} else if (!strcmp(c->send, "sendmsg")) {
		msg.msg_iovlen = cut(iov, 12, data, len);
		check(sendmsg(c->fd, &msg, 0), len, "sendmsg");
	} else if (!strcmp(c->send, "sendmmsg")) {
		by_sendmmsg(c->fd, data, len);
	} else if (!strcmp(c->send, "sendfile")) {
		by_sendfile(c->fd, data, head, len);
	} else if (!strcmp(c->send, "manyiov")) {
		by_many_iovecs(c->fd, data, head, len);
	} else {
		errx(2, "no such way to send: %s", c->send);
	}
}

static ssize_t by_recvmmsg(int fd, char *data, size_t room)
{
	struct mmsghdr msgs[3] = {};
	struct iovec iov[3][2];
	size_t offset[3] = { 0, 40, 240 }, size[3] = { 40, 200, room - 240 }, total = 0;
	int got;

	for (int i = 0; i < 3; i++) {
		iov[i][0].iov_base = data + offset[i];
		iov[i][0].iov_len = 5;
		iov[i][1].iov_base = data + offset[i] + 5;
		iov[i][1].iov_len = size[i] - 5;
		msgs[i].msg_hdr.msg_iov = iov[i];
		msgs[i].msg_hdr.msg_iovlen = 2;
	}
	got = recvmmsg(fd, msgs, 3, MSG_WAITFORONE, NULL);
	if (got < 0)
		return got;
	for (int i = 0; i < got; i++) {
		if (total < offset[i]) /* an earlier message was not filled: close the hole */
			memmove(data + total, data + offset[i], msgs[i].msg_len);
		total += msgs[i].msg_len;
	}
	return total;
}

/* Receives what is there; the buffer always has room for the vectors above. */
static int more(struct conn *c)
{
	char *data = c->buf + c->have;
	size_t room = ROOM - c->have - 1;
	struct iovec iov[8];
	struct msghdr msg = { .msg_iov = iov };
	ssize_t got;

	if (room < 1024)
		errx(1, "message too large");
	if (!strcmp(c->recv, "read")) {
		got = read(c->fd, data, room);
	} else if (!strcmp(c->recv, "recvfrom")) {
		got = recvfrom(c->fd, data, room, 0, NULL, NULL);
	} else if (!strcmp(c->recv, "readv")) {
		got = readv(c->fd, iov, cut(iov, 8, data, room));
	} else if (!strcmp(c->recv, "recvmsg")) {
		msg.msg_iovlen = cut(iov, 8, data, room);
		got = recvmsg(c->fd, &msg, 0);
	} else if (!strcmp(c->recv, "recvmmsg")) {
		got = by_recvmmsg(c->fd, data, room);
	} else {
		errx(2, "no such way to receive: %s", c->recv);
	}
	if (got < 0)
		err(1, "%s", c->recv);
	c->have += got;
	c->buf[c->have] = 0;
	return got > 0;
}

/* Takes one message off the connection into `first` (its start line); returns its body's size. */
static size_t take(struct conn *c, char *first, size_t room)
{
	char *end, *field;
	size_t head, body = 0;

	while (!(end = strstr(c->buf, "\r\n\r\n")))
		if (!more(c))
			errx(1, "closed inside a head");
	head = end + 4 - c->buf;
	*end = 0;
	field = strcasestr(c->buf, "content-length:");
	if (field)
		body = strtoul(field + 15, NULL, 10);
	snprintf(first, room, "%.*s", (int)strcspn(c->buf, "\r"), c->buf);
	while (c->have < head + body)
		if (!more(c))
			errx(1, "closed inside a body");
	c->have -= head + body;
	memmove(c->buf, c->buf + head + body, c->have + 1);
	return body;
}

static size_t fill(char *out, const char *text, size_t body, size_t *head)
{
	*head = sprintf(out, "%s\r\nHost: ways.test\r\nContent-Length: %zu\r\n\r\n", text, body);
	for (size_t i = 0; i < body; i++)
		out[*head + i] = "GET /decoy HTTP/1.1\r\n\r\n"[i % 23];
	return *head + body;
}

/* Small segments leave at once: no test of ours is about Nagle's algorithm. */
static void no_delay(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		err(1, "TCP_NODELAY");
}

static void serve(struct conn *c, int count)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char first[512], text[64], out[ROOM];
	size_t head, len;

	if (bind(listener, (void *)&addr, size) || listen(listener, 8) ||
	    getsockname(listener, (void *)&addr, &size))
		err(1, "listen");
	printf("%d\n", ntohs(addr.sin_port));
	fflush(stdout);
	c->fd = accept(listener, NULL, NULL);
	if (c->fd < 0)
		err(1, "accept");
	no_delay(c->fd);
	for (int n = 0; n < count; n++) {
		take(c, first, sizeof(first));
		snprintf(text, sizeof(text), "HTTP/1.1 %d Answer", 200 + n % 4);
		len = fill(out, text, n * 397 % 6000, &head);
		put(c, out, head, len);
	}
}

static void get(struct conn *c, int port, const char *path, int count)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	char first[512], text[512], out[ROOM];
	size_t head, len, sent, body;

	c->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(c->fd, (void *)&addr, sizeof(addr)))
		err(1, "connect");
	no_delay(c->fd);
	for (int n = 0; n < count; n++) {
		sent = n * 211 % 4000;
		snprintf(text, sizeof(text), "POST %s/%d HTTP/1.1", path, n);
		len = fill(out, text, sent, &head);
		put(c, out, head, len);
		body = take(c, first, sizeof(first));
		printf("%s/%d %d %zu %zu\n", path, n, atoi(first + 9), sent, body);
	}
}

int main(int argc, char **argv)
{
	static struct conn c;

	if (argc == 5 && !strcmp(argv[1], "serve")) {
		c.send = argv[2];
		c.recv = argv[3];
		serve(&c, atoi(argv[4]));
	} else if (argc == 7 && !strcmp(argv[1], "get")) {
		c.send = argv[4];
		c.recv = argv[5];
		get(&c, atoi(argv[2]), argv[3], atoi(argv[6]));
	} else {
		errx(2, "see the top of ways.c");
	}
	return 0;
}
