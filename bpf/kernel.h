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

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

typedef _Bool bool;
enum { false, true };

/*
 * Whether the kernel has a helper function. With NO_BTF the programs are for kernels that do not describe their
 * types, and use none that 4.14 lacks: the agent then finds out where the fields of the structs below lie, and tells
 * libbpf as if the kernel had said so (src/ebpf/layout.rs).
 */
#ifdef NO_BTF
#define KERNEL_HAS(helper) false
#else
#define KERNEL_HAS(helper) bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_##helper)
#endif

/*
 * Whether the kernel has a field. With NO_BTF that is decided here, as `no_btf`: verifiers before 4.19 walk both sides
 * of such a branch, and refuse the program for an access to what is not there on the one that is never taken.
 */
#ifdef NO_BTF
#define HAS_FIELD(field, no_btf) (no_btf)
#else
#define HAS_FIELD(field, no_btf) bpf_core_field_exists(field)
#endif

#ifndef NO_BTF
/* A typed view of a kernel address, for loads without a helper call; 6.2+. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
#endif

/* A field behind a pointer of which the verifier knows nothing: a plain load from 6.2 on, else a helper call. */
#ifdef NO_BTF
#define LOAD(ptr, type, field) BPF_CORE_READ((struct type *)(ptr), field)
#else
#define LOAD(ptr, type, field)                                                              \
	(bpf_ksym_exists(bpf_rdonly_cast)                                                       \
		 ? ((struct type *)bpf_rdonly_cast((ptr), bpf_core_type_id_kernel(struct type)))->field \
		 : BPF_CORE_READ((struct type *)(ptr), field))
#endif

/* A field of what this_task() returns: a plain load from 5.11 on. */
#define LOAD_TASK(task, field) \
	(KERNEL_HAS(get_current_task_btf) ? (task)->field : BPF_CORE_READ(task, field))

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node;

struct hlist_head {
	struct hlist_node *first;
};

struct super_block {
	unsigned int s_dev;
	unsigned long s_magic;
	int s_stack_depth;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_rdev;
	long long i_size;
	struct pipe_inode_info *i_pipe;
	unsigned int i_generation;
	struct hlist_head i_dentry;
};

struct qstr {
	unsigned int hash;
	unsigned int len;
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	union {
		struct hlist_node {
			struct hlist_node *next;
		} d_alias;
	} d_u;
};
struct dentry___flat {
	struct hlist_node d_alias;
};

struct pipe_inode_info {
	unsigned int head, tail, max_usage; /* in buffers: filled, emptied, and how many there may be */
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
	unsigned int f_flags;
	long long f_pos;
};

struct kiocb {
	struct file *ki_filp;
	long long ki_pos;
	int ki_flags;
};

struct iov_iter {
	unsigned long count;
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

struct kernfs_node {
	__u64 id; /* of a cgroup: the inode number of its directory */
};

struct cgroup_subsys_state {
	__u64 serial_nr; /* another one for each there ever was */
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* of version 2 */
};

/* The first thing in a task_struct. */
struct thread_info {
	unsigned long flags;
	unsigned int status; /* x86 */
};

struct task_struct {
	unsigned int flags;
	int pid; /* of the thread */
	unsigned int tgid;
	__u64 start_boottime;
	struct task_struct *group_leader;
	char comm[16];
	struct files_struct *files;
	struct task_io_accounting ioac;
	struct css_set *cgroups;
	__u64 self_exec_id;
	void *stack;
	struct pipe_inode_info *splice_pipe;
};
/* Before 5.5. */
struct task_struct___5_4 {
	__u64 real_start_time;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long bp, r10, ax, cx, dx, si, di, orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
};
#endif

/* What tracepoints hand over, as tracefs describes it (events/.../format); the common fields are left out. */
struct trace_event_raw_mm_filemap_op_page_cache {
	unsigned long pfn;
	unsigned char order; /* 6.1+ */
};

struct kernel_clone_args {
	unsigned int user_worker : 1; /* 6.4+ */
};

#ifdef NO_BTF
/* As large as `order` lies far from the beginning of the struct above; not there where it is not. */
struct place_of_order {};

/* As large as these fields lie far from the beginning of their structs; not there where that was not found out. */
struct place_of_cgroups {};
struct place_of_dfl_cgrp {};
struct place_of_kn {};
struct place_of_id {};

/* NO_BTF: there if the kernel has PF_USER_WORKER (src/ebpf/layout.rs). */
struct has_user_workers {};
#endif

struct trace_event_raw_mm_vmscan_lru_shrink_inactive {
	unsigned long nr_scanned;
	unsigned long nr_reclaimed;
};

struct trace_event_raw_mm_vmscan_direct_reclaim_end_template {
	unsigned long nr_reclaimed;
};

#pragma clang attribute pop

/* task_struct.flags (include/linux/sched.h); stable since 2.6. */
#define PF_KTHREAD 0x00200000
#define PF_KSWAPD 0x00020000
#define PF_MEMALLOC 0x00000800
#define PF_IO_WORKER 0x00000010 /* of io_uring; 5.12+ */
#define PF_USER_WORKER 0x00004000 /* also of vhost; 6.4+; before 5.17 something else, which init may have left to all */

#define S_IFMT 00170000
#define S_IFREG 0100000
#define S_IFIFO 0010000

/* kiocb.ki_flags (include/linux/fs.h), 5.10+. */
#define IOCB_NOWAIT 0x8
#define IOCB_WAITQ (1 << 19)

/* asm/fcntl.h */
#if defined(__TARGET_ARCH_arm64)
#define O_DIRECT 0200000
#else
#define O_DIRECT 00040000
#endif

#define O_DSYNC 00010000

/* linux/magic.h */
#define TMPFS_MAGIC 0x01021994
#define OVERLAYFS_MAGIC 0x794c7630
#define CGROUP_MAGIC 0x0027e0eb
#define CGROUP2_MAGIC 0x63677270
#define HUGETLBFS_MAGIC 0x958458f6
#define SECRETMEM_MAGIC 0x5345434d
#define GUEST_MEMFD_MAGIC 0x474d454d
#define AIO_RING_MAGIC 0xa10a10a1 /* fs/aio.c */

/* The current task, for LOAD_TASK. */
static __always_inline struct task_struct *this_task(void)
{
	if (KERNEL_HAS(get_current_task_btf))
		return bpf_get_current_task_btf();
	return (struct task_struct *)bpf_get_current_task();
}

/* The pointer at an address of the kernel. */
static __always_inline void *pointer_at(const void *address)
{
	void *pointer = 0;

#ifndef NO_BTF
	/* Any type that is one pointer will do for a load without a helper call. */
	if (bpf_ksym_exists(bpf_rdonly_cast))
		return ((struct hlist_head *)bpf_rdonly_cast(address, bpf_core_type_id_kernel(struct hlist_head)))->first;
#endif
	bpf_probe_read_kernel(&pointer, sizeof(pointer), address);
	return pointer;
}

#endif
