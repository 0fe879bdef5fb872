/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types that the programs look into. Only the fields used; CO-RE takes their true offsets
 * from the running kernel's BTF, so order and neighbours do not matter. A name with ___suffix is a flavour:
 * the same kernel type as it was in some releases.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

typedef _Bool bool;
enum { false, true };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	unsigned long s_magic;
	int s_stack_depth;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	long long i_size;
};

struct address_space {
	struct inode *host;
};

/* Also the first page of a folio: both begin with flags, and mapping lies at the same place. */
struct page {
	struct address_space *mapping;
};

/* From 6.6: the order is the low byte of the second page's flags. */
struct folio {
	unsigned long _flags_1;
};
/* 6.0 to 6.5. */
struct folio___6_0 {
	unsigned char _folio_order;
};

enum pageflags {
	PG_head = 0x7fffffff, /* the true value comes from BTF */
};

struct file {
	struct inode *f_inode;
	long long f_pos;
};

struct kiocb {
	struct file *ki_filp;
	long long ki_pos;
};

struct iov_iter {
	unsigned long count;
};

struct hlist_node;

struct hlist_head {
	struct hlist_node *first;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_io_accounting {
	__u64 syscr;
};

struct reclaim_state;

struct task_struct {
	unsigned int flags;
	int pid; /* of the thread */
	int tgid;
	__u64 start_boottime;
	struct task_struct *group_leader;
	char comm[16];
	struct files_struct *files;
	struct task_io_accounting ioac;
	struct reclaim_state *reclaim_state;
	void *stack;
};
/* Before 5.5. */
struct task_struct___5_4 {
	__u64 real_start_time;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r10, ax, cx, dx, si, di, orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
};
#endif

#pragma clang attribute pop

/* task_struct.flags (include/linux/sched.h); stable since 2.6. */
#define PF_KTHREAD 0x00200000
#define PF_KSWAPD 0x00020000

#define S_IFMT 00170000
#define S_IFREG 0100000

#define TMPFS_MAGIC 0x01021994

#endif
