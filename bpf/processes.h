/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rows of processes: what each did in the current interval. */
#ifndef PROCESSES_H
#define PROCESSES_H

#include "scope.h"

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
	if (HAS_FIELD(leader->start_boottime, true))
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

#endif
