// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the kernel does with a database's files: fadvise calls, pages read through the page cache, pages
 * filled and evicted by cause, reclaim.
 *
 * Each probe's logic stands once, as a function of plain values; the entry points at the end, one for each
 * way of attaching, only fetch those values. No global variables (kernels before 5.2 lack them): settings
 * come from a map.
 *
 * Counting: one struct totals per CPU, added to atomically all the same, because where programs can be
 * preempted (fentry, PREEMPT_RT) two of them can be in the middle of the same increment.
 */
#include "kernel.h"
#include "syscalls.h"
#include "iomonitor.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} scope_cgroup SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

/*
 * Rows of processes: the programs write to the map that `procs` holds; each tick the agent swaps it (the
 * kernel waits for running programs), then empties the other at leisure, so that no count is lost to a
 * delete. Shared between the CPUs rather than per CPU: on a host of 128 CPUs a per-CPU map of this size
 * takes 50 MB, and these events are rare enough for an atomic add.
 */
struct proc_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROCS);
	__type(key, struct proc_key);
	__type(value, struct proc_row);
} procs_a SEC(".maps"), procs_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct proc_map);
} procs SEC(".maps") = { .values = { &procs_a } };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STALLS);
	__type(key, __u64);
	__type(value, struct stall);
} stalls SEC(".maps");

#ifndef NO_BTF
/*
 * By thread id modulo READ_SLOTS. Not task storage: that is allocated inside of the program, which can fail (on 7.2
 * in a machine without cmpxchg16b it always did), and a read without a cursor counts once for each of its batches.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, READ_SLOTS);
	__type(key, __u32);
	__type(value, struct read_cursor);
} read_cursors SEC(".maps");

/* By thread id modulo READ_SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, READ_SLOTS);
	__type(key, __u32);
	__type(value, struct read_wait);
} read_waits SEC(".maps");

/* A typed view of a kernel address, for loads without a helper call; 6.2+. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
#endif

#define ADD(lvalue, n) ((void)__sync_fetch_and_add(&(lvalue), (n)))

static __always_inline struct totals *cpu_totals(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals, &zero);
}

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/*
 * The current task for loads without a helper call each (5.11+), or null: then BPF_CORE_READ on current_task().
 * A helper call takes 15 to 35 ns where the kernel guards its returns, more than all else in a hot program.
 */
static __always_inline struct task_struct *current_task_btf(void)
{
	return KERNEL_HAS(get_current_task_btf) ? bpf_get_current_task_btf() : 0;
}

static __always_inline bool is_kswapd(void)
{
	return BPF_CORE_READ(current_task(), flags) & PF_KSWAPD;
}

/* ---- scope ---- */

static __always_inline bool in_scope(const struct settings *set)
{
	__u64 comm[COMM_LEN / 8] = {};
	struct task_struct *task;
	const __u64 *want;

	if (set->scope == SCOPE_HOST)
		return true;
	if (set->scope == SCOPE_CGROUP)
		return bpf_current_task_under_cgroup(&scope_cgroup, 0) == 1;
	/* The process's name, not the thread's. */
	task = current_task_btf();
	if (task) {
		comm[0] = ((const __u64 *)task->group_leader->comm)[0];
		comm[1] = ((const __u64 *)task->group_leader->comm)[1];
	} else {
		BPF_CORE_READ_INTO(&comm, current_task(), group_leader, comm);
	}
	want = (const __u64 *)set->comm;
	return comm[0] == want[0] && comm[1] == want[1];
}

static __always_inline __u64 regs_offset(void)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set ? set->regs_offset : 0;
}

/* The settings, if the current task is in their scope. */
static __always_inline struct settings *scoped(void)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && in_scope(set) ? set : 0;
}

/* ---- rows of processes ---- */

static __always_inline void current_proc(struct proc_key *key)
{
	struct task_struct *task = current_task_btf();
	struct task_struct *leader;

	if (task) {
		key->tgid = task->tgid;
		key->start = task->group_leader->start_boottime >> START_SHIFT;
		return;
	}
	leader = BPF_CORE_READ(current_task(), group_leader);
	key->tgid = bpf_get_current_pid_tgid() >> 32;
	if (bpf_core_field_exists(leader->start_boottime))
		key->start = BPF_CORE_READ(leader, start_boottime) >> START_SHIFT;
	else
		key->start = BPF_CORE_READ((struct task_struct___5_4 *)leader, real_start_time) >> START_SHIFT;
}

/* The current process's row of this interval; null if the map is full. */
static __always_inline struct proc_row *current_row(const struct proc_key *key)
{
	struct proc_row fresh;
	struct proc_row *row;
	__u32 zero = 0;
	void *map = bpf_map_lookup_elem(&procs, &zero);

	if (!map)
		return 0;
	row = bpf_map_lookup_elem(map, key);
	if (row)
		return row;
	__builtin_memset(&fresh, 0, sizeof(fresh));
	BPF_CORE_READ_INTO(&fresh.comm, current_task(), group_leader, comm);
	/* Another thread of the process may be first: then this one fails and finds that row. */
	bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

/* ---- fadvise ---- */

/*
 * Only the return of a call is of interest: its arguments are still there, or in the registers saved at its
 * entry, so nothing has to be carried from entry to return and concurrent calls cannot mix.
 */
static __always_inline int fadvise_returned(__u32 advice, long ret)
{
	__u32 slot = advice < ADVICE_INVALID ? advice : ADVICE_INVALID;
	struct proc_key key;
	struct proc_row *row;
	struct totals *t = cpu_totals();

	if (!t)
		return 0;
	ADD(t->fadvise_advice[slot], 1);
	if (ret)
		ADD(t->fadvise_failed, 1);
	else
		ADD(t->fadvise_success, 1);

	current_proc(&key);
	row = current_row(&key);
	if (row) {
		ADD(row->fadvise_calls, 1);
		if (!ret)
			ADD(row->fadvise_success, 1);
	} else {
		ADD(t->overflow_calls, 1);
		if (!ret)
			ADD(t->overflow_success, 1);
	}
	return 0;
}

/* The advice of the system call that the task is in. */
static __always_inline __u32 advice_asked(void)
{
	struct syscall call;

	current_syscall(&call);
	return call.arg[3];
}

/* ---- reads by tracepoint ---- */

#ifndef NO_BTF
/*
 * A buffered read asks the page cache for its pages in batches, and mm_filemap_get_pages tells of each batch
 * with the whole rest of the range: first its whole range, then what is left. The range is counted once, on
 * its first event. A later event of the same read has the same thread, mapping and end and a larger index, and
 * happens before the thread's count of read calls (ioac.syscr) moves on.
 */
static __always_inline bool continues_read(struct task_struct *task, __u64 mapping, __u64 index, __u64 last)
{
	__u64 tid = (__u32)task->pid, syscr = task->ioac.syscr;
	__u32 slot = tid & (READ_SLOTS - 1);
	struct read_cursor *cur = bpf_map_lookup_elem(&read_cursors, &slot);
	bool same;

	if (!cur)
		return false;
	same = cur->tid == tid && cur->mapping == mapping && cur->last_index == last && cur->syscr == syscr &&
	       cur->index < index;
	cur->tid = tid;
	cur->mapping = mapping;
	cur->last_index = last;
	cur->syscr = syscr;
	cur->index = index;
	return same;
}

struct pages {
	__u64 first, last;
};

/* The open file behind a descriptor of the current task. */
static __always_inline struct file *file_of_fd(struct task_struct *task, unsigned int fd)
{
	struct fdtable *fdt = task->files->fdt;
	struct hlist_head *slot;

	if (fd >= fdt->max_fds)
		return 0;
	/* Any type that is one pointer will do: this is a load from the table without a helper call. */
	slot = bpf_rdonly_cast(&fdt->fd[fd], bpf_core_type_id_kernel(struct hlist_head));
	return bpf_rdonly_cast(slot->first, bpf_core_type_id_kernel(struct file));
}

/* A pointer as a number, by a helper: few verifiers let one be made otherwise. */
static __always_inline __u64 number(const void *pointer)
{
	__u64 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), &pointer);
	return n;
}

/*
 * Where the registers saved at the entry of a system call lie: at one place in the stack of every task. And what
 * finds that stack from `ctx`, which lies in it, if stacks are aligned to their size.
 */
static __always_inline void learn_stack(void *ctx, struct task_struct *task, struct settings *set)
{
	__u64 stack = (__u64)BPF_CORE_READ(task, stack);
	__u64 size = number((void *)bpf_task_pt_regs(task)) - stack;
	int i;

	set->regs_offset = size;
#pragma unroll
	for (i = 1; i < 32; i *= 2) /* up to the power of two above: the registers are at the top */
		size |= size >> i;
	size++;
	if ((number(ctx) & ~(size - 1)) != stack)
		return;
	set->stack_size = size;
	set->address = number(set);
}

/*
 * The registers saved when the current call entered the kernel. A wrong place would at most lose the beginning of
 * a read: see what pages_asked() demands.
 */
static __always_inline struct pt_regs *saved_regs(void *ctx, struct task_struct *task, struct settings *set)
{
	if (!set->regs_offset)
		learn_stack(ctx, task, set);
	return bpf_rdonly_cast(task->stack + set->regs_offset, bpf_core_type_id_kernel(struct pt_regs));
}

/* The same without the helper that tells the task, which would take a sixth of the time; null if unknown. */
static __always_inline struct pt_regs *saved_regs_here(void *ctx, struct settings *set)
{
	__u64 here;

	if (!set->regs_offset || !set->stack_size || !set->address)
		return 0;
	/* Pointers can be subtracted, but not masked. */
	here = (__u64)ctx - (__u64)set + set->address;
	return bpf_rdonly_cast((void *)((here & ~(set->stack_size - 1)) + set->regs_offset),
			       bpf_core_type_id_kernel(struct pt_regs));
}

/* One page, where the current pread begins: the most frequent read, told by the fewest loads. */
static __always_inline bool is_whole_pread(const struct pt_regs *regs, struct settings *set, const struct pages *event)
{
	return event->first == event->last && (int)regs->SYSCALL_NR == NR_pread64 &&
	       regs->SYSCALL_ARG3 >> set->page_shift == event->first;
}

/*
 * The pages that the current call asks for, if it is pread or read; others do not tell by themselves where
 * they begin. False as well if `event` is no part of such a range: then it is of a read inside the call.
 */
static __always_inline bool pages_asked(struct task_struct *task, const struct pt_regs *regs, struct settings *set,
					const struct pages *event, struct pages *asked)
{
	struct file *file;
	__u64 pos, len;

	if (task->flags & PF_KTHREAD)
		return false;
	if ((int)regs->SYSCALL_NR == NR_pread64) {
		pos = regs->SYSCALL_ARG3;
	} else if ((int)regs->SYSCALL_NR == NR_read) {
		file = file_of_fd(task, regs->SYSCALL_ARG0);
		if (!file)
			return false;
		pos = file->f_pos; /* moved on only when the call returns */
	} else {
		return false;
	}
	len = regs->SYSCALL_ARG2;
	asked->first = pos >> set->page_shift;
	asked->last = (pos + len - 1) >> set->page_shift;
	return len && asked->first <= event->first && event->first <= asked->last && asked->last <= event->last;
}

/*
 * Counts a read once, on its first event, with its whole range.
 *
 * A batch that ends at a folio which is still being filled is handed to the reader without an event
 * (filemap_get_pages leaves by its error path), so the first event can lack the beginning: where the call
 * tells what it asked for, that is the range. And a call that asks for the event's one page has no other
 * event, which spares the most frequent reads the cursor. The kernel does not cut the range at the end of
 * the file: that is done here.
 */
static __always_inline int page_read(void *ctx, __u64 mapping, __u64 index, __u64 last)
{
	struct settings *set = scoped();
	struct task_struct *task;
	struct pages p = { index, last };
	struct pages asked;
	struct address_space *space;
	struct pt_regs *regs;
	struct inode *inode;
	struct totals *t;
	bool known;
	__u64 end;

	if (!set)
		return 0;
	space = bpf_rdonly_cast((void *)mapping, bpf_core_type_id_kernel(struct address_space));
	inode = space->host;
	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	regs = saved_regs_here(ctx, set);
	if (regs && is_whole_pread(regs, set, &p)) /* and no read begins behind the end of the file */
		goto count;
	task = bpf_get_current_task_btf();
	regs = saved_regs(ctx, task, set);
	known = pages_asked(task, regs, set, &p, &asked);
	if (!(known && asked.first == last) && continues_read(task, mapping, index, last))
		return 0;
	if (known)
		p = asked;
	end = ((__u64)inode->i_size + (1ULL << set->page_shift) - 1) >> set->page_shift;
	if (p.first >= end)
		return 0;
	if (p.last >= end)
		p.last = end - 1;
count:
	t = cpu_totals();
	/* Not atomic: nothing else adds to it in this mode, and a CPU runs a program once at a time. */
	if (t)
		t->read_pages += p.last - p.first + 1;
	return 0;
}

#endif

/* ---- reads ---- */

/* `bytes` from `pos` on, of a file that a buffered read or splice goes over. */
static __always_inline int bytes_read(const struct settings *set, __u64 pos, __u64 bytes)
{
	struct totals *t = cpu_totals();

	if (!t || !bytes)
		return 0;
	ADD(t->read_pages, ((pos + bytes - 1) >> set->page_shift) - (pos >> set->page_shift) + 1);
	ADD(t->read_bytes, bytes);
	return 0;
}

/* A field behind a pointer of which the verifier knows nothing: a plain load from 6.2 on, else a helper call. */
#ifdef NO_BTF
#define LOAD(ptr, type, field) BPF_CORE_READ((struct type *)(ptr), field)
#else
#define LOAD(ptr, type, field)                                                              \
	(bpf_ksym_exists(bpf_rdonly_cast)                                                       \
		 ? ((struct type *)bpf_rdonly_cast((ptr), bpf_core_type_id_kernel(struct type)))->field \
		 : BPF_CORE_READ((struct type *)(ptr), field))
#endif

/* At the entry of a read only what was asked for is known: it counts as far as the file goes. */
static __always_inline int bytes_asked(const struct settings *set, struct file *file, __u64 pos, __u64 bytes)
{
	struct inode *inode = LOAD(file, file, f_inode);
	__u64 size;

	if ((LOAD(inode, inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	size = LOAD(inode, inode, i_size);
	if (pos >= size)
		return 0;
	return bytes_read(set, pos, bytes < size - pos ? bytes : size - pos);
}

/* ---- durations ---- */

/* Index of the bucket whose upper bound, 2^(10 + index) ns, is the first not below `ns`. */
static __always_inline __u64 duration_bucket(__u64 ns)
{
	__u64 v = ns ? (ns - 1) >> 10 : 0;
	__u64 bits = 0;

	if (v >> 32)
		return STALL_BUCKETS - 1;
	if (v >> 16) { bits += 16; v >>= 16; }
	if (v >> 8) { bits += 8; v >>= 8; }
	if (v >> 4) { bits += 4; v >>= 4; }
	if (v >> 2) { bits += 2; v >>= 2; }
	if (v >> 1) { bits += 1; v >>= 1; }
	bits += v;
	return bits < STALL_BUCKETS ? bits : STALL_BUCKETS - 1;
}

/* ---- how long reads that wait take ---- */

#ifndef NO_BTF
/*
 * The clock is read where a read begins to wait for I/O, and again at its end, so that a read which finds all in
 * the cache costs one lookup more and no clock. The beginning of the wait lies in the thread's slot. A plain array:
 * it costs less than task storage and is there on every kernel. Threads whose ids are equal modulo READ_SLOTS share
 * a slot: the later wait takes it, and the other is counted as lost.
 *
 * A wait whose end was not seen (the program was skipped, the thread has left the scope, it was no buffered read)
 * stays, and is never taken for one of a later read: that has another count of read calls (ioac.syscr).
 */
struct reader {
	__u64 tid, syscr;
};

static __always_inline void current_reader(struct reader *r)
{
	struct task_struct *task = current_task_btf();

	if (task) {
		r->tid = (__u32)task->pid;
		r->syscr = bpf_core_field_exists(task->ioac.syscr) ? task->ioac.syscr : 0;
	} else {
		task = current_task();
		r->tid = (__u32)bpf_get_current_pid_tgid();
		r->syscr = bpf_core_field_exists(task->ioac.syscr) ? BPF_CORE_READ(task, ioac.syscr) : 0;
	}
}

static __always_inline struct read_wait *slot_of(const struct reader *r)
{
	__u32 slot = r->tid & (READ_SLOTS - 1);

	return bpf_map_lookup_elem(&read_waits, &slot);
}

/* The calls that can come to a buffered read of a file. */
static __always_inline bool in_read_call(void)
{
	struct syscall call;

	current_syscall(&call);
	switch (call.nr) {
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
	case NR_sendfile:
	case NR_splice:
	case NR_copy_file_range:
		return true;
	}
	return false;
}

/* The current task goes to sleep until some I/O is done. The first time in a read counts. */
static __always_inline int wait_begins(void)
{
	struct read_wait *wait;
	struct totals *t;
	struct reader r;

	if (!scoped() || !in_read_call())
		return 0;
	current_reader(&r);
	wait = slot_of(&r);
	if (!wait || (wait->tid == r.tid && wait->syscr == r.syscr))
		return 0;
	if (wait->tid && wait->tid != r.tid) {
		t = cpu_totals();
		if (t)
			ADD(t->lost_reads, 1);
	}
	wait->tid = r.tid;
	wait->syscr = r.syscr;
	wait->since_ns = bpf_ktime_get_ns();
	return 0;
}

/* A read has ended. If it waited, it counts, unless it failed. */
static __always_inline void read_ends(bool success)
{
	struct read_wait *wait;
	struct totals *t;
	__u64 bucket, ns;
	struct reader r;

	current_reader(&r);
	wait = slot_of(&r);
	if (!wait || wait->tid != r.tid || wait->syscr != r.syscr)
		return;
	wait->tid = 0;
	if (!success)
		return;
	ns = bpf_ktime_get_ns() - wait->since_ns;
	t = cpu_totals();
	bucket = duration_bucket(ns);
	barrier_var(bucket); /* as in reclaim_ends() */
	if (t && bucket < READ_BUCKETS) {
		ADD(t->wait_buckets[bucket], 1);
		ADD(t->wait_ns, ns);
	}
}

#endif

/* ---- fills and evictions ---- */

#ifndef NO_BTF
static __always_inline __u64 folio_pages(void *folio)
{
	unsigned long flags = 0;
	unsigned char order = 0;

	/* The flags are the first word of a page, always. */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!bpf_core_enum_value_exists(enum pageflags, PG_head) ||
	    !(flags >> (bpf_core_enum_value(enum pageflags, PG_head) & 63) & 1))
		return 1;
	if (bpf_core_field_exists(struct folio___6_0, _folio_order))
		order = BPF_CORE_READ((struct folio___6_0 *)folio, _folio_order);
	else if (bpf_core_field_exists(struct folio, _flags_1))
		order = BPF_CORE_READ((struct folio *)folio, _flags_1) & 0xff;
	return 1ULL << (order & 63);
}
#endif

static __always_inline struct inode *folio_inode(void *folio)
{
	return BPF_CORE_READ((struct page *)folio, mapping, host);
}

static __always_inline bool is_regular(struct inode *inode)
{
	return (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFREG;
}

enum match { MATCH_NONE, MATCH_STACKED, MATCH_EXACT };

/*
 * Is `inode` the file behind descriptor `fd`? MATCH_STACKED: the descriptor is of a stacked file system
 * (overlayfs), whose pages are those of the inode of a lower one.
 */
static __always_inline enum match fd_match(unsigned int fd, struct inode *inode)
{
	struct fdtable *fdt = BPF_CORE_READ(current_task(), files, fdt);
	struct file **files;
	struct file *file = 0;
	struct inode *of_fd;
	bool stacked;

	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return MATCH_NONE;
	files = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	of_fd = BPF_CORE_READ(file, f_inode);
	if (of_fd == inode)
		return MATCH_EXACT;
	if (bpf_core_field_exists(of_fd->i_sb->s_stack_depth))
		stacked = BPF_CORE_READ(of_fd, i_sb, s_stack_depth) > 0;
	else
		stacked = BPF_CORE_READ(of_fd, i_sb, s_magic) == OVERLAYFS_MAGIC;
	return stacked ? MATCH_STACKED : MATCH_NONE;
}

/* A fill while a system call works on `fd`: a page of another file can only be a fault inside its copy. */
static __always_inline enum fill_cause fd_cause(unsigned int fd, struct inode *inode, enum fill_cause cause)
{
	return fd_match(fd, inode) ? cause : FILL_FAULT;
}

/* sendfile and its kin read one file and may write another. */
static __always_inline enum fill_cause copy_cause(unsigned int in, unsigned int out, struct inode *inode)
{
	enum match reads = fd_match(in, inode);
	enum match writes = fd_match(out, inode);

	if (reads == MATCH_NONE && writes == MATCH_NONE)
		return FILL_FAULT;
	return reads >= writes ? FILL_READ : FILL_WRITE;
}

/* Why the current task fills a page of this file. */
static __always_inline enum fill_cause fill_cause(struct inode *inode)
{
	struct syscall call;

	if (BPF_CORE_READ(current_task(), flags) & PF_KTHREAD)
		return FILL_OTHER;
	if (!is_regular(inode))
		return FILL_OTHER;
	current_syscall(&call);

	switch (call.nr) {
	case -1:
	/* These populate a mapping through the fault handler. */
	case NR_mmap:
	case NR_mremap:
	case NR_mlock:
	case NR_mlock2:
	case NR_mlockall:
		return FILL_FAULT;
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
	case NR_finit_module:
		return fd_cause(call.arg[0], inode, FILL_READ);
	/* The kernel reads the program's headers. */
	case NR_execve:
	case NR_execveat:
		return FILL_READ;
	case NR_write:
	case NR_pwrite64:
	case NR_writev:
	case NR_pwritev:
	case NR_pwritev2:
		return fd_cause(call.arg[0], inode, FILL_WRITE);
	/* These zero the rest of a page at the new end or at a hole. */
	case NR_truncate:
	case NR_ftruncate:
	case NR_fallocate:
		return FILL_WRITE;
	case NR_fadvise64:
	case NR_readahead:
	case NR_madvise:
	case NR_process_madvise:
		return FILL_PREFETCH;
	case NR_sendfile:
		return copy_cause(call.arg[1], call.arg[0], inode);
	case NR_splice:
	case NR_copy_file_range:
		return copy_cause(call.arg[0], call.arg[2], inode);
	}
	return FILL_OTHER;
}

/* `pages` pages of a file have come: a folio. */
static __always_inline int pages_added(struct inode *inode, __u64 pages)
{
	struct totals *t = cpu_totals();
	enum fill_cause cause;

	if (!t)
		return 0;
	cause = fill_cause(inode);
	if (cause < FILL_CAUSES)
		ADD(t->fills[cause], pages);
	return 0;
}

/* kswapd belongs to nobody, and evicts on behalf of all. */
static __always_inline bool evicts_in_scope(void)
{
	return is_kswapd() || scoped();
}

/* A task in reclaim, of whatever kind, may use the memory that is kept for it. */
static __always_inline enum eviction_cause eviction_cause(void)
{
	unsigned int flags = BPF_CORE_READ(current_task(), flags);
	struct syscall call;

	if (flags & PF_MEMALLOC)
		return EVICT_RECLAIM;
	if (flags & PF_KTHREAD)
		return EVICT_OTHER;
	current_syscall(&call);
	return call.nr == NR_fadvise64 ? EVICT_FADVISE : EVICT_OTHER;
}

/* `pages` pages of a file have gone: a folio. */
static __always_inline int pages_removed(struct inode *inode, __u64 pages)
{
	struct totals *t = cpu_totals();
	enum eviction_cause cause;

	/* tmpfs tells of pages that go, but not of those that come. */
	if (BPF_CORE_READ(inode, i_sb, s_magic) == TMPFS_MAGIC || !t)
		return 0;
	cause = eviction_cause();
	if (cause < EVICTION_CAUSES)
		ADD(t->evictions[cause], pages);
	return 0;
}

/* ---- reclaim ---- */

static __always_inline int reclaim_begins(enum reclaimer reclaimer)
{
	struct stall stall = { .reclaimer = reclaimer };
	__u64 thread = bpf_get_current_pid_tgid();
	struct proc_row *row;
	struct totals *t;

	/* kswapd's own softlimit passes are no stall of anyone. */
	if (is_kswapd() || !scoped())
		return 0;
	current_proc(&stall.proc);
	row = current_row(&stall.proc);
	if (row)
		ADD(row->stalls, 1);
	stall.since_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&stalls, &thread, &stall, BPF_ANY)) {
		t = cpu_totals();
		if (t)
			ADD(t->lost_stalls, 1);
	}
	return 0;
}

static __always_inline int reclaim_ends(__u64 freed)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct stall *stall = bpf_map_lookup_elem(&stalls, &thread);
	struct proc_key proc;
	struct proc_row *row;
	struct totals *t;
	__u64 ns, bucket;

	if (!stall)
		return 0;
	ns = bpf_ktime_get_ns() - stall->since_ns;
	proc = stall->proc; /* before 4.18 a key has to lie on the stack */
	row = current_row(&proc);
	if (row)
		ADD(row->stalls, 1);
	t = cpu_totals();
	bucket = duration_bucket(ns);
	barrier_var(bucket); /* older verifiers must see the check below on the very register that is the index */
	if (t && bucket < STALL_BUCKETS) {
		ADD(t->stall_buckets[bucket], 1);
		ADD(t->stall_ns, ns);
		ADD(t->ended[stall->reclaimer == RECLAIM_MEMCG ? RECLAIM_MEMCG : RECLAIM_DIRECT], freed);
	}
	bpf_map_delete_elem(&stalls, &thread);
	return 0;
}

/* One batch of an inactive list. A reclaim without begin and end of its own (of a node) is direct. */
static __always_inline int inactive_scanned(__u64 pages, __u64 freed)
{
	__u64 thread = bpf_get_current_pid_tgid();
	__u32 who = RECLAIM_DIRECT;
	struct stall *stall;
	struct totals *t;

	if (is_kswapd()) {
		who = RECLAIM_KSWAPD;
	} else {
		stall = bpf_map_lookup_elem(&stalls, &thread);
		if (stall)
			who = stall->reclaimer;
		else if (!scoped())
			return 0;
	}
	t = cpu_totals();
	if (t && who < RECLAIMERS) {
		ADD(t->scanned[who], pages);
		ADD(t->reclaimed[who], freed);
	}
	return 0;
}

static __always_inline int kswapd_woke(void)
{
	struct totals *t = cpu_totals();

	if (t)
		ADD(t->kswapd_wakeups, 1);
	return 0;
}

/* ---- entry points: exits of functions (fexit) ---- */

#ifndef NO_BTF
/* ksys_fadvise64_64(fd, offset, len, advice) */
SEC("fexit/ksys_fadvise64_64")
int fexit_fadvise(__u64 *ctx)
{
	return scoped() ? fadvise_returned(ctx[3], (int)ctx[4]) : 0;
}

/*
 * filemap_read(iocb, iter, already_read), before 5.12 generic_file_buffered_read: returns the bytes copied and
 * those already read, and has moved iocb->ki_pos to the end.
 */
static __always_inline int filemap_read_returned(__u64 *ctx, bool timed)
{
	struct kiocb *iocb = (struct kiocb *)ctx[0];
	long bytes = (long)ctx[3] - (long)ctx[2];
	const struct settings *set = scoped();
	bool counts;

	if (!set)
		return 0;
	counts = bytes > 0 && (iocb->ki_filp->f_inode->i_mode & S_IFMT) == S_IFREG;
	if (timed)
		read_ends(counts);
	return counts ? bytes_read(set, iocb->ki_pos - bytes, bytes) : 0;
}

/* filemap_splice_read(in, ppos, pipe, len, flags), 6.5+: sendfile and splice; *ppos is at the end. */
static __always_inline int splice_read_returned(__u64 *ctx, bool timed)
{
	struct file *in = (struct file *)ctx[0];
	long bytes = (long)ctx[5];
	const struct settings *set = scoped();
	bool counts;
	__u64 pos = 0;

	if (!set)
		return 0;
	counts = bytes > 0 && (in->f_inode->i_mode & S_IFMT) == S_IFREG;
	if (timed)
		read_ends(counts);
	if (!counts)
		return 0;
	bpf_probe_read_kernel(&pos, sizeof(pos), (void *)ctx[1]);
	return bytes_read(set, pos - bytes, bytes);
}

SEC("fexit/filemap_read")
int fexit_read(__u64 *ctx)
{
	return filemap_read_returned(ctx, false);
}

SEC("fexit/filemap_splice_read")
int fexit_splice(__u64 *ctx)
{
	return splice_read_returned(ctx, false);
}

/* ---- entry points: the same reads, those that wait timed (fentry and fexit); the exits count them too ---- */

SEC("fentry/io_schedule")
int fentry_wait(__u64 *ctx)
{
	return wait_begins();
}

SEC("fentry/io_schedule_timeout")
int fentry_wait_timeout(__u64 *ctx)
{
	return wait_begins();
}

SEC("fexit/filemap_read")
int fexit_read_timed(__u64 *ctx)
{
	return filemap_read_returned(ctx, true);
}

SEC("fexit/filemap_splice_read")
int fexit_splice_timed(__u64 *ctx)
{
	return splice_read_returned(ctx, true);
}

#endif

/* ---- entry points: kprobes ---- */

SEC("kretprobe/ksys_fadvise64_64")
int kret_fadvise(struct pt_regs *ctx)
{
	return scoped() ? fadvise_returned(advice_asked(), (int)KPROBE_RET(ctx)) : 0;
}

/* One end of the function only, the entry: a probe at both costs twice as much and carries state by thread. */
static __always_inline int read_called(const struct settings *set, struct pt_regs *ctx)
{
	struct kiocb *iocb = (struct kiocb *)KPROBE_ARG0(ctx);
	struct iov_iter *iter = (struct iov_iter *)KPROBE_ARG1(ctx);

	return bytes_asked(set, LOAD(iocb, kiocb, ki_filp), LOAD(iocb, kiocb, ki_pos), LOAD(iter, iov_iter, count));
}

SEC("kprobe/filemap_read")
int kprobe_read(struct pt_regs *ctx)
{
	const struct settings *set = scoped();

	return set ? read_called(set, ctx) : 0;
}

/* Before 4.18 the function above is a part of this one, which direct reads go through as well. */
SEC("kprobe/generic_file_read_iter")
int kprobe_read_iter(struct pt_regs *ctx)
{
	struct kiocb *iocb = (struct kiocb *)KPROBE_ARG0(ctx);
	const struct settings *set = scoped();

	return set && !(BPF_CORE_READ(iocb, ki_filp, f_flags) & O_DIRECT) ? read_called(set, ctx) : 0;
}

SEC("kprobe/filemap_splice_read")
int kprobe_splice(struct pt_regs *ctx)
{
	const struct settings *set = scoped();
	__u64 pos = 0;

	if (!set)
		return 0;
	bpf_probe_read_kernel(&pos, sizeof(pos), (void *)KPROBE_ARG1(ctx));
	return bytes_asked(set, (struct file *)KPROBE_ARG0(ctx), pos, KPROBE_ARG3(ctx));
}

/* ---- entry points: tracepoints ---- */

struct sys_exit_args {
	__u64 common;
	__u64 nr;
	long ret;
};

/* Any tracepoint of a system call slows all of them, which is why the other ways come first. */
SEC("tracepoint/syscalls/sys_exit_fadvise64")
int tp_fadvise(struct sys_exit_args *ctx)
{
	return scoped() ? fadvise_returned(advice_asked(), ctx->ret) : 0;
}

/* A tracepoint hands over a folio as the number of its first page; the pages' descriptions are one array. */
static __always_inline void *page_at(__u64 pfn)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set ? (void *)(set->vmemmap + pfn * bpf_core_type_size(struct page)) : 0;
}

/* Before 6.1 the order is not told, and hardly any folio has one. */
static __always_inline __u64 pages_in(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return bpf_core_field_exists(ctx->order) ? 1ULL << (ctx->order & 63) : 1;
}

SEC("tracepoint/filemap/mm_filemap_add_to_page_cache")
int tp_fill(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return scoped() ? pages_added(folio_inode(page_at(ctx->pfn)), pages_in(ctx)) : 0;
}

SEC("tracepoint/filemap/mm_filemap_delete_from_page_cache")
int tp_evict(struct trace_event_raw_mm_filemap_op_page_cache *ctx)
{
	return evicts_in_scope() ? pages_removed(folio_inode(page_at(ctx->pfn)), pages_in(ctx)) : 0;
}

SEC("tracepoint/vmscan/mm_vmscan_lru_shrink_inactive")
int tp_scan(struct trace_event_raw_mm_vmscan_lru_shrink_inactive *ctx)
{
	return inactive_scanned(ctx->nr_scanned, ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_direct_reclaim_begin")
int tp_direct_in(void *ctx)
{
	return reclaim_begins(RECLAIM_DIRECT);
}

SEC("tracepoint/vmscan/mm_vmscan_direct_reclaim_end")
int tp_direct_out(struct trace_event_raw_mm_vmscan_direct_reclaim_end_template *ctx)
{
	return reclaim_ends(ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_memcg_reclaim_begin")
int tp_memcg_in(void *ctx)
{
	return reclaim_begins(RECLAIM_MEMCG);
}

SEC("tracepoint/vmscan/mm_vmscan_memcg_reclaim_end")
int tp_memcg_out(struct trace_event_raw_mm_vmscan_direct_reclaim_end_template *ctx)
{
	return reclaim_ends(ctx->nr_reclaimed);
}

SEC("tracepoint/vmscan/mm_vmscan_kswapd_wake")
int tp_kswapd(void *ctx)
{
	return kswapd_woke();
}

/* ---- entry points: raw tracepoints ---- */

#ifndef NO_BTF
SEC("raw_tracepoint/mm_filemap_get_pages")
int raw_read(struct bpf_raw_tracepoint_args *ctx)
{
	return page_read(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("raw_tracepoint/mm_filemap_add_to_page_cache")
int raw_fill(struct bpf_raw_tracepoint_args *ctx)
{
	void *folio = (void *)ctx->args[0];

	return scoped() ? pages_added(folio_inode(folio), folio_pages(folio)) : 0;
}

SEC("raw_tracepoint/mm_filemap_delete_from_page_cache")
int raw_evict(struct bpf_raw_tracepoint_args *ctx)
{
	void *folio = (void *)ctx->args[0];

	return evicts_in_scope() ? pages_removed(folio_inode(folio), folio_pages(folio)) : 0;
}

SEC("raw_tracepoint/mm_vmscan_lru_shrink_inactive")
int raw_scan(struct bpf_raw_tracepoint_args *ctx)
{
	return inactive_scanned(ctx->args[1], ctx->args[2]);
}

SEC("raw_tracepoint/mm_vmscan_direct_reclaim_begin")
int raw_direct_in(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_begins(RECLAIM_DIRECT);
}

SEC("raw_tracepoint/mm_vmscan_direct_reclaim_end")
int raw_direct_out(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_ends(ctx->args[0]);
}

SEC("raw_tracepoint/mm_vmscan_memcg_reclaim_begin")
int raw_memcg_in(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_begins(RECLAIM_MEMCG);
}

SEC("raw_tracepoint/mm_vmscan_memcg_reclaim_end")
int raw_memcg_out(struct bpf_raw_tracepoint_args *ctx)
{
	return reclaim_ends(ctx->args[0]);
}

SEC("raw_tracepoint/mm_vmscan_kswapd_wake")
int raw_kswapd(struct bpf_raw_tracepoint_args *ctx)
{
	return kswapd_woke();
}
#endif
