/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Memory reclaim: who has to do it, for how long, what it scans and frees; kswapd. */
#ifndef RECLAIM_H
#define RECLAIM_H

#include "processes.h"
#include "durations.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STALLS);
	__type(key, __u64);
	__type(value, struct stall);
} stalls SEC(".maps");

/* Whether the system call writes to a file of a cgroup: memory.reclaim, memory.force_empty, a limit. */
static __always_inline bool writes_to_cgroup(void)
{
	struct syscall call;
	struct file *file;
	__u64 magic;

	current_syscall(&call);
	switch (call.nr) {
	case NR_write:
	case NR_pwrite64:
	case NR_writev:
	case NR_pwritev:
	case NR_pwritev2:
		break;
	default:
		return false;
	}
	file = open_file(this_task(), SYSCALL_ARG(&call, 0));
	magic = BPF_CORE_READ(file, f_inode, i_sb, s_magic);
	return magic == CGROUP2_MAGIC || magic == CGROUP_MAGIC;
}

/*
 * Direct reclaim is always for an allocation of the thread's own. That of a cgroup is so if the thread charges a page, in
 * the kernel or, above memory.high, on its way back to user space. It is not if the thread was told to: by a write to a
 * file of the cgroup, or as the kernel thread that works off what is above memory.high.
 */
static __always_inline bool is_proactive(enum reclaimer reclaimer)
{
	return reclaimer == RECLAIM_MEMCG &&
	       (BPF_CORE_READ(current_task(), flags) & PF_KTHREAD || writes_to_cgroup());
}

static __always_inline int reclaim_begins(enum reclaimer reclaimer)
{
	struct stall stall = { .reclaimer = reclaimer };
	__u64 thread = bpf_get_current_pid_tgid();
	struct row_key key;
	struct proc_row *row;
	struct totals *t;

	/* kswapd's own softlimit passes are no stall of anyone. */
	if (is_kswapd() || !scoped())
		return 0;
	task_key(this_task(), &key);
	*(__u64 *)&stall.proc = key.proc;
	stall.proactive = is_proactive(reclaimer);
	row = stall.proactive ? 0 : current_row();
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
	struct totals *t = cpu_totals();
	struct proc_row *row;
	__u64 ns, bucket;

	/* Looked at once: on the way on from a null pointer 4.14 takes it for any number. */
	if (!stall || !t)
		return 0;
	ns = bpf_ktime_get_ns() - stall->since_ns;
	ADD(t->ended[stall->reclaimer == RECLAIM_MEMCG ? RECLAIM_MEMCG : RECLAIM_DIRECT], freed);
	if (!stall->proactive) {
		row = current_row(); /* who ends a stall has begun it */
		if (row)
			ADD(row->stalls, 1);
		bucket = index_of(duration_bucket(ns));
		if (bucket < STALL_BUCKETS) {
			ADD(t->stall_buckets[bucket], 1);
			ADD(t->stall_ns, ns);
		}
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

#endif
