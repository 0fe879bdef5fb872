/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rows: what each process did, in each cgroup that it was in. */
#ifndef PROCESSES_H
#define PROCESSES_H

#include "scope.h"

/*
 * Each CPU holds the rows of those that did something on it last, one for each place: a count is an addition there,
 * and only who finds another's row in its place moves that to the map behind `procs`, or if that is full to the one
 * behind `cgroups`, or to the overflow. A count is always in exactly one of these.
 *
 * Where programs can be preempted (fentry on preemptible kernels, which the agent does not choose by itself there)
 * another one can take a place between the look at its key and the addition: the count is then another's, and none is
 * lost, since all is moved by additions.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct held_rows);
} held_by_cpu SEC(".maps");

/*
 * The programs write to the map that `procs` holds; each tick the agent swaps it (the kernel waits for running
 * programs), then empties the other at leisure, so that no count is lost to a delete. Shared between the CPUs rather
 * than per CPU: on a host of 128 CPUs a per-CPU map of this size takes 100 MB.
 */
struct proc_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROCS);
	__type(key, struct row_key);
	__type(value, struct proc_row);
} procs_a SEC(".maps"), procs_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct proc_map);
} procs SEC(".maps") = { .values = { &procs_a } };

/* The same by cgroup alone. */
struct cgroup_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CGROUPS);
	__type(key, struct row_key);
	__type(value, struct proc_row);
} cgroups_a SEC(".maps"), cgroups_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct cgroup_map);
} cgroups SEC(".maps") = { .values = { &cgroups_a } };

/* A process, as one number. */
static __always_inline __u64 proc_number(__u32 tgid, __u64 start_ns)
{
	__u64 start = start_ns >> START_SHIFT;

	barrier_var(start); /* two shifts, not one and a mask of 64 bits */
	return start << 32 | tgid;
}

#ifdef NO_BTF
/* The pointer, or number, so far from an address. */
#define AT_PLACE(address, place) ((__u64)pointer_at((void *)(address) + bpf_core_type_size(struct place)))
#endif

/* The current task's cgroup of version 2. Before 5.5 the upper half is not part of the inode number: the agent knows. */
static __always_inline __u64 current_cgroup(void)
{
#ifdef NO_BTF
	__u64 at = (__u64)current_task();

	if (!bpf_core_type_size(struct place_of_id))
		return 0;
	at = AT_PLACE(at, place_of_cgroups);
	at = AT_PLACE(at, place_of_dfl_cgrp);
	at = AT_PLACE(at, place_of_kn);
	return AT_PLACE(at, place_of_id);
#else
	return KERNEL_HAS(get_current_cgroup_id) ? bpf_get_current_cgroup_id() : 0;
#endif
}

/* Of this_task(). */
static __always_inline void task_key(struct task_struct *task, struct row_key *key)
{
	__u64 start;

	if (KERNEL_HAS(get_current_task_btf)) {
		key->proc = proc_number(task->tgid, task->group_leader->start_boottime);
		key->cgroup = task->cgroups->dfl_cgrp->kn->id;
		return;
	}
	task = BPF_CORE_READ(task, group_leader);
	if (HAS_FIELD(task->start_boottime, true))
		start = BPF_CORE_READ(task, start_boottime);
	else
		start = BPF_CORE_READ((struct task_struct___5_4 *)task, real_start_time);
	key->proc = proc_number(bpf_get_current_pid_tgid() >> 32, start);
	key->cgroup = current_cgroup();
}

static __always_inline void task_name(struct task_struct *task, __u64 *comm)
{
	const __u64 *name;

	if (KERNEL_HAS(get_current_task_btf)) {
		name = (const __u64 *)task->group_leader->comm;
		comm[0] = name[0];
		comm[1] = name[1];
	} else {
		BPF_CORE_READ_INTO((char (*)[COMM_LEN])comm, task, group_leader, comm);
	}
}

/* The row in a map of this interval, which `comm` names if it is new; null if the map is full. */
static __always_inline struct proc_row *row_in(void *maps, const struct row_key *key, const __u64 *comm)
{
	struct proc_row fresh;
	struct proc_row *row;
	__u32 zero = 0;
	void *map = bpf_map_lookup_elem(maps, &zero);

	if (!map)
		return 0;
	row = bpf_map_lookup_elem(map, key);
	if (row)
		return row;
	__builtin_memset(&fresh, 0, sizeof(fresh));
	fresh.comm[0] = comm[0];
	fresh.comm[1] = comm[1];
	/* Another CPU may be first: then this one fails and finds that row. */
	bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

static __always_inline void move(__u64 *from, __u64 *to)
{
	int i;

#pragma unroll
	for (i = 0; i < ACTIVITIES; i++) {
		__u64 n = *(volatile __u64 *)&from[i];

		if (n) {
			ADD(to[i], n);
			ADD(from[i], -n);
		}
	}
}

/* Moves what a CPU holds for one process to where all CPUs' is. */
static __always_inline void put_away(struct held_row *held)
{
	struct row_key key = held->key;
	__u64 comm[] = { held->comm[0], held->comm[1] };
	struct proc_row *row;
	struct totals *t;

	row = row_in(&procs, &key, comm);
	if (!row) {
		key.proc = comm[0] = comm[1] = 0;
		row = row_in(&cgroups, &key, comm);
	}
	if (row) {
		move(held->did, row->did);
		return;
	}
	t = cpu_totals();
	if (t)
		move(held->did, t->overflow);
}

/* The place becomes the current process's. */
static __always_inline void take_place(struct held_row *held, __u64 since, __u64 cgroup_nr,
				       const struct row_key *key)
{
	held->taken++;
	barrier();
	if (held->key.proc)
		put_away(held);
	held->since = since;
	held->cgroup_nr = cgroup_nr;
	held->key = *key;
	task_name(this_task(), held->comm);
	barrier();
	held->settled = held->taken;
}

static __always_inline void *held_here(settings_t *set)
{
#ifdef NO_BTF
	__u32 zero = 0; /* before 4.18 a key has to lie on the stack */

	return bpf_map_lookup_elem(&held_by_cpu, &zero);
#else
	return bpf_map_lookup_elem(&held_by_cpu, (const void *)&set->zero);
#endif
}

static __always_inline struct held_row *place_of(struct held_rows *all, __u64 tgid)
{
	struct held_row *held;
	__u64 place = tgid & (HELD - 1);

#ifdef NO_BTF
	place = index_of(place);
	if (place >= HELD)
		return 0;
#endif
	held = &all->rows[place];
	barrier_var(held);
	return held;
}

/* As below, where loads need no calls: this is what cached reads run, and each instruction counts. */
static __always_inline struct held_row *held_of_task(settings_t *set)
{
	struct held_rows *all;
	struct task_struct *task;
	struct held_row *held;
	struct row_key key;
	__u64 tgid, since, cgroup_nr;

	barrier(); /* or the compiler asks once more, after what both ways begin with */
	all = held_here(set);
	if (!all)
		return 0;
	task = bpf_get_current_task_btf(); /* after the other call: no register has to be saved over it */
	tgid = task->tgid;
	barrier_var(tgid); /* or the compiler cuts it to 32 bits twice */
	since = task->group_leader->start_boottime + task->self_exec_id;
	cgroup_nr = task->cgroups->dfl_cgrp->self.serial_nr;
	held = place_of(all, tgid);
	if (__builtin_expect(held->since == since && *(volatile __u32 *)&held->key.proc == tgid &&
				     held->cgroup_nr == cgroup_nr,
			     true))
		return held;
	/* All of it once more, rather than in registers over the calls from here on. */
	task = bpf_get_current_task_btf();
	task_key(task, &key);
	since = task->group_leader->start_boottime + task->self_exec_id;
	take_place(held, since, task->cgroups->dfl_cgrp->self.serial_nr, &key);
	return held;
}

/* The row that this CPU holds of the current process; never null, but the verifier does not know. */
static __always_inline struct held_row *held_row(settings_t *set)
{
	struct held_rows *all;
	struct held_row *held;
	struct row_key key;

	if (KERNEL_HAS(get_current_task_btf))
		return held_of_task(set);
	all = held_here(set);
	if (!all)
		return 0;
	task_key(this_task(), &key);
	held = place_of(all, key.proc);
	if (held && (held->key.proc != key.proc || held->key.cgroup != key.cgroup))
		take_place(held, 0, 0, &key);
	return held;
}

/* What the current process did, to add to. */
static __always_inline __u64 *activity(settings_t *set)
{
	struct held_row *held = held_row(set);

	return held ? held->did : 0;
}

/* The same where a few more instructions do not matter: its name may have changed otherwise than by exec. */
static __always_inline __u64 *named_activity(settings_t *set)
{
	struct held_row *held = held_row(set);

	if (!held)
		return 0;
	task_name(this_task(), held->comm);
	return held->did;
}

/* The current process's row in the map, for what is too rare to be held; null if the map is full. */
static __always_inline struct proc_row *current_row(void)
{
	struct row_key key;
	__u64 comm[COMM_LEN / 8];

	task_key(this_task(), &key);
	task_name(this_task(), comm);
	return row_in(&procs, &key, comm);
}

#endif
