/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pages that leave the page cache, by cause. */
#ifndef EVICTIONS_H
#define EVICTIONS_H

#include "fills.h"

/* A task in reclaim, of whatever kind, may use the memory that is kept for it. */
static __always_inline enum eviction_cause eviction_cause(struct task_struct *task, unsigned int flags)
{
	struct syscall call;

	if (flags & PF_MEMALLOC)
		return EVICT_RECLAIM;
	syscall_of(task, flags, &call);
	return is_fadvise_call(call.nr) ? EVICT_FADVISE : EVICT_OTHER;
}

/* `pages` pages of a file have gone: a folio. kswapd belongs to nobody, and evicts on behalf of all. */
static __always_inline int pages_removed(struct inode *inode, __u64 pages)
{
	struct task_struct *task = this_task();
	unsigned int flags = LOAD_TASK(task, flags);
	enum eviction_cause cause;
	struct totals *t;

	if (!(flags & PF_KSWAPD) && !scoped())
		return 0;
	t = cpu_totals();
	if (!t || is_memory(inode))
		return 0;
	cause = eviction_cause(task, flags);
	if (cause < EVICTION_CAUSES)
		ADD(t->evictions[cause], pages);
	file_evicted(inode, cause, pages);
	return 0;
}

#endif
