//! Where the fields of the kernel lie, found without BTF.

use ebpf_sidecar::ebpf::{layout::Layout, os};

use crate::common;
use crate::common::btf::Btf;

/// What the agent finds out about the kernel's structs where it is told nothing, on a kernel that tells.
#[test]
fn fields_found_without_btf_are_those_of_btf() {
    need_bpf!("fields_found_without_btf_are_those_of_btf");
    let Some(btf) = Btf::of_kernel() else {
        return common::skipped("fields_found_without_btf_are_those_of_btf", "this kernel has no BTF");
    };
    os::mount_tracefs_privately().unwrap();
    let layout = Layout::find().unwrap();
    for (of, field, offset) in layout.fields() {
        assert_eq!(Some(offset), btf.offset(of, field), "{of}.{field}");
    }
    for (of, field) in [("page_cache", "pfn"), ("lru_shrink_inactive", "nr_scanned"), ("end_template", "nr_reclaimed")]
    {
        assert!(layout.fields().any(|f| f.0.ends_with(of) && f.1 == field), "{of}.{field} is not known");
    }
    for (place, of, field) in [
        ("place_of_cgroups", "task_struct", "cgroups"),
        ("place_of_dfl_cgrp", "css_set", "dfl_cgrp"),
        ("place_of_kn", "cgroup", "kn"),
        ("place_of_id", "kernfs_node", "id"),
    ] {
        assert!(layout.place(place).is_some() || os::own_cgroup().is_none(), "{place} is not known");
        assert!(layout.place(place).is_none_or(|at| btf.offset(of, field) == Some(at)), "{of}.{field}");
    }
    assert_eq!(layout.offset("iov_iter", "count").is_some(), os::perf_has_kprobes());
}
