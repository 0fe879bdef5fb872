/*
 * What a call costs: prints `OPERATION COST` for a cached pread and pwrite of 4 KiB, fadvise and getppid; the cost
 * in hundredths of a nanosecond, which in QEMU's counting mode are hundredths of an instruction.
 *   measure FILE
 * FILE is made when it is not there, and read and written within the page cache. A cost is the least of many short
 * batches: no timer tick, no writeback and no work of the agent lies in that one.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 64, BATCHES = 60 }; /* a batch is one pass over the file */

static char buf[BLOCK];

static long do_pread(int fd, int i)
{
	return pread(fd, buf, BLOCK, (off_t)i * BLOCK) != BLOCK;
}

static long do_pwrite(int fd, int i)
{
	return pwrite(fd, buf, BLOCK, (off_t)i * BLOCK) != BLOCK;
}

static long do_fadvise(int fd, int i)
{
	return posix_fadvise(fd, 0, 0, POSIX_FADV_NORMAL);
}

static long do_getppid(int fd, int i)
{
	return getppid() < 0;
}

static const struct {
	const char *name;
	long (*call)(int fd, int i);
} operations[] = {
	{ "pread", do_pread },
	{ "pwrite", do_pwrite },
	{ "fadvise", do_fadvise },
	{ "getppid", do_getppid },
};

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;

	if (fd < 0)
		err(1, "measure FILE");
	for (int i = 0; i < BLOCKS; i++)
		do_pwrite(fd, i);
	for (unsigned o = 0; o < sizeof(operations) / sizeof(*operations); o++) {
		long least = 0;

		/* The first batches warm up, whatever they take. */
		for (int b = 0; b < BATCHES; b++) {
			long failed = 0, from = now(), took;

			for (int i = 0; i < BLOCKS; i++)
				failed |= operations[o].call(fd, i);
			took = now() - from;
			if (failed)
				err(1, "%s", operations[o].name);
			if (!b || took < least)
				least = took;
		}
		printf("%s %ld\n", operations[o].name, least * 100 / BLOCKS);
	}
	return 0;
}
