/*
 * What a call costs: prints `OPERATION COST` for a cached pread and pwrite of 4 KiB, fadvise, getppid, an append, a
 * page dropped by DONTNEED and a pread that finds nothing cached; the cost in hundredths of a nanosecond, which in
 * QEMU's counting mode are hundredths of an instruction.
 *   measure FILE
 * FILE is made when it is not there, and read and written within the page cache; so are FILE.log and FILE.hole, of
 * which the one is written anew and the other a hole, whose pages are filled without a disk. A cost is the least of
 * many short batches: no timer tick, no writeback and no work of the agent lies in that one.
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

static long empty(int fd)
{
	return ftruncate(fd, 0);
}

static long drop(int fd)
{
	return ftruncate(fd, BLOCKS * BLOCK) | posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) |
	       posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* All of the hole is cached, a page at a time. */
static long fill(int fd)
{
	long failed = drop(fd);

	for (int i = 0; i < BLOCKS; i++)
		failed |= do_pread(fd, i);
	return failed;
}

/* One call for all blocks. */
static long do_dontneed(int fd, int i)
{
	return i ? 0 : posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static const struct {
	const char *name;
	long (*call)(int fd, int i);
	const char *file; /* what follows the file's name */
	long (*prepare)(int fd); /* before each batch */
} operations[] = {
	{ "pread", do_pread, "" },
	{ "pwrite", do_pwrite, "" },
	{ "fadvise", do_fadvise, "" },
	{ "getppid", do_getppid, "" },
	{ "append", do_pwrite, ".log", empty },
	{ "dontneed", do_dontneed, ".hole", fill },
	{ "cold", do_pread, ".hole", drop },
};

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char name[4096];

	if (argc != 2)
		errx(1, "measure FILE");
	for (unsigned o = 0; o < sizeof(operations) / sizeof(*operations); o++) {
		long least = 0;
		int fd;

		snprintf(name, sizeof(name), "%s%s", argv[1], operations[o].file);
		fd = open(name, O_RDWR | O_CREAT, 0600);
		if (fd < 0)
			err(1, "%s", name);
		if (!operations[o].prepare)
			for (int i = 0; i < BLOCKS; i++)
				do_pwrite(fd, i);
		/* The first batches warm up, whatever they take. */
		for (int b = 0; b < BATCHES; b++) {
			long failed = operations[o].prepare ? operations[o].prepare(fd) : 0, from = now(), took;

			for (int i = 0; i < BLOCKS; i++)
				failed |= operations[o].call(fd, i);
			took = now() - from;
			if (failed)
				err(1, "%s", operations[o].name);
			if (!b || took < least)
				least = took;
		}
		printf("%s %ld\n", operations[o].name, least * 100 / BLOCKS);
		close(fd);
	}
	return 0;
}
