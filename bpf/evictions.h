/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pages that leave the page cache, by cause. */
#ifndef EVICTIONS_H
#define EVICTIONS_H

#include "fills.h"

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

#endif
