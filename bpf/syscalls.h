/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The system call a task is in, and its arguments, from the registers saved at its entry to the kernel:
 * asm/unistd.h has the numbers. A task in a page fault from user space has the number -1.
 */
#ifndef SYSCALLS_H
#define SYSCALLS_H

#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#if defined(__TARGET_ARCH_x86)

/* Names of the saved registers that hold the number and the arguments. */
#define SYSCALL_NR orig_ax
#define SYSCALL_ARG0 di
#define SYSCALL_ARG1 si
#define SYSCALL_ARG2 dx
#define SYSCALL_ARG3 r10

/* Arguments and result of a kernel function, in a kprobe. */
#define KPROBE_ARG0(ctx) ((ctx)->di)
#define KPROBE_ARG1(ctx) ((ctx)->si)
#define KPROBE_ARG3(ctx) ((ctx)->cx)
#define KPROBE_RET(ctx) ((ctx)->ax)

/* arch/x86/include/asm/page_64_types.h, without KASAN. */
#define THREAD_SIZE (16 * 1024)

enum {
	NR_read = 0,
	NR_write = 1,
	NR_mmap = 9,
	NR_pread64 = 17,
	NR_pwrite64 = 18,
	NR_readv = 19,
	NR_writev = 20,
	NR_mremap = 25,
	NR_madvise = 28,
	NR_sendfile = 40,
	NR_execve = 59,
	NR_truncate = 76,
	NR_ftruncate = 77,
	NR_mlock = 149,
	NR_mlockall = 151,
	NR_readahead = 187,
	NR_fadvise64 = 221,
	NR_splice = 275,
	NR_fallocate = 285,
	NR_preadv = 295,
	NR_pwritev = 296,
	NR_finit_module = 313,
	NR_execveat = 322,
	NR_mlock2 = 325,
	NR_copy_file_range = 326,
	NR_preadv2 = 327,
	NR_pwritev2 = 328,
	NR_process_madvise = 440,
};

#elif defined(__TARGET_ARCH_arm64)

#define SYSCALL_NR syscallno
#define SYSCALL_ARG0 orig_x0
#define SYSCALL_ARG1 regs[1]
#define SYSCALL_ARG2 regs[2]
#define SYSCALL_ARG3 regs[3]

#define KPROBE_ARG0(ctx) ((ctx)->regs[0])
#define KPROBE_ARG1(ctx) ((ctx)->regs[1])
#define KPROBE_ARG3(ctx) ((ctx)->regs[3])
#define KPROBE_RET(ctx) ((ctx)->regs[0])

/* arch/arm64/include/asm/memory.h, with pages of 4 KiB and without KASAN. */
#define THREAD_SIZE (16 * 1024)

enum {
	NR_truncate = 45,
	NR_ftruncate = 46,
	NR_fallocate = 47,
	NR_read = 63,
	NR_write = 64,
	NR_readv = 65,
	NR_writev = 66,
	NR_pread64 = 67,
	NR_pwrite64 = 68,
	NR_preadv = 69,
	NR_pwritev = 70,
	NR_sendfile = 71,
	NR_splice = 76,
	NR_readahead = 213,
	NR_mremap = 216,
	NR_execve = 221,
	NR_mmap = 222,
	NR_fadvise64 = 223,
	NR_mlock = 228,
	NR_mlockall = 230,
	NR_madvise = 233,
	NR_finit_module = 273,
	NR_execveat = 281,
	NR_mlock2 = 284,
	NR_copy_file_range = 285,
	NR_preadv2 = 286,
	NR_pwritev2 = 287,
	NR_process_madvise = 440,
};

#else
#error "this architecture needs its system call numbers here"
#endif

/* What a task asked the kernel for. The number is -1 in a page fault from user space. */
struct syscall {
	int nr;
	__u64 arg[4];
};

/* Where the saved registers lie in a task's stack, as the settings say; 0: not known. */
static __always_inline __u64 regs_offset(void);

/*
 * The helper is from 5.15. Before, the registers are where the kernel's entry code puts them: at the top of the
 * task's stack.
 */
static __always_inline void current_syscall(struct syscall *call)
{
	if (KERNEL_HAS(task_pt_regs)) {
		struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

		call->nr = regs->SYSCALL_NR;
		call->arg[0] = regs->SYSCALL_ARG0;
		call->arg[1] = regs->SYSCALL_ARG1;
		call->arg[2] = regs->SYSCALL_ARG2;
		call->arg[3] = regs->SYSCALL_ARG3;
	} else {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();
		__u64 offset = regs_offset();
		struct pt_regs *regs = BPF_CORE_READ(task, stack) +
				       (offset ? offset : THREAD_SIZE - bpf_core_type_size(struct pt_regs));

		call->nr = BPF_CORE_READ(regs, SYSCALL_NR);
		call->arg[0] = BPF_CORE_READ(regs, SYSCALL_ARG0);
		call->arg[1] = BPF_CORE_READ(regs, SYSCALL_ARG1);
		call->arg[2] = BPF_CORE_READ(regs, SYSCALL_ARG2);
		call->arg[3] = BPF_CORE_READ(regs, SYSCALL_ARG3);
	}
}

#endif
