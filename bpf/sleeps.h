/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How long threads sleep for I/O, by what they were doing. All such sleeps are in io_schedule() and io_schedule_timeout(): only
 * a thread that sleeps pays.
 */
#ifndef SLEEPS_H
#define SLEEPS_H

#include "scope.h"
#include "durations.h"
#include "callers.h"

/*
 * By thread id modulo SLEEP_SLOTS, as those of reads in waits.h: of two threads in one slot that sleep at the same time, the
 * earlier is counted as lost. So is a sleep whose end was not seen, when its thread sleeps again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLEEP_SLOTS);
	__type(key, __u32);
	__type(value, struct sleep);
} sleeps SEC(".maps");

static __always_inline struct sleep *own_sleep(__u32 tid)
{
	__u32 slot = tid & (SLEEP_SLOTS - 1);

	return bpf_map_lookup_elem(&sleeps, &slot);
}

/* What is not known from a call's number. */
enum { OP_BY_FILE = IO_OPS, OP_COPY, OP_BY_STACK };

/* OP_BY_FILE: a read or a write, with the file in its first argument. */
static __always_inline int op_of_call(int nr, int *rw)
{
	switch (nr) {
	case -1:
	/* These populate a mapping through the fault handler. */
	case NR_mmap:
	case NR_mremap:
	case NR_mlock:
	case NR_mlock2:
	case NR_mlockall:
		return IO_FAULT;
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
		*rw = IO_READ;
		return OP_BY_FILE;
	case NR_write:
	case NR_pwrite64:
	case NR_writev:
	case NR_pwritev:
	case NR_pwritev2:
		*rw = IO_WRITE;
		return OP_BY_FILE;
	case NR_truncate:
	case NR_ftruncate:
	case NR_fallocate:
		return IO_WRITE;
	case NR_sendfile:
	case NR_splice:
	case NR_copy_file_range:
		return OP_COPY;
	case NR_fsync:
	case NR_fdatasync:
	case NR_sync:
	case NR_syncfs:
	case NR_sync_file_range:
	case NR_msync:
		return IO_SYNC;
	}
	return OP_BY_STACK;
}

/* What the stack says that is no more than a guess by the call; -1: nothing. */
static __always_inline int op_by_stack(void *ctx, settings_t *set)
{
#ifndef NO_BTF
	if (set->functions_known) {
		switch (cause_by_stack(ctx, set)) {
		case FILL_READ:
			return IO_READ;
		case FILL_WRITE:
			return IO_WRITE;
		case FILL_FAULT:
			return IO_FAULT;
		default:
			break;
		}
	}
#endif
	return -1;
}

/*
 * What the current thread sleeps for. `timeout`: in io_schedule_timeout(), where writers are throttled
 * (balance_dirty_pages), also those that write through a mapping or copy from file to file. Direct I/O is no business of
 * the page cache's: IO_OTHER.
 */
static __always_inline __u32 io_op(void *ctx, settings_t *set, bool timeout)
{
	struct task_struct *task = this_task();
	struct syscall call;
	struct file *file;
	unsigned int flags;
	int op, by_stack, rw = IO_OTHER;

	current_syscall(&call);
	op = op_of_call(call.nr, &rw);
	if (op == IO_FAULT)
		return timeout ? IO_WRITE : IO_FAULT;
	if (op < IO_OPS)
		return op;
	if (op == OP_COPY && timeout)
		return IO_WRITE;
	if (op == OP_BY_FILE) {
		file = open_file(task, SYSCALL_ARG(&call, 0));
		flags = file ? BPF_CORE_READ(file, f_flags) : 0;
		/* A buffer that is a mapping of another file can be what has to be read. */
		by_stack = timeout ? -1 : op_by_stack(ctx, set);
		if (by_stack == IO_FAULT)
			return IO_FAULT;
		if (flags & O_DIRECT)
			return IO_OTHER;
		return rw == IO_WRITE && flags & O_DSYNC ? IO_SYNC : rw;
	}
	by_stack = op_by_stack(ctx, set);
	if (by_stack >= 0)
		return by_stack;
	return op == OP_COPY ? IO_READ : IO_OTHER;
}

/* The current thread goes to sleep until some I/O is done. */
static __always_inline int sleep_begins(void *ctx, bool timeout)
{
	settings_t *set = scoped();
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct sleep *sleep;
	struct totals *t;

	if (!set)
		return 0;
	sleep = own_sleep(tid);
	if (!sleep)
		return 0;
	if (sleep->tid) {
		t = cpu_totals();
		if (t)
			ADD(t->lost_sleeps, 1);
	}
	sleep->op = io_op(ctx, set, timeout);
	sleep->tid = tid;
	sleep->since_ns = bpf_ktime_get_ns();
	return 0;
}

/* A sleep for I/O has ended: here is the place for whoever wants to know more of it than the sums. */
static __always_inline void slept(__u64 op, __u64 ns)
{
	struct totals *t = cpu_totals();
	__u64 bucket;

	if (!t)
		return;
	bucket = index_of(op * SLEEP_BUCKETS + duration_bucket(ns));
	if (bucket < IO_OPS * SLEEP_BUCKETS)
		ADD(t->sleep_buckets[bucket], 1);
	op = index_of(op);
	if (op < IO_OPS)
		ADD(t->sleep_ns[op], ns);
}

/* The current thread goes on. */
static __always_inline int sleep_ends(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct sleep *sleep = own_sleep(tid);

	if (!sleep || sleep->tid != tid)
		return 0;
	sleep->tid = 0;
	slept(sleep->op, bpf_ktime_get_ns() - sleep->since_ns);
	return 0;
}

#endif
