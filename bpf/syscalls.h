/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The system call a task is in, and its arguments, from the registers saved at its entry to the kernel:
 * asm/unistd.h has the numbers. A task in a page fault from user space has the number -1.
 */
#ifndef SYSCALLS_H
#define SYSCALLS_H

#include "kernel.h"

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

/* Where a 32-bit call has the advice of fadvise64 and of fadvise64_64. */
#define COMPAT_FADVISE64_ADVICE di
#define COMPAT_FADVISE64_64_ADVICE bp

/* arch/x86/include/asm/thread_info.h: the task is in a 32-bit call. */
#define COMPAT_WORD status
#define COMPAT_BIT 0x0002

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
	NR_msync = 26,
	NR_fsync = 74,
	NR_fdatasync = 75,
	NR_truncate = 76,
	NR_ftruncate = 77,
	NR_mlock = 149,
	NR_mlockall = 151,
	NR_sync = 162,
	NR_readahead = 187,
	NR_fadvise64 = 221,
	NR_splice = 275,
	NR_sync_file_range = 277,
	NR_fallocate = 285,
	NR_preadv = 295,
	NR_pwritev = 296,
	NR_syncfs = 306,
	NR_finit_module = 313,
	NR_execveat = 322,
	NR_mlock2 = 325,
	NR_copy_file_range = 326,
	NR_preadv2 = 327,
	NR_pwritev2 = 328,
	NR_process_madvise = 440,

	NR_open = 2,
	NR_ioctl = 16,
	NR_io_submit = 209,
	NR_openat = 257,
	NR_io_uring_enter = 426,
	NR_openat2 = 437,

	/* Of 32-bit programs. */
	NR_compat_fadvise64 = 250,
	NR_compat_fadvise64_64 = 272,
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

/* There is fadvise64_64 alone, as arm_fadvise64_64(fd, advice, offset, len). */
#define COMPAT_FADVISE64_ADVICE regs[1]
#define COMPAT_FADVISE64_64_ADVICE regs[1]

/* arch/arm64/include/asm/thread_info.h: TIF_32BIT. */
#define COMPAT_WORD flags
#define COMPAT_BIT (1 << 22)

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
	NR_sync = 81,
	NR_fsync = 82,
	NR_fdatasync = 83,
	NR_sync_file_range = 84,
	NR_readahead = 213,
	NR_mremap = 216,
	NR_execve = 221,
	NR_mmap = 222,
	NR_fadvise64 = 223,
	NR_msync = 227,
	NR_mlock = 228,
	NR_mlockall = 230,
	NR_madvise = 233,
	NR_syncfs = 267,
	NR_finit_module = 273,
	NR_execveat = 281,
	NR_mlock2 = 284,
	NR_copy_file_range = 285,
	NR_preadv2 = 286,
	NR_pwritev2 = 287,
	NR_process_madvise = 440,

	NR_io_submit = 2,
	NR_ioctl = 29,
	NR_openat = 56,
	NR_open = NR_openat, /* is no call of its own here */
	NR_io_uring_enter = 426,
	NR_openat2 = 437,

	NR_compat_fadvise64_64 = 270,
	NR_compat_fadvise64 = NR_compat_fadvise64_64,
};

#else
#error "this architecture needs its system call numbers here"
#endif

/* A 32-bit program's call of this number. */
#define COMPAT(nr) (0x10000 + (nr))

/* The number tells nothing: a thread that makes no calls, whose saved registers are those of whoever made it. */
#define NR_NONE -2

/* What a task asked the kernel for. The number is -1 in a page fault from user space. */
struct syscall {
	int nr;
	struct pt_regs *regs;
};

/* A register as it was saved then, and an argument of the call, 0 to 3. */
#define REGISTER(call, name)                                                                  \
	({                                                                                    \
		struct pt_regs *saved = (call)->regs;                                         \
		KERNEL_HAS(task_pt_regs) ? saved->name : BPF_CORE_READ(saved, name); \
	})
#define SYSCALL_ARG(call, n) REGISTER(call, SYSCALL_ARG##n)

/* Where the saved registers lie in a task's stack, as the settings say. */
static __always_inline __u64 regs_offset(void);

#ifdef NO_BTF
#define HAS_USER_WORKERS (bpf_core_type_size(struct has_user_workers) != 0)
#else
#define HAS_USER_WORKERS bpf_core_field_exists(struct kernel_clone_args, user_worker)
#endif

/*
 * The call that this_task() is in, whose flags are `flags`, with its number as it stands in the register. The helper is
 * from 5.15. Before, the registers are where the kernel's entry code puts them: at the top of the task's stack.
 */
static __always_inline void saved_call(struct task_struct *task, unsigned int flags, struct syscall *call)
{
	unsigned int callless = PF_KTHREAD | PF_IO_WORKER;

	if (HAS_USER_WORKERS)
		callless |= PF_USER_WORKER;
	barrier_var(callless); /* one mask, which src/ebpf/object.rs looks for */
	if (flags & callless) {
		call->nr = NR_NONE;
		call->regs = 0;
		return;
	}
	if (KERNEL_HAS(task_pt_regs)) {
		call->regs = (struct pt_regs *)bpf_task_pt_regs(task);
	} else {
		call->regs = LOAD_TASK(task, stack) + regs_offset();
	}
	call->nr = REGISTER(call, SYSCALL_NR);
}

/* Tells the numbers of 32-bit programs from others. */
static __always_inline void tell_compat(struct task_struct *task, struct syscall *call)
{
	if (call->nr >= 0 && LOAD_TASK((struct thread_info *)task, COMPAT_WORD) & COMPAT_BIT)
		call->nr = COMPAT(call->nr);
}

static __always_inline void syscall_of(struct task_struct *task, unsigned int flags, struct syscall *call)
{
	saved_call(task, flags, call);
	tell_compat(task, call);
}

static __always_inline void current_syscall(struct syscall *call)
{
	struct task_struct *task = this_task();

	syscall_of(task, LOAD_TASK(task, flags), call);
}

/* Whether a call of this number asks for no more than to read, or to copy from file to file. */
static __always_inline bool is_read_call(int nr)
{
	switch (nr) {
	case NR_read:
	case NR_pread64:
	case NR_readv:
	case NR_preadv:
	case NR_preadv2:
	case NR_sendfile:
	case NR_splice:
	case NR_copy_file_range:
		return true;
	}
	return false;
}

static __always_inline bool is_fadvise_call(int nr)
{
	return nr == NR_fadvise64 || nr == COMPAT(NR_compat_fadvise64) || nr == COMPAT(NR_compat_fadvise64_64);
}

#endif
