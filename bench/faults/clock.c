// SPDX-License-Identifier: Apache-2.0
/*
 * clock - preloaded into a process, puts its wall clock ahead by as many ns as the first eight
 * bytes of the file named by WIRESPAN_CLOCK_FILE say, from the moment they say it. The machine's
 * own clock stays as it is, and so do all clocks but CLOCK_REALTIME.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("WIRESPAN_CLOCK_FILE");
	int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void *page;

	if (fd < 0)
		return;
	page = mmap(NULL, sizeof(*ahead), PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED)
		ahead = page;
	close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
	int64_t ns;

	if (syscall(SYS_clock_gettime, clock, t))
		return -1;
	if (!ahead || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
		return 0;
	ns = t->tv_nsec + *ahead % 1000000000;
	t->tv_sec += *ahead / 1000000000 + (ns >= 1000000000) - (ns < 0);
	t->tv_nsec = ns >= 1000000000 ? ns - 1000000000 : ns < 0 ? ns + 1000000000 : ns;
	return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
	struct timespec now;

	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	t->tv_sec = now.tv_sec;
	t->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *to)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (to)
		*to = now.tv_sec;
	return now.tv_sec;
}
