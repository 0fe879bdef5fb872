/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pages that come into the page cache, by cause. */
#ifndef FILLS_H
#define FILLS_H

#include "scope.h"

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
	if (HAS_FIELD(of_fd->i_sb->s_stack_depth, false))
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

#endif
