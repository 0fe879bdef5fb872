/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The system call a task is in, and its arguments, from the registers saved at its entry to the kernel:
 * asm/unistd.h has the numbers. A task in a page fault from user space has the number -1.
 */
#ifndef SYSCALLS_H
#define SYSCALLS_H

#include "kernel.h"

#if defined(__TARGET_ARCH_x86)

#define SYSCALL_NR(regs) ((long)(regs)->orig_ax)
#define SYSCALL_ARG0(regs) ((regs)->di)
#define SYSCALL_ARG1(regs) ((regs)->si)
#define SYSCALL_ARG2(regs) ((regs)->dx)
#define SYSCALL_ARG3(regs) ((regs)->r10)

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

#define SYSCALL_NR(regs) ((long)(regs)->syscallno)
#define SYSCALL_ARG0(regs) ((regs)->orig_x0)
#define SYSCALL_ARG1(regs) ((regs)->regs[1])
#define SYSCALL_ARG2(regs) ((regs)->regs[2])
#define SYSCALL_ARG3(regs) ((regs)->regs[3])

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

#endif
