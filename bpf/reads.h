/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pages that buffered reads of regular files touch. */
#ifndef READS_H
#define READS_H

#include "processes.h"

/*
 * Attempts, misses and fills are of one population: a read counts if its fills are known to be a read's. By the stack
 * that is told of every reader, by the call alone (fill_cause() in fills.h) of these.
 */
static __always_inline bool fills_are_told(settings_t *set)
{
	struct syscall call;

	if (set->functions_known)
		return true;
	current_syscall(&call);
	return is_read_call(call.nr) || call.nr == NR_finit_module;
}

/* ---- by tracepoint ---- */

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

/*
 * A buffered read asks the page cache for its pages in batches, and mm_filemap_get_pages tells of each batch
 * with the whole rest of the range: first its whole range, then what is left. The range is counted once, on
 * its first event. A later event of the same read has the same thread, mapping and end and a larger index, and
 * happens before the thread's count of read calls (ioac.syscr) moves on. What is not before `first` may be of this read.
 * `before` is where the read before it in the same call ended; -1: there was none.
 */
static __always_inline bool continues_read(struct task_struct *task, __u64 mapping, __u64 first, __u64 index,
					   __u64 last, __u64 *before)
{
	__u64 tid = (__u32)task->pid, syscr = task->ioac.syscr;
	__u32 slot = tid & (READ_SLOTS - 1);
	struct read_cursor *cur = bpf_map_lookup_elem(&read_cursors, &slot);
	bool same;

	*before = -1ULL;
	if (!cur)
		return false;
	same = cur->tid == tid && cur->mapping == mapping && cur->syscr == syscr;
	if (same)
		*before = cur->last_index;
	same = same && cur->last_index == last && cur->index < index && first <= cur->index;
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
static __always_inline void learn_stack(void *ctx, struct task_struct *task, struct state *st)
{
	__u64 stack = (__u64)BPF_CORE_READ(task, stack);
	__u64 size = number((void *)bpf_task_pt_regs(task)) - stack;
	int i;

	st->regs_offset = size;
#pragma unroll
	for (i = 1; i < 32; i *= 2) /* up to the power of two above: the registers are at the top */
		size |= size >> i;
	size++;
	if ((number(ctx) & ~(size - 1)) != stack)
		return;
	st->stack_size = size;
	st->address = number(st);
}

/*
 * The registers saved when the current call entered the kernel. A wrong place would at most lose the beginning of
 * a read: see what pages_asked() demands.
 */
static __always_inline struct pt_regs *saved_regs(void *ctx, struct task_struct *task)
{
	struct state *st = the_state();

	if (!st->regs_offset)
		learn_stack(ctx, task, st);
	return bpf_rdonly_cast(task->stack + st->regs_offset, bpf_core_type_id_kernel(struct pt_regs));
}

/* The same without the helper that tells the task, which would take a sixth of the time; null if unknown. */
static __always_inline struct pt_regs *saved_regs_here(void *ctx)
{
	struct state *st = the_state();
	__u64 here;

	if (!st->regs_offset || !st->stack_size || !st->address)
		return 0;
	/* Pointers can be subtracted, but not masked. */
	here = (__u64)ctx - (__u64)st + st->address;
	return bpf_rdonly_cast((void *)((here & ~(st->stack_size - 1)) + st->regs_offset),
			       bpf_core_type_id_kernel(struct pt_regs));
}

/* One page, where the current pread begins: the most frequent read, told by the fewest loads. */
static __always_inline bool is_whole_pread(const struct pt_regs *regs, settings_t *set, const struct pages *event)
{
	return event->first == event->last && (int)regs->SYSCALL_NR == NR_pread64 &&
	       regs->SYSCALL_ARG3 >> page_shift(set) == event->first;
}

/* The open file behind a descriptor. It was loaded as whatever is one pointer, which is all that the verifier knows of it. */
static __always_inline struct file *opened(struct task_struct *task, unsigned int fd)
{
	struct file *file = open_file(task, fd);

	return file ? bpf_rdonly_cast(file, bpf_core_type_id_kernel(struct file)) : 0;
}

/*
 * The pages that the current call asks for, if it is one of read; others do not tell by themselves where they begin.
 * False as well if `event`, of `inode`, is no part of such a range: then it is of a read inside the call.
 */
static __always_inline bool pages_asked(struct task_struct *task, const struct pt_regs *regs, settings_t *set,
					struct inode *inode, const struct pages *event, struct pages *asked)
{
	int nr = regs->SYSCALL_NR;
	__u32 shift = page_shift(set);
	struct file *file = 0;
	__u64 pos, len;

	if (task->flags & PF_KTHREAD)
		return false;
	if (nr != NR_pread64 && nr != NR_read && nr != NR_readv && nr != NR_preadv && nr != NR_preadv2)
		return false;
	if (nr != NR_pread64) {
		file = opened(task, regs->SYSCALL_ARG0);
		if (!file)
			return false;
	}
	pos = regs->SYSCALL_ARG3;
	if (file && (nr == NR_read || nr == NR_readv || (nr == NR_preadv2 && pos == -1ULL)))
		pos = file->f_pos; /* moved on only when the call returns */
	if (file && nr != NR_read) {
		/* How long the buffers are together, only the end of the event tells: it must be of this very file. */
		if (file->f_inode != inode)
			return false;
		asked->first = pos >> shift;
		asked->last = event->last;
		return asked->first <= event->first;
	}
	len = regs->SYSCALL_ARG2;
	asked->first = pos >> shift;
	asked->last = (pos + len - 1) >> shift;
	return len && asked->first <= event->first && event->first <= asked->last && asked->last <= event->last;
}

/*
 * The same of sendfile, splice and copy_file_range, which read into a pipe, a page to a buffer. What the pipe has taken of
 * this read lies before the event; what it has no room for is asked for, but not read. Either it is the thread's own
 * (splice_pipe), which is empty when a read begins, and there are as many reads as it takes; or the one that the call
 * names, and the read begins where the call does.
 *
 * From the middle of a page on, such a read asks for one page more than the pipe takes. If that is still being filled,
 * there may be no event at all: `skipped` are the pages of a first read that the call's second one may have to count.
 */
static __always_inline bool pages_spliced(struct task_struct *task, const struct pt_regs *regs, settings_t *set,
					  struct inode *inode, const struct pages *event, struct pages *asked,
					  __u64 *skipped)
{
	int nr = regs->SYSCALL_NR;
	__u32 shift = page_shift(set), used, max;
	struct pipe_inode_info *pipe;
	struct file *in, *out;
	struct inode *target;
	bool fifo;
	__u64 pos, begin;

	if (nr != NR_sendfile && nr != NR_splice && nr != NR_copy_file_range)
		return false;
	if (task->flags & PF_KTHREAD)
		return false;
	in = opened(task, nr == NR_sendfile ? regs->SYSCALL_ARG1 : regs->SYSCALL_ARG0);
	out = opened(task, nr == NR_sendfile ? regs->SYSCALL_ARG0 : regs->SYSCALL_ARG2);
	if (!in || !out || in->f_inode != inode)
		return false;
	target = out->f_inode;
	fifo = (target->i_mode & S_IFMT) == S_IFIFO;
	pipe = fifo ? target->i_pipe : task->splice_pipe;
	if (!pipe)
		return false;
	pipe = bpf_rdonly_cast(pipe, bpf_core_type_id_kernel(struct pipe_inode_info));
	used = pipe->head - pipe->tail;
	max = pipe->max_usage;
	if (used >= max)
		return false;
	/* The file's position moves on only when the call returns, and so does the word in the program's memory. */
	pos = nr == NR_sendfile ? regs->SYSCALL_ARG2 : regs->SYSCALL_ARG1;
	if (!pos)
		pos = in->f_pos;
	else if (bpf_probe_read_user(&pos, sizeof(pos), (const void *)pos))
		return false;
	begin = pos >> shift;
	if (event->first < begin || (fifo ? used < event->first - begin : used > event->first - begin))
		return false;
	asked->first = fifo ? begin : event->first - used;
	asked->last = event->last;
	if (asked->last - event->first >= max - used)
		asked->last = event->first + (max - used) - 1;
	*skipped = asked->first == begin + max && pos & ((1ULL << shift) - 1) ? max : 0;
	return true;
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
	settings_t *set = scoped();
	struct task_struct *task;
	struct pages p = { index, last };
	struct pages asked;
	struct address_space *space;
	struct pt_regs *regs;
	struct inode *inode;
	struct totals *t;
	bool known;
	__u32 shift;
	__u64 end, before, skipped = 0, *did;

	if (!set)
		return 0;
	space = bpf_rdonly_cast((void *)mapping, bpf_core_type_id_kernel(struct address_space));
	inode = space->host;
	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	regs = saved_regs_here(ctx);
	if (regs && is_whole_pread(regs, set, &p)) /* and no read begins behind the end of the file */
		goto count;
	task = bpf_get_current_task_btf();
	regs = saved_regs(ctx, task);
	if (!fills_are_told(set))
		return 0;
	known = pages_asked(task, regs, set, inode, &p, &asked) ||
		pages_spliced(task, regs, set, inode, &p, &asked, &skipped);
	if (skipped || !known || asked.first != last) {
		if (continues_read(task, mapping, known ? asked.first : 0, index, last, &before))
			return 0;
		if (skipped && (before < asked.first - skipped || before > last))
			asked.first -= skipped;
	}
	if (known)
		p = asked;
	shift = page_shift(set);
	end = ((__u64)inode->i_size + (1ULL << shift) - 1) >> shift;
	if (p.first >= end)
		return 0;
	if (p.last >= end)
		p.last = end - 1;
count:
	/* Not atomic: nothing else adds to it in this mode, and a CPU runs a program once at a time. */
	if (set->rows) {
		did = activity(set);
		if (did)
			did[DID_READ_PAGES] += p.last - p.first + 1;
	} else {
		t = cpu_totals();
		if (t)
			t->read_pages += p.last - p.first + 1;
	}
	return 0;
}

#endif

/* ---- by function ---- */

/* By address of the request. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RETRY_SLOTS);
	__type(key, __u32);
	__type(value, struct retry);
} retries SEC(".maps");

/*
 * At the entry of a read: does one that has counted go on? io_uring first asks without waiting, then, if pages are
 * missing, to be told when they are there (IOCB_WAITQ), and then once more.
 */
static __always_inline bool is_retry(void *iocb, __u64 pos, int flags)
{
	__u32 slot = ((__u64)iocb >> 8) & (RETRY_SLOTS - 1); /* requests are about that long */
	struct retry *retry;

	if (!(flags & (IOCB_NOWAIT | IOCB_WAITQ)))
		return false;
	retry = bpf_map_lookup_elem(&retries, &slot);
	if (!retry)
		return false;
	if (!(flags & IOCB_NOWAIT)) {
		retry->iocb = (__u64)iocb;
		retry->pos = pos;
		return true;
	}
	if (retry->iocb != (__u64)iocb || retry->pos != pos)
		return false;
	retry->iocb = 0;
	return true;
}

/* `bytes` from `pos` on, of a file that a buffered read or splice goes over. */
static __always_inline int bytes_read(settings_t *set, __u64 pos, __u64 bytes)
{
	__u32 shift = page_shift(set);
	struct totals *t;
	__u64 pages, *did;

	if (!bytes || !fills_are_told(set))
		return 0;
	pages = ((pos + bytes - 1) >> shift) - (pos >> shift) + 1;
	if (set->rows) {
		did = activity(set);
		if (did) {
			ADD(did[DID_READ_PAGES], pages);
			ADD(did[DID_READ_BYTES], bytes);
		}
	} else {
		t = cpu_totals();
		if (t) {
			ADD(t->read_pages, pages);
			ADD(t->read_bytes, bytes);
		}
	}
	return 0;
}

/* The buffers, of a page each at most, of the pipe inside of sendfile and copy_file_range (PIPE_DEF_BUFFERS). */
#define PIPE_PAGES 16

/*
 * Before 5.4 sendfile asks for all that is left, over and over, while its pipe takes so many pages. Later ones ask for
 * as many bytes, which from the middle of a page on touch one page more than the pipe takes. What asks for more there
 * fills a larger pipe of its own: sendfile into one, from 5.12 on.
 */
static __always_inline __u64 fits_in_pipe(settings_t *set, __u64 pos, __u64 bytes)
{
	__u64 page = 1ULL << page_shift(set), pipe = PIPE_PAGES * page;
	__u64 room = pipe - (pos & (page - 1));
	struct syscall call;

	if (bytes <= room || (bytes > pipe && KERNEL_HAS(get_current_task_btf)))
		return bytes;
	current_syscall(&call);
	return call.nr == NR_sendfile || call.nr == NR_copy_file_range ? room : bytes;
}

/* At the entry of a read only what was asked for is known: it counts as far as the file goes. */
static __always_inline int bytes_asked(settings_t *set, struct file *file, __u64 pos, __u64 bytes)
{
	struct inode *inode = LOAD(file, file, f_inode);
	__u64 size;

	if ((LOAD(inode, inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	size = LOAD(inode, inode, i_size);
	if (pos >= size)
		return 0;
	bytes = fits_in_pipe(set, pos, bytes);
	return bytes_read(set, pos, bytes < size - pos ? bytes : size - pos);
}

#endif
