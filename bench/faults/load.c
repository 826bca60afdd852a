// SPDX-License-Identifier: Apache-2.0
/*
 * load - HTTP/1.1 clients that know what they did: the ground truth of the fault suite.
 *
 *   load PORT PREFIX FILE [-c CONNECTIONS] [-r RATE] [-k PER_CONNECTION] [-m MOST] [-f FORKS]
 *
 * Each request is a GET of /PREFIX/NNNNNNNN, its number in eight digits, and each is written
 * down in FILE at the place of its number: struct made. Runs until SIGTERM or MOST requests,
 * finishes those it has begun, and prints how many were begun and how many of them, and how
 * many connections besides, failed.
 *
 * -c threads with a connection each (1); -r requests a second of all together, 0 for as many
 * as go (0); -k requests before a connection is closed and another opened, 0 for no end (0);
 * -m (4194304); -f processes that do it, forked by the first (0), each of which forks again
 * for every connection it opens, so that the connection is a grandchild's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A request: CLOCK_MONOTONIC ns; `status` is 0 until its response was read whole. */
struct made {
	uint64_t start_ns;
	uint64_t end_ns;
	uint32_t status;
	uint32_t begun;
};

/* Shared by all processes, behind the last `struct made`. */
struct shared {
	uint32_t next;
	uint32_t failed;
	uint32_t stop;
};

static struct made *made;
static struct shared *shared;
static const char *prefix;
static struct sockaddr_in server;
static uint32_t most = 1 << 22;
static long connections = 1, per_connection, forks;
static double rate;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void stop(int sig)
{
	(void)sig;
	__atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
}

static int stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
}

static int open_connection(void)
{
	int fd, one = 1;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		err(1, "socket");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (struct sockaddr *)&server, sizeof(server))) {
		int why = errno;

		close(fd);
		errno = why;
		return -1;
	}
	return fd;
}

/* Count a failure; the first few are told, for a run that should have none. */
static void fail(const char *what)
{
	if (__atomic_fetch_add(&shared->failed, 1, __ATOMIC_RELAXED) < 5)
		warn("%s", what);
}

/* Read one response with Content-Length whole; its status, or 0. */
static uint32_t answer(int fd)
{
	char buf[4096], *head, *length;
	size_t have = 0, want = 0;
	ssize_t n;

	for (;;) {
		n = read(fd, buf + have, sizeof(buf) - 1 - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		have += n;
		buf[have] = 0;
		if (!want && (head = strstr(buf, "\r\n\r\n"))) {
			length = strcasestr(buf, "content-length:");
			if (!length || length > head)
				return 0;
			want = head + 4 - buf + strtoul(length + 15, NULL, 10);
			if (want >= sizeof(buf))
				return 0;
		}
		if (want && have >= want)
			return strtoul(buf + 9, NULL, 10);
	}
}

/* One request; whether the connection can be used again. */
static int ask(int fd)
{
	uint32_t n = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
	struct made *m = &made[n];
	char request[256];
	int len;

	if (n >= most) {
		__atomic_fetch_sub(&shared->next, 1, __ATOMIC_RELAXED);
		stop(0);
		return 0;
	}
	len = snprintf(request, sizeof(request),
		       "GET /%s/%08u HTTP/1.1\r\nHost: 127.0.0.1:%u\r\n\r\n", prefix, n,
		       ntohs(server.sin_port));
	m->begun = 1;
	m->start_ns = now();
	errno = 0;
	if (write(fd, request, len) == len)
		m->status = answer(fd);
	m->end_ns = now();
	if (m->status)
		return 1;
	fail("request");
	return 0;
}

/* Requests on one connection, paced; `next` is when the next one is due. */
static void converse(uint64_t *next, double share)
{
	int fd = open_connection();
	long done = 0;

	if (fd < 0) { /* no exchange: nothing was asked */
		/* told to stop, or out of ports for the moment: that is not the server's doing */
		if (errno != EINTR && errno != EADDRNOTAVAIL)
			fail("connect");
		usleep(10000);
		return;
	}

	while (!stopped() && (!per_connection || done < per_connection)) {
		if (share > 0) {
			uint64_t time = now(), gap = 1e9 / share;
			struct timespec wait;

			*next = *next + gap > time ? *next + gap : time;
			wait.tv_sec = *next / 1000000000;
			wait.tv_nsec = *next % 1000000000;
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wait, NULL);
			if (stopped())
				break;
		}
		if (!ask(fd))
			break;
		done++;
	}
	close(fd);
}

static void *client(void *arg)
{
	double share = rate / connections / (forks ? forks : 1);
	uint64_t next = now() + (rate > 0 ? (uint64_t)(long)arg * 1000000 : 0);

	while (!stopped()) {
		if (!forks) {
			converse(&next, share);
			continue;
		}
		pid_t child = fork();

		if (!child) {
			converse(&next, share);
			_exit(0);
		}
		/* the child's own time went on */
		if (share > 0)
			next += 1e9 / share * (per_connection ? per_connection : 1);
		if (child < 0)
			err(1, "fork");
		waitpid(child, NULL, 0);
	}
	return NULL;
}

static void run_clients(void)
{
	pthread_t *threads = calloc(connections, sizeof(*threads));
	pthread_attr_t attributes;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 128 << 10);
	for (long i = 1; i < connections; i++)
		if (pthread_create(&threads[i], &attributes, client, (void *)i))
			errx(1, "pthread_create");
	client(NULL);
	for (long i = 1; i < connections; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = stop };
	size_t size;
	int c, fd;

	while ((c = getopt(argc, argv, "c:r:k:m:f:")) != -1) {
		switch (c) {
		case 'c':
			connections = atol(optarg);
			break;
		case 'r':
			rate = atof(optarg);
			break;
		case 'k':
			per_connection = atol(optarg);
			break;
		case 'm':
			most = strtoul(optarg, NULL, 10);
			break;
		case 'f':
			forks = atol(optarg);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 3 || connections < 1)
		errx(2, "usage: load [OPTION...] PORT PREFIX FILE");
	server.sin_family = AF_INET;
	server.sin_port = htons(atoi(argv[optind]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	prefix = argv[optind + 1];

	size = sizeof(*made) * most + sizeof(*shared);
	fd = open(argv[optind + 2], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, size))
		err(1, "%s", argv[optind + 2]);
	made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (made == MAP_FAILED)
		err(1, "mmap");
	shared = (struct shared *)(made + most);
	sigaction(SIGTERM, &act, NULL);

	for (long i = 1; i < forks; i++) {
		pid_t child = fork();

		if (child < 0)
			err(1, "fork");
		if (!child) {
			run_clients();
			_exit(0);
		}
	}
	run_clients();
	while (wait(NULL) > 0 || errno == EINTR)
		;
	printf("%u %u\n", shared->next, shared->failed);
	return 0;
}
