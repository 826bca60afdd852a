// SPDX-License-Identifier: Apache-2.0
/*
 * races - clients whose descriptors and images change under way. Prints how many requests they
 * made and how many of them failed; each is a GET of /PREFIX/NNNNNNNN.
 *
 *   races exec PORT PREFIX COUNT    sends half a request and execs itself, which sends the rest,
 *                                   reads the answer and goes on, on the same connection
 *   races reuse PORT PREFIX COUNT   eight threads: each request's descriptor was another file's
 *                                   a moment before, and dup2 puts another connection in its
 *                                   place between requests; others open and close all the time
 *   races swap PORT PREFIX COUNT    another connection takes a descriptor's place while a thread
 *                                   waits in read() on it, which then returns what the first
 *                                   one got; the next request goes over the second
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 8

static int port;
static const char *prefix;
static unsigned next, failed, count;

static int dial(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		err(1, "connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static int request(char *into, size_t size, unsigned n)
{
	return snprintf(into, size, "GET /%s/%08u HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", prefix,
			n, port);
}

/* nginx answers in one piece, which ends with its content. */
static int answered(int fd)
{
	char buf[2048];
	ssize_t have = 0, n;

	while ((n = read(fd, buf + have, sizeof(buf) - 1 - have)) > 0) {
		have += n;
		buf[have] = 0;
		if (strstr(buf, "hello from nginx\n"))
			return !strncmp(buf, "HTTP/1.1 200", 12);
	}
	return 0;
}

/* With FD and N: half of request N was sent by the image before. */
static int exec_midway(char **argv, int argc)
{
	char text[256], words[2][16];
	unsigned n = argc > 6 ? atoi(argv[6]) : 0;
	int fd = argc > 5 ? atoi(argv[5]) : dial(), len;

	if (argc > 7)
		failed = atoi(argv[7]);
	if (argc > 6) {
		len = request(text, sizeof(text), n);
		if (write(fd, text + len / 2, len - len / 2) < 0 || !answered(fd))
			failed++;
		n++;
	}
	if (n == count) {
		printf("%u %u\n", n, failed);
		return 0;
	}
	len = request(text, sizeof(text), n);
	if (write(fd, text, len / 2) != len / 2)
		err(1, "write");
	snprintf(words[0], sizeof(words[0]), "%d", fd);
	snprintf(words[1], sizeof(words[1]), "%u", n);
	snprintf(text, sizeof(text), "%u", failed);
	execl("/proc/self/exe", argv[0], argv[1], argv[2], argv[3], argv[4], words[0], words[1],
	      text, NULL);
	err(1, "exec");
}

static void *reuse(void *arg)
{
	char text[256];
	int fd = dial();

	(void)arg;
	for (;;) {
		unsigned n = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
		int len, other;

		if (n >= count)
			break;
		len = request(text, sizeof(text), n);
		if (write(fd, text, len) != len || !answered(fd))
			__atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
		switch (n % 3) {
		case 0: /* another connection at this number */
			other = dial();
			if (dup2(other, fd) < 0)
				err(1, "dup2");
			close(other);
			break;
		case 1: /* this number free for anybody, for a moment */
			close(fd);
			fd = dial();
			break;
		case 2: /* this connection at another number */
			other = dup(fd);
			close(fd);
			fd = other;
			break;
		}
	}
	close(fd);
	return NULL;
}

/* Takes every number that becomes free, and gives it back. */
static void *grab(void *arg)
{
	char byte;

	while (!__atomic_load_n((int *)arg, __ATOMIC_RELAXED)) {
		int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC), pair[2];

		if (read(fd, &byte, 1) != 1)
			err(1, "read");
		close(fd);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
			err(1, "socketpair");
		if (write(pair[0], "x", 1) != 1 || read(pair[1], &byte, 1) != 1)
			err(1, "pair");
		close(pair[0]);
		close(pair[1]);
	}
	return NULL;
}

static pid_t reader_tid;

static void *wait_for_answer(void *arg)
{
	__atomic_store_n(&reader_tid, gettid(), __ATOMIC_RELEASE);
	return (void *)(long)answered((int)(long)arg);
}

/* Wait until the reader is inside read(): /proc/PID/task/TID/syscall begins with its number. */
static void until_it_reads(void)
{
	char name[64], text[8] = "";
	pid_t tid;

	while (!(tid = __atomic_load_n(&reader_tid, __ATOMIC_ACQUIRE)))
		usleep(50);
	snprintf(name, sizeof(name), "/proc/self/task/%d/syscall", tid);
	while (atoi(text) != SYS_read || text[0] < '0' || text[0] > '9') {
		int file = open(name, O_RDONLY);

		if (file < 0 || read(file, text, sizeof(text) - 1) < 0)
			err(1, "%s", name);
		close(file);
		usleep(50);
	}
}

static int swap(void)
{
	char text[256];
	unsigned n;

	for (n = 0; n + 1 < count; n += 2) {
		int fd = dial(), other = dial(), keep = dup(fd), len;
		pthread_t reader;
		void *well;

		reader_tid = 0;
		pthread_create(&reader, NULL, wait_for_answer, (void *)(long)fd);
		until_it_reads();
		if (dup2(other, fd) < 0)
			err(1, "dup2");
		close(other);
		len = request(text, sizeof(text), n);
		if (write(keep, text, len) != len)
			err(1, "write");
		pthread_join(reader, &well);
		failed += !well;
		len = request(text, sizeof(text), n + 1);
		if (write(fd, text, len) != len || !answered(fd))
			failed++;
		close(fd);
		close(keep);
	}
	printf("%u %u\n", n, failed);
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS], grabber;
	int done = 0;

	if (argc < 5)
		errx(2, "usage: races exec|reuse|swap PORT PREFIX COUNT");
	port = atoi(argv[2]);
	prefix = argv[3];
	count = atoi(argv[4]);
	if (!strcmp(argv[1], "exec"))
		return exec_midway(argv, argc);
	if (!strcmp(argv[1], "swap"))
		return swap();
	pthread_create(&grabber, NULL, grab, &done);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, reuse, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	pthread_join(grabber, NULL);
	printf("%u %u\n", count, failed);
	return 0;
}
