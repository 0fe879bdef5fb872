/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long reads that wait for I/O take. */
#ifndef WAITS_H
#define WAITS_H

#include "processes.h"
#include "durations.h"
#include "files.h"

#ifndef NO_BTF
/* By thread id modulo READ_SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, READ_SLOTS);
	__type(key, __u32);
	__type(value, struct read_wait);
} read_waits SEC(".maps");

/*
 * The clock is read where a read begins to wait for I/O, and again at its end, so that a read which finds all in
 * the cache costs one lookup more and no clock. The beginning of the wait lies in the thread's slot. A plain array:
 * it costs less than task storage and is there on every kernel. Threads whose ids are equal modulo READ_SLOTS share
 * a slot: the later wait takes it, and the other is counted as lost.
 *
 * What copies from file to file waits for its writes too, between two of its reads and by the same functions. Its reads
 * are of many pages each, so they can pay for a mark at their entry: there only a wait that finds the mark begins.
 *
 * A wait whose end was not seen (the program was skipped, the thread has left the scope, it was no buffered read)
 * stays, and is never taken for one of a later read: that has another count of read calls (ioac.syscr).
 */
struct reader {
	__u64 tid, syscr;
};

static __always_inline __u64 current_tid(void)
{
	if (KERNEL_HAS(get_current_task_btf))
		return (__u32)bpf_get_current_task_btf()->pid;
	return (__u32)bpf_get_current_pid_tgid();
}

static __always_inline void current_reader(struct reader *r)
{
	struct task_struct *task = this_task();

	r->tid = current_tid();
	r->syscr = bpf_core_field_exists(task->ioac.syscr) ? LOAD_TASK(task, ioac.syscr) : 0;
}

static __always_inline struct read_wait *slot_of(__u64 tid)
{
	__u32 slot = tid & (READ_SLOTS - 1);

	return bpf_map_lookup_elem(&read_waits, &slot);
}

/* Flags of the current task's open file behind a descriptor. */
static __always_inline unsigned int fd_flags(unsigned int fd)
{
	struct file *file = open_file(this_task(), fd);

	return BPF_CORE_READ(file, f_flags);
}

/* How the system call can come to a buffered read of a file: by itself, or by one that copies from file to file. */
enum read_call { NO_READ, READ_ITSELF, READ_TO_COPY };

static __always_inline enum read_call read_call(void)
{
	struct syscall call;

	current_syscall(&call);
	switch (call.nr) {
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
		return fd_flags(SYSCALL_ARG(&call, 0)) & O_DIRECT ? NO_READ : READ_ITSELF;
	case NR_sendfile:
	case NR_splice:
	case NR_copy_file_range:
		return READ_TO_COPY;
	}
	return NO_READ;
}

static __always_inline bool is_of(const struct read_wait *wait, const struct reader *r)
{
	return wait->tid == r->tid && wait->syscr == r->syscr;
}

/* Makes the slot the reader's; another's wait in it is lost. */
static __always_inline void take_slot(struct read_wait *wait, const struct reader *r, __u64 since_ns)
{
	struct totals *t;

	if (wait->tid && wait->tid != r->tid && wait->since_ns) {
		t = cpu_totals();
		if (t)
			ADD(t->lost_reads, 1);
	}
	wait->tid = r->tid;
	wait->syscr = r->syscr;
	wait->since_ns = since_ns;
}

/* A read of a call that copies from file to file begins: what waits from here to its end waits for it. */
static __always_inline int copying_read_begins(struct file *in)
{
	struct read_wait *wait;
	struct reader r;

	if (!scoped() || BPF_CORE_READ(in, f_flags) & O_DIRECT)
		return 0;
	current_reader(&r);
	wait = slot_of(r.tid);
	if (wait)
		take_slot(wait, &r, 0);
	return 0;
}

/* The current task goes to sleep until some I/O is done. The first time in a read counts. */
static __always_inline int wait_begins(void)
{
	enum read_call call;
	struct read_wait *wait;
	struct reader r;

	if (!scoped())
		return 0;
	call = read_call();
	if (call == NO_READ)
		return 0;
	current_reader(&r);
	wait = slot_of(r.tid);
	if (!wait)
		return 0;
	if (is_of(wait, &r)) {
		if (!wait->since_ns)
			wait->since_ns = bpf_ktime_get_ns();
	} else if (call == READ_ITSELF) {
		take_slot(wait, &r, bpf_ktime_get_ns());
	}
	return 0;
}

/* The wait in the current thread's slot, if it is that thread's; null for a read that finds all in the cache. */
static __always_inline struct read_wait *own_wait(void)
{
	__u64 tid = current_tid();
	struct read_wait *wait = slot_of(tid);

	return wait && wait->tid == tid ? wait : 0;
}

/* A read of this file has ended. If it waited, it counts, unless it failed. */
static __always_inline void read_ends(settings_t *set, struct read_wait *wait, bool success, struct file *file)
{
	struct totals *t;
	__u64 bucket, ns, *did;
	struct reader r;

	current_reader(&r);
	if (!is_of(wait, &r))
		return;
	wait->tid = 0;
	if (!success || !wait->since_ns)
		return;
	ns = bpf_ktime_get_ns() - wait->since_ns;
	t = cpu_totals();
	bucket = index_of(duration_bucket(ns));
	if (t && bucket < READ_BUCKETS) {
		ADD(t->wait_buckets[bucket], 1);
		ADD(t->wait_ns, ns);
		file_waited(LOAD(file, file, f_inode), ns);
	}
	did = set->rows ? activity(set) : 0;
	if (did) {
		ADD(did[DID_WAITS], 1);
		ADD(did[DID_WAIT_NS], ns);
	}
}

#endif

#endif
