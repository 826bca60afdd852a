/*
 * syscalls.c - CPU time of small reads and writes, in ns a call.
 *
 * syscalls KIND CALLS REPEATS: prints a line for each repeat. KIND: zero (reads of
 * /dev/zero), null (writes to /dev/null), pipe, unix, tcp (a write and a read in turn,
 * both counted). What goes over the sockets is no protocol that is traced.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIZE 64

static char buffer[SIZE];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void tcp_pair(int pair[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&address, &size))
		fail("listen");
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (pair[0] < 0 || connect(pair[0], (struct sockaddr *)&address, size))
		fail("connect");
	pair[1] = accept(listener, NULL, NULL);
	if (pair[1] < 0 || setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)))
		fail("accept");
	close(listener);
}

/* Descriptors to write to and to read from; -1 where the kind has none. */
static void open_kind(const char *kind, int *to, int *from)
{
	int pair[2];

	*to = *from = -1;
	if (!strcmp(kind, "zero")) {
		*from = open("/dev/zero", O_RDONLY);
		return;
	}
	if (!strcmp(kind, "null")) {
		*to = open("/dev/null", O_WRONLY);
		return;
	}
	if (!strcmp(kind, "pipe")) {
		if (pipe(pair))
			fail("pipe");
		*to = pair[1];
		*from = pair[0];
		return;
	}
	if (!strcmp(kind, "tcp")) {
		tcp_pair(pair);
	} else if (strcmp(kind, "unix") || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
		fail(kind);
	}
	*to = pair[0];
	*from = pair[1];
}

static double cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int argc, char **argv)
{
	long calls = argc == 4 ? atol(argv[2]) : 0, repeats = calls > 0 ? atol(argv[3]) : 0;
	int to, from;

	if (repeats < 1) {
		fprintf(stderr, "usage: syscalls zero|null|pipe|unix|tcp CALLS REPEATS\n");
		return 2;
	}
	open_kind(argv[1], &to, &from);
	memset(buffer, 0xff, sizeof(buffer));
	while (repeats--) {
		long done = 0;
		double began = cpu_ns();

		while (done < calls) {
			if (to >= 0) {
				if (write(to, buffer, SIZE) != SIZE)
					fail("write");
				done++;
			}
			if (from >= 0) {
				if (read(from, buffer, SIZE) != SIZE)
					fail("read");
				done++;
			}
		}
		printf("%.2f\n", (cpu_ns() - began) / done);
		fflush(stdout);
	}
	return 0;
}
