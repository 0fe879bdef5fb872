/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pages that come into the page cache, by cause. */
#ifndef FILLS_H
#define FILLS_H

#include "callers.h"
#include "files.h"
#include "processes.h"

#ifndef NO_BTF
static __always_inline __u64 folio_pages(void *folio)
{
	/* The flags are the first word of a page, always, as they are of this type. */
	unsigned long flags = LOAD(folio, thread_info, flags);
	unsigned char order = 0;

	if (!bpf_core_enum_value_exists(enum pageflags, PG_head) ||
	    !(flags >> (bpf_core_enum_value(enum pageflags, PG_head) & 63) & 1))
		return 1;
	if (bpf_core_field_exists(struct folio___6_0, _folio_order))
		order = BPF_CORE_READ((struct folio___6_0 *)folio, _folio_order);
	else if (bpf_core_field_exists(struct folio, _flags_1))
		order = LOAD(folio, folio, _flags_1) & 0xff;
	return 1ULL << (order & 63);
}
#endif

static __always_inline struct inode *folio_inode(void *folio)
{
	struct address_space *mapping = LOAD(folio, page, mapping);

	return LOAD(mapping, address_space, host);
}

static __always_inline bool is_regular(struct inode *inode)
{
	return (LOAD(inode, inode, i_mode) & S_IFMT) == S_IFREG;
}

/*
 * Pages that are the memory of a file system without a store, and that no buffered read goes over: no page cache,
 * although they come or go by its events. (Those of ramfs are read like any other's.)
 */
static __always_inline bool is_memory(struct inode *inode)
{
	struct super_block *sb = LOAD(inode, inode, i_sb);

	switch (LOAD(sb, super_block, s_magic)) {
	case TMPFS_MAGIC:
	case HUGETLBFS_MAGIC:
	case SECRETMEM_MAGIC:
	case GUEST_MEMFD_MAGIC:
	case AIO_RING_MAGIC:
		return true;
	}
	return false;
}

/* The file behind descriptor `fd`; 0: none. */
static __always_inline struct inode *inode_of_fd(struct task_struct *task, unsigned int fd)
{
	struct file *file = open_file(task, fd);

	return file ? LOAD(file, file, f_inode) : 0;
}

/* What is not known from a call's number. */
enum { NOT_CACHED = FILL_CAUSES, BY_FILE, BY_STACK };

/* Why a call of this number fills pages. BY_FILE: that depends on which of the files `in` and `out` they belong to. */
static __always_inline int cause_of_call(const struct syscall *call, unsigned int *in, unsigned int *out)
{
	switch (call->nr) {
	case -1:
	/* These populate a mapping through the fault handler. */
	case NR_mmap:
	case NR_mremap:
	case NR_mlock:
	case NR_mlock2:
	case NR_mlockall:
		return FILL_FAULT;
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
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
	case NR_finit_module:
		*in = SYSCALL_ARG(call, 0);
		return BY_FILE;
	case NR_write:
	case NR_pwrite64:
	case NR_writev:
	case NR_pwritev:
	case NR_pwritev2:
		*out = SYSCALL_ARG(call, 0);
		return BY_FILE;
	case NR_sendfile:
		*in = SYSCALL_ARG(call, 1);
		*out = SYSCALL_ARG(call, 0);
		return BY_FILE;
	case NR_splice:
	case NR_copy_file_range:
		*in = SYSCALL_ARG(call, 0);
		*out = SYSCALL_ARG(call, 2);
		return BY_FILE;
	}
	return BY_STACK;
}

/* overlayfs and its like, whose pages are those of the inode of a lower one. */
static __always_inline bool is_stacked(struct inode *inode)
{
	if (!inode)
		return false;
	if (HAS_FIELD(inode->i_sb->s_stack_depth, false))
		return BPF_CORE_READ(inode, i_sb, s_stack_depth) > 0;
	return BPF_CORE_READ(inode, i_sb, s_magic) == OVERLAYFS_MAGIC;
}

/* Where the stack cannot be asked. What a call may do that can read as well as fault is not known. */
static __always_inline enum fill_cause cause_by_name(int nr)
{
	if (nr == NR_NONE || nr >= COMPAT(0) || nr == NR_execve || nr == NR_execveat || nr == NR_io_submit ||
	    nr == NR_io_uring_enter || nr == NR_open || nr == NR_openat || nr == NR_openat2 || nr == NR_ioctl)
		return FILL_OTHER;
	return FILL_FAULT;
}

/*
 * Why the current task fills a page of this file: by its call, and where that does not tell, by its stack. A page of
 * another file than the one that is read or written can be a fault inside the copy, or the work of a stacked file
 * system; a thread of the kernel or of io_uring makes no calls; those of 32-bit programs have other numbers.
 */
static __always_inline int fill_cause(void *ctx, settings_t *set, struct inode *inode, bool stack)
{
	struct task_struct *task = this_task();
	struct inode *read = 0, *written = 0;
	unsigned int in = -1, out = -1;
	struct syscall call;
	int cause;

	saved_call(task, LOAD_TASK(task, flags), &call);
	/* Told by the fewest loads: the most frequent ones. No call of 32-bit programs that fills pages has their numbers. */
	if (call.nr == NR_pwrite64 || call.nr == NR_write)
		cause = FILL_WRITE;
	else if (call.nr == NR_pread64 || call.nr == NR_read)
		cause = FILL_READ;
	else
		cause = BY_STACK;
	if (cause != BY_STACK && inode_of_fd(task, SYSCALL_ARG(&call, 0)) == inode && is_regular(inode))
		return cause;

	if (is_memory(inode))
		return NOT_CACHED;
	if (!is_regular(inode))
		return FILL_OTHER;
	tell_compat(task, &call);
	cause = cause_of_call(&call, &in, &out);
	if (cause < BY_FILE)
		return cause;
	if (cause == BY_FILE) {
		if (in != -1)
			read = inode_of_fd(task, in);
		if (out != -1)
			written = inode_of_fd(task, out);
		if (read == inode && written != inode)
			return FILL_READ;
		if (written == inode && read != inode)
			return FILL_WRITE;
	}
	if (stack && set->functions_known)
		return cause_by_stack(ctx, set);
	if (cause == BY_STACK)
		return cause_by_name(call.nr);
	if (read == inode || is_stacked(read))
		return FILL_READ;
	return is_stacked(written) ? FILL_WRITE : FILL_FAULT;
}

/* `pages` pages of a file have come: a folio. */
static __always_inline int pages_added(void *ctx, settings_t *set, struct inode *inode, __u64 pages, bool stack)
{
	__u64 cause = index_of(fill_cause(ctx, set, inode, stack));
	struct totals *t;
	__u64 *did;

	if (cause >= FILL_CAUSES)
		return 0;
	if (set->rows) {
		did = named_activity(set);
		if (did)
			ADD(did[DID_FILL + cause], pages);
	} else {
		t = cpu_totals();
		if (t)
			ADD(t->fills[cause], pages);
	}
	file_filled(inode, cause, pages);
	return 0;
}

#endif
