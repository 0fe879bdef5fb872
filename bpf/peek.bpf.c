// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Looks into the kernel's memory on behalf of one thread of the agent: where the kernel does not describe its types
 * (no BTF), src/ebpf/layout.rs finds the fields that iomonitor.bpf.c needs by looking at the kernel's objects of that
 * thread, whose contents it knows. Loaded for that alone, and gone when the agent has started.
 *
 * The thread is known by a name that no other has, and asks by taking that name once more: hardly any thread ever
 * renames itself. Its id would not do, since in a pid namespace a thread does not know the one that the kernel uses.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include "peek.h"

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct peek);
} questions SEC(".maps");

/* The question, if the current thread is the one that asks. */
static __always_inline struct peek *asked(void)
{
	__u64 comm[2] = {};
	__u32 zero = 0;
	struct peek *peek = bpf_map_lookup_elem(&questions, &zero);
	const __u64 *name;

	if (!peek)
		return 0;
	name = (const __u64 *)peek->name;
	bpf_get_current_comm(comm, sizeof(comm));
	return comm[0] == name[0] && comm[1] == name[1] ? peek : 0;
}

SEC("tracepoint/task/task_rename")
int peek_memory(void *ctx)
{
	struct peek *peek = asked();

	if (!peek)
		return 0;
	peek->thread = bpf_get_current_pid_tgid();
	peek->task = bpf_get_current_task();
	peek->answered = !bpf_probe_read_kernel(peek->memory, sizeof(peek->memory), (void *)peek->address);
	return 0;
}

/* The record that a tracepoint hands over, whose fields tracefs describes. */
SEC("tracepoint/filemap/mm_filemap_delete_from_page_cache")
int peek_record(void *ctx)
{
	struct peek *peek = asked();

	if (peek)
		peek->answered = !bpf_probe_read_kernel(peek->memory, sizeof(peek->memory), ctx);
	return 0;
}

/* Places in struct pt_regs of a function's first two arguments. */
#if defined(__TARGET_ARCH_x86)
#define ARG0 14
#define ARG1 13
#elif defined(__TARGET_ARCH_arm64)
#define ARG0 0
#define ARG1 1
#endif

/* What the first two arguments of a function point to: half of the memory each. */
SEC("kprobe")
int peek_arguments(__u64 *regs)
{
	struct peek *peek = asked();

	if (!peek)
		return 0;
	peek->answered = !bpf_probe_read_kernel(&peek->memory[0], sizeof(peek->memory) / 2, (void *)regs[ARG0]) &&
			 !bpf_probe_read_kernel(&peek->memory[16], sizeof(peek->memory) / 2, (void *)regs[ARG1]);
	return 0;
}
