//! The kernel's own description of its types, as far as a test wants it: where a field lies in a struct.

use std::collections::HashMap;
use std::fs;

pub struct Btf {
    /// Structs and unions by their number: the name, and the members.
    structs: HashMap<u32, (String, Vec<Member>)>,
}

struct Member {
    name: String,
    kind: u32,
    /// In bytes.
    offset: usize,
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;

impl Btf {
    /// That of the running kernel, if it has one.
    pub fn of_kernel() -> Option<Self> {
        let bytes = fs::read("/sys/kernel/btf/vmlinux").ok()?;
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let [header, types, types_len, strings] = [4, 8, 12, 16].map(|at| u32_at(at) as usize);
        let text = |offset: u32| {
            let from = &bytes[header + strings + offset as usize..];
            String::from_utf8_lossy(&from[..from.iter().position(|b| *b == 0).unwrap()]).into_owned()
        };
        let mut structs = HashMap::new();
        let (mut at, end, mut number) = (header + types, header + types + types_len, 1);
        while at < end {
            let (info, body) = (u32_at(at + 4), at + 12);
            let (kind, n) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == STRUCT || kind == UNION {
                let member = |i| {
                    let m = body + i * 12;
                    // Of a bit field the upper byte is its width.
                    let bits = if info >> 31 == 1 { u32_at(m + 8) & 0xff_ffff } else { u32_at(m + 8) };
                    Member { name: text(u32_at(m)), kind: u32_at(m + 4), offset: bits as usize / 8 }
                };
                structs.insert(number, (text(u32_at(at)), (0..n).map(member).collect()));
            }
            // What follows the head: int, array, struct, union, enum, prototype, variable, section, tag, enum64.
            at = body
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => 12 * n,
                    6 | 13 => 8 * n,
                    _ => 0,
                };
            number += 1;
        }
        Some(Self { structs })
    }

    /// Where the field lies in the struct, in bytes.
    pub fn offset(&self, of: &str, field: &str) -> Option<usize> {
        let mut named = self.structs.iter().filter(|(_, (name, _))| name == of);
        named.find_map(|(number, _)| self.offset_in(*number, field))
    }

    /// Members without a name have their own members' names seen as if they were the struct's.
    fn offset_in(&self, number: u32, field: &str) -> Option<usize> {
        let (_, members) = self.structs.get(&number)?;
        members.iter().find_map(|m| match m.name.as_str() {
            "" => Some(m.offset + self.offset_in(m.kind, field)?),
            name => (name == field).then_some(m.offset),
        })
    }
}
