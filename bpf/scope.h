/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every subject needs: the settings, the counters, the current task, and whether it is one that counts.
 *
 * Counting: one struct totals per CPU, added to atomically all the same, because where programs can be
 * preempted (fentry, PREEMPT_RT) two of them can be in the middle of the same increment.
 */
#ifndef SCOPE_H
#define SCOPE_H

#include "kernel.h"
#include "syscalls.h"
#include "shared.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#ifdef NO_BTF
/* Before 5.2 programs have no variables. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");
#else
/*
 * The verifier takes what stands there for constants, and leaves out what a program then never comes to; volatile, since
 * what the compiler sees is not what the agent puts there.
 */
const volatile struct settings settings SEC(".rodata.settings");
struct state state SEC(".data.state");
#endif

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

#define ADD(lvalue, n) ((void)__sync_fetch_and_add(&(lvalue), (n)))

#ifdef NO_BTF
typedef const struct settings settings_t;
#else
typedef const volatile struct settings settings_t;
#endif

static __always_inline settings_t *the_settings(void)
{
#ifdef NO_BTF
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
#else
	return &settings;
#endif
}

/* Of all of x86 the same: a constant saves the register that it would lie in. */
static __always_inline __u32 page_shift(settings_t *set)
{
#if defined(__TARGET_ARCH_x86)
	return 12;
#else
	return set->page_shift;
#endif
}

static __always_inline struct state *the_state(void)
{
#ifdef NO_BTF
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state, &zero);
#else
	return &state;
#endif
}

/*
 * A number that is going to be checked, and then an index. Older verifiers must see the check on the very register that
 * is the index. And the first ones, as 4.14's, walk on where a check can only go the other way, with a number beyond its
 * own bound, which they refuse as an index: of what comes from the stack they know nothing that a check could contradict.
 */
static __always_inline __u64 index_of(__u64 number)
{
#ifdef NO_BTF
	volatile __u64 stacked = number;

	number = stacked;
#endif
	barrier_var(number);
	return number;
}

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

/* The open file of this_task() behind a descriptor, or null. */
static __always_inline struct file *open_file(struct task_struct *task, unsigned int fd)
{
	struct files_struct *files = LOAD_TASK(task, files);
	struct fdtable *fdt = LOAD(files, files_struct, fdt);
	struct file **open;

	if (fd >= LOAD(fdt, fdtable, max_fds))
		return 0;
	open = LOAD(fdt, fdtable, fd);
	return pointer_at(open + fd);
}

/*
 * While the agent attaches, nobody is in the scope: it does itself what is observed, in a thread with a random name, and
 * looks whether the program ran (src/monitor/proof.rs).
 */
static __always_inline bool proves(void)
{
	__u64 comm[COMM_LEN / 8] = {};
	struct state *st;
	const __u64 *want;

	bpf_get_current_comm(comm, sizeof(comm));
#ifdef NO_BTF
	st = the_state();
#else
	/* As that, but not so that the compiler keeps it in a register meanwhile, which every call of a program would save. */
	asm volatile("%0 = state ll" : "=r"(st));
#endif
	if (!st)
		return false;
	want = (const __u64 *)st->prover;
	if (comm[0] == want[0] && comm[1] == want[1])
		ADD(st->proved, 1);
	return false;
}

static __always_inline bool in_scope(void)
{
	struct state *st = the_state();
	__u64 comm[COMM_LEN / 8];
	struct task_struct *task;
	const volatile __u64 *want, *mask;
	__u64 scope;

	if (!st)
		return false;
	scope = st->scope;
	if (__builtin_expect(scope == SCOPE_HOST, true))
		return true;
	if (scope == SCOPE_CGROUP)
		return bpf_current_task_under_cgroup(&scope_cgroup, 0) == 1;
	if (scope == SCOPE_PROOF)
		return proves();
	/*
	 * The process's name, not the thread's. Only up to its NUL: behind it most kernels before 6.0 leave what they
	 * had of an earlier name.
	 */
	task = current_task_btf();
	if (task) {
		comm[0] = ((const __u64 *)task->group_leader->comm)[0];
		comm[1] = ((const __u64 *)task->group_leader->comm)[1];
	} else {
		BPF_CORE_READ_INTO(&comm, current_task(), group_leader, comm);
	}
	want = (const volatile __u64 *)st->comm;
	mask = (const volatile __u64 *)st->comm_mask;
	return (comm[0] & mask[0]) == want[0] && (comm[1] & mask[1]) == want[1];
}

static __always_inline __u64 regs_offset(void)
{
	settings_t *set = the_settings();
	__u64 offset = set ? set->regs_offset : 0;
	__u64 size;

	if (offset)
		return offset;
	/* Not found: a stack has 16 KiB or, if that is more, a page (without KASAN), and they are at its top. */
	size = set ? 1ULL << (page_shift(set) & 31) : 0;
	return (size > 16 * 1024 ? size : 16 * 1024) - bpf_core_type_size(struct pt_regs);
}

/* The settings, if the current task is in their scope. */
static __always_inline settings_t *scoped(void)
{
	settings_t *set = the_settings();

	return set && in_scope() ? set : 0;
}

#endif
