//! For tests: what of our programs the verifier of Linux 4.14 would refuse, on a machine that has a newer one. As that one
//! does, it walks both sides of a branch though one can never be taken, unless the branch compares a constant with itself;
//! forgets numbers that are put on the stack, a null pointer among them; and knows no bounds after many operations. What it
//! checks is where memory is accessed and what is read before it is written; of helpers only what those that are used need.

use std::collections::{BTreeMap, BTreeSet};

use libbpf_sys as sys;

/// What a map's descriptor, which stands in the instructions, is of.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Bytes of a key.
    pub key: u32,
    /// Of a value.
    pub value: u32,
    /// Whether its values are maps.
    pub of_maps: bool,
}

/// What a register or a place on the stack holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Unset,
    /// A number from the first to the second, which is less where a branch cannot be taken.
    Number(u64, u64),
    Context(i64),
    Stack(i64),
    Map(i32),
    /// Into a map's value of that size, at an offset from the second to the third.
    In(u32, i64, i64),
    /// What a look into a map returned, not yet compared with null: the map, and which look.
    Maybe(i32, u32),
}
use Value::{Context, In, Maybe, Number, Stack, Unset};

const ANY: Value = Number(0, u64::MAX);
const STACK: i64 = 512;
/// Instructions that it follows at most, all branches together.
const LIMIT: usize = 131_072;
/// No pointer may be moved further.
const FAR: i64 = 1 << 29;

#[derive(Clone, PartialEq)]
struct State {
    at: usize,
    regs: [Value; 11],
    /// Whether each byte was written.
    written: [bool; STACK as usize],
    /// Pointers that were put there, by eight bytes.
    kept: [Value; STACK as usize / 8],
}

/// What it found.
#[derive(Debug, Default)]
pub struct Walk {
    /// How many instructions were followed.
    pub followed: usize,
    /// What numbers that are not known are masked with.
    pub masks: BTreeSet<u64>,
}

type Checked<T = ()> = Result<T, String>;

/// Walks a program whose context has `context` bytes, of which the first eight may be hidden; the reason of a refusal.
pub fn walk(insns: &[sys::bpf_insn], context: (i64, i64), maps: &BTreeMap<i32, Map>) -> Checked<Walk> {
    let mut start =
        State { at: 0, regs: [Unset; 11], written: [false; STACK as usize], kept: [Unset; STACK as usize / 8] };
    start.regs[1] = Context(0);
    start.regs[10] = Stack(0);
    let live = liveness(insns);
    let (mut walk, mut looks) = (Walk::default(), 0);
    let mut left = vec![start];
    let mut seen: BTreeMap<usize, Vec<State>> = BTreeMap::new();
    while let Some(mut state) = left.pop() {
        loop {
            walk.followed += 1;
            if walk.followed > LIMIT {
                return Err("too complex".into());
            }
            let at = state.at;
            let insn = insns.get(at).ok_or("it runs over its end")?;
            let mut step = Step { insn, state: &mut state, context, maps, looks: &mut looks, masks: &mut walk.masks };
            let branch = match step.take() {
                Ok(None) => break,
                Ok(Some(branch)) => branch,
                Err(why) => return Err(format!("instruction {at} ({:#x}): {why}", insn.code)),
            };
            let jumped = branch.is_some() || u32::from(insn.code) == sys::BPF_JMP | sys::BPF_JA;
            if let Some(other) = branch {
                left.push(*other);
            }
            // Where ways meet, a state that an earlier one includes needs no look.
            if jumped || u32::from(insn.code) & 7 == sys::BPF_JMP {
                let here = seen.entry(state.at).or_default();
                if here.iter().any(|old| includes(old, &state, live[state.at])) {
                    break;
                }
                here.push(state.clone());
            }
        }
    }
    Ok(walk)
}

/// For each instruction, the registers that are read from there on before they are written, as bits.
fn liveness(insns: &[sys::bpf_insn]) -> Vec<u16> {
    let mut live = vec![0u16; insns.len() + 1];
    loop {
        let before = live.clone();
        for (at, insn) in insns.iter().enumerate().rev() {
            let (code, bit) = (u32::from(insn.code), |r: u8| 1u16 << r);
            let (class, operation) = (code & 7, code & 0xf0);
            let (dst, src) = (bit(insn.dst_reg()), bit(insn.src_reg()));
            let by_register = if code & sys::BPF_X != 0 { src } else { 0 };
            let next = live[at + 1];
            let jump = |live: &[u16]| live.get((at + 1).wrapping_add_signed(insn.off.into())).copied().unwrap_or(0);
            live[at] = match class {
                sys::BPF_LD => live.get(at + 2).copied().unwrap_or(0) & !dst,
                sys::BPF_LDX => next & !dst | src,
                sys::BPF_ST => next | dst,
                sys::BPF_STX => next | dst | src,
                sys::BPF_ALU | sys::BPF_ALU64 if operation == sys::BPF_MOV => next & !dst | by_register,
                sys::BPF_ALU | sys::BPF_ALU64 => next | dst | by_register,
                _ if operation == sys::BPF_EXIT => 1,
                _ if operation == sys::BPF_CALL => next & !0b11_1111 | 0b11_1110,
                _ if operation == sys::BPF_JA => jump(&live),
                _ => next | jump(&live) | dst | by_register,
            };
        }
        if live == before {
            return live;
        }
    }
}

/// Whether whatever is right of `old` is right of `new`, as far as `live` registers go.
fn includes(old: &State, new: &State, live: u16) -> bool {
    let value = |old: &Value, new: &Value| match (*old, *new) {
        (Unset, _) => true,
        (Number(a, b), Number(c, d)) => a <= c && d <= b,
        (In(s, a, b), In(t, c, d)) => s == t && a <= c && d <= b,
        (Maybe(m, _), Maybe(n, _)) => m == n,
        (old, new) => old == new,
    };
    (0..11).all(|r| live & 1 << r == 0 || value(&old.regs[r], &new.regs[r]))
        && old.written.iter().zip(&new.written).all(|(old, new)| *new || !*old)
        && old.kept.iter().zip(&new.kept).all(|(old, new)| match (old, new) {
            // A number that it knows nothing of, or nothing at all; where `new` has a pointer, that is not the same.
            (Unset, new) => *new == Unset,
            (old, new) => value(old, new),
        })
}

struct Step<'a> {
    insn: &'a sys::bpf_insn,
    state: &'a mut State,
    context: (i64, i64),
    maps: &'a BTreeMap<i32, Map>,
    looks: &'a mut u32,
    masks: &'a mut BTreeSet<u64>,
}

impl Step<'_> {
    /// Takes it. `None` at the exit; else the other side of a branch, if both have to be walked.
    fn take(&mut self) -> Checked<Option<Option<Box<State>>>> {
        let insn = self.insn;
        let code = u32::from(insn.code);
        let (class, operation) = (code & 7, code & 0xf0);
        let (dst, src) = (usize::from(insn.dst_reg()), usize::from(insn.src_reg()));
        let size = match code & 0x18 {
            sys::BPF_B => 1,
            sys::BPF_H => 2,
            sys::BPF_W => 4,
            _ => 8,
        };
        self.state.at += 1;
        match class {
            sys::BPF_LD => {
                self.state.at += 1;
                self.state.regs[dst] = match src as u32 {
                    sys::BPF_PSEUDO_MAP_FD => Value::Map(insn.imm),
                    0 => ANY, // its upper half is in the next one
                    _ => return Err("a constant of a kind that is not known".into()),
                };
            }
            sys::BPF_LDX => {
                let base = self.get(src)?;
                self.state.regs[dst] = self.access(base, insn.off.into(), size, None)?;
            }
            sys::BPF_ST => {
                let base = self.get(dst)?;
                self.access(base, insn.off.into(), size, Some(ANY))?;
            }
            sys::BPF_STX => {
                let (base, value) = (self.get(dst)?, self.get(src)?);
                if code & 0xe0 != sys::BPF_MEM {
                    self.access(base, insn.off.into(), size, None)?;
                }
                self.access(base, insn.off.into(), size, Some(value))?;
            }
            sys::BPF_ALU | sys::BPF_ALU64 => {
                let by = if code & sys::BPF_X != 0 && operation != sys::BPF_END {
                    self.get(src)?
                } else {
                    let by = i64::from(insn.imm) as u64;
                    Number(by, by)
                };
                let old = if operation == sys::BPF_MOV { ANY } else { self.get(dst)? };
                self.state.regs[dst] = self.compute(operation, class == sys::BPF_ALU64, old, by)?;
            }
            _ => match operation {
                sys::BPF_EXIT => {
                    self.get(0)?;
                    return Ok(None);
                }
                sys::BPF_CALL => self.call(insn.imm as u32)?,
                sys::BPF_JA => self.jump(),
                _ => return self.branch(operation, code & sys::BPF_X != 0, dst, src).map(Some),
            },
        }
        Ok(Some(None))
    }

    fn get(&self, register: usize) -> Checked<Value> {
        match self.state.regs[register] {
            Unset => Err(format!("R{register} !read_ok")),
            value => Ok(value),
        }
    }

    fn jump(&mut self) {
        self.state.at = self.state.at.wrapping_add_signed(self.insn.off.into());
    }

    /// An access to `size` bytes: what is read, or `stored`.
    fn access(&mut self, base: Value, off: i64, size: i64, stored: Option<Value>) -> Checked<Value> {
        let within = |from: i64, to: i64, limit: i64| from.min(to) >= 0 && from.max(to) + size <= limit;
        let is_read = stored.is_none();
        let read = Number(0, if size < 8 { (1 << (8 * size)) - 1 } else { u64::MAX });
        match base {
            Context(at) if is_read && within(at + off - self.context.0, at + off, self.context.1) => Ok(read),
            In(value, min, max) if within(min.saturating_add(off), max.saturating_add(off), value.into()) => Ok(read),
            Stack(at) if within(STACK + at + off, STACK + at + off, STACK) => {
                let from = (STACK + at + off) as usize;
                let (bytes, slot) = (from..from + size as usize, from / 8);
                let Some(value) = stored else {
                    if !self.state.written[bytes].iter().all(|w| *w) {
                        return Err(format!("invalid read from stack off {}", at + off));
                    }
                    let kept = self.state.kept[slot];
                    return Ok(if kept == Unset || size < 8 { read } else { kept });
                };
                self.state.written[bytes].fill(true);
                // Of a number it keeps nothing: a null pointer that is put there becomes any number.
                let is_pointer = size == 8 && !matches!(value, Number(..));
                self.state.kept[slot] = if is_pointer { value } else { Unset };
                Ok(read)
            }
            _ => Err(format!("invalid access to {base:?}, off={off} size={size}")),
        }
    }

    fn compute(&mut self, operation: u32, wide: bool, old: Value, by: Value) -> Checked<Value> {
        if operation == sys::BPF_MOV && wide {
            return Ok(by);
        }
        // What a number is that no number can be, it no longer knows; nor where a pointer moved by it points.
        if [old, by].iter().any(|v| matches!(v, Number(min, max) if min > max)) {
            return Ok(ANY);
        }
        let (Number(mut a, mut b), Number(mut c, mut d)) = (old, by) else {
            return if wide { moved(operation, old, by) } else { Err("32-bit pointer arithmetic".into()) };
        };
        if operation == sys::BPF_AND && (a == b) != (c == d) {
            self.masks.insert(if a == b { a } else { c });
        }
        if !wide {
            for (from, to) in [(&mut a, &mut b), (&mut c, &mut d)] {
                if *to > u32::MAX.into() {
                    (*from, *to) = (0, u32::MAX.into());
                }
            }
        }
        let ends = |from: Option<u64>, to: Option<u64>| from.zip(to);
        let constant = a == b && c == d;
        let known = match operation {
            sys::BPF_ADD => ends(a.checked_add(c), b.checked_add(d)),
            sys::BPF_SUB => ends(a.checked_sub(d), b.checked_sub(c)),
            sys::BPF_MUL if b <= u32::MAX.into() && d <= u32::MAX.into() => ends(a.checked_mul(c), b.checked_mul(d)),
            sys::BPF_AND if constant => Some((a & c, a & c)),
            sys::BPF_AND => Some((0, b.min(d))),
            sys::BPF_OR if constant => Some((a | c, a | c)),
            sys::BPF_OR => {
                Some((a.max(c), (b | d).checked_next_power_of_two().map_or(u64::MAX, |p| (2 * p).wrapping_sub(1))))
            }
            sys::BPF_LSH if c == d && c < 64 && b.leading_zeros() as u64 > c => Some((a << c, b << c)),
            sys::BPF_RSH if c == d && c < 64 => Some((a >> c, b >> c)),
            _ => None,
        };
        Ok(match known {
            Some((from, to)) if wide || to <= u32::MAX.into() => Number(from, to),
            _ if wide => ANY,
            _ => Number(0, u32::MAX.into()),
        })
    }

    fn call(&mut self, helper: u32) -> Checked {
        let bytes = |of: fn(&Map) -> u32, map: &Map| i64::from(of(map));
        let map = |step: &Self| match step.state.regs[1] {
            Value::Map(fd) => step.maps.get(&fd).map(|m| (fd, *m)).ok_or_else(|| format!("map {fd} is not known")),
            other => Err(format!("R1 is no map: {other:?}")),
        };
        let mut result = ANY;
        match helper {
            sys::BPF_FUNC_map_lookup_elem | sys::BPF_FUNC_map_delete_elem | sys::BPF_FUNC_map_update_elem => {
                let (fd, map) = map(self)?;
                self.access_all(2, bytes(|m| m.key, &map), false)?;
                if helper == sys::BPF_FUNC_map_update_elem {
                    self.access_all(3, bytes(|m| m.value, &map), false)?;
                }
                if helper == sys::BPF_FUNC_map_lookup_elem {
                    *self.looks += 1;
                    result = Maybe(fd, *self.looks);
                }
            }
            sys::BPF_FUNC_probe_read | sys::BPF_FUNC_probe_read_kernel | sys::BPF_FUNC_get_current_comm => {
                self.access_all(1, self.size(2)?, true)?;
            }
            // (context, buffer, size, flags)
            sys::BPF_FUNC_get_stack => self.access_all(2, self.size(3)?, true)?,
            sys::BPF_FUNC_current_task_under_cgroup => drop(map(self)?),
            sys::BPF_FUNC_ktime_get_ns | sys::BPF_FUNC_get_current_pid_tgid | sys::BPF_FUNC_get_current_task => {}
            _ => return Err(format!("invalid func unknown#{helper}")),
        }
        self.state.regs[..6].fill(Unset);
        self.state.regs[0] = result;
        Ok(())
    }

    /// The most that a helper's argument of a size can be.
    fn size(&self, register: usize) -> Checked<i64> {
        match self.get(register)? {
            // 4.14 takes no zero.
            Number(least, most) if least > 0 && most < FAR as u64 => Ok(most as i64),
            other => Err(format!("R{register} is no size: {other:?}")),
        }
    }

    /// A helper's access to all that a register points at. What it reads has to lie on the stack, before 4.18, and to have
    /// been written.
    fn access_all(&mut self, register: usize, size: i64, writes: bool) -> Checked {
        let base = self.get(register)?;
        let Stack(at) = base else {
            return match base {
                In(value, min, max) if writes && min.min(max) >= 0 && min.max(max) + size <= value.into() => Ok(()),
                _ => Err(format!("R{register}: {base:?} is no place for {size} bytes")),
            };
        };
        if at >= 0 || -at > STACK || at + size > 0 {
            return Err(format!("R{register}: {size} bytes at {at} of the stack"));
        }
        let bytes = (STACK + at) as usize..(STACK + at + size) as usize;
        if !writes && !self.state.written[bytes.clone()].iter().all(|w| *w) {
            return Err(format!("R{register}: invalid indirect read from stack off {at} size {size}"));
        }
        if writes {
            self.state.written[bytes.clone()].fill(true);
            self.state.kept[bytes.start / 8..bytes.end.div_ceil(8)].fill(Unset);
        }
        Ok(())
    }

    fn branch(&mut self, operation: u32, by_register: bool, dst: usize, src: usize) -> Checked<Option<Box<State>>> {
        let left = self.get(dst)?;
        let immediate = i64::from(self.insn.imm) as u64;
        let right = if by_register { self.get(src)? } else { Number(immediate, immediate) };
        let is_equality = [sys::BPF_JEQ, sys::BPF_JNE].contains(&operation);
        if is_equality && !by_register && left == right {
            if operation == sys::BPF_JEQ {
                self.jump();
            }
            return Ok(None);
        }
        let mut taken = Box::new(self.state.clone());
        taken.at = taken.at.wrapping_add_signed(self.insn.off.into());
        match (left, right) {
            (Maybe(fd, look), Number(0, 0)) if is_equality => {
                let map = self.maps[&fd];
                let there = if map.of_maps { Value::Map(!fd) } else { In(map.value, 0, 0) };
                let (null, not_null) = match operation {
                    sys::BPF_JEQ => (&mut *taken, &mut *self.state),
                    _ => (&mut *self.state, &mut *taken),
                };
                for (state, value) in [(null, Number(0, 0)), (not_null, there)] {
                    let all = state.regs.iter_mut().chain(&mut state.kept);
                    all.filter(|v| **v == Maybe(fd, look)).for_each(|v| *v = value);
                }
            }
            (Number(..), Number(c, d)) if c == d => {
                let not = opposite(operation);
                taken.regs[dst] = bounded(left, operation, c);
                self.state.regs[dst] = not.map_or(left, |not| bounded(left, not, c));
            }
            (Number(a, b), Number(..)) if a == b => {
                if let Some(turned) = turned(operation) {
                    taken.regs[src] = bounded(right, turned, a);
                    self.state.regs[src] = opposite(turned).map_or(right, |not| bounded(right, not, a));
                }
            }
            _ => {}
        }
        Ok(Some(taken))
    }
}

/// A pointer and a number, added or subtracted.
fn moved(operation: u32, old: Value, by: Value) -> Checked<Value> {
    let (pointer, Number(from, to)) = (match operation {
        sys::BPF_ADD if matches!(old, Number(..)) => (by, old),
        sys::BPF_ADD | sys::BPF_SUB => (old, by),
        _ => return Err(format!("operation {operation:#x} on {old:?}")),
    }) else {
        // The difference of two pointers.
        return if operation == sys::BPF_SUB { Ok(ANY) } else { Err("pointer + pointer".into()) };
    };
    // Of numbers up to the largest some are negative.
    let has_bounds = from == to || from.max(to) <= i64::MAX as u64;
    let (mut from, mut to) = (from as i64, to as i64);
    if operation == sys::BPF_SUB {
        (from, to) = (to.wrapping_neg(), from.wrapping_neg());
    }
    if !has_bounds || [from, to].iter().any(|n| !(-FAR..FAR).contains(n)) {
        return Err(format!("math between {pointer:?} and a number that has no bounds"));
    }
    match pointer {
        In(size, min, max) => Ok(In(size, min + from, max + to)),
        Context(at) if from == to => Ok(Context(at + from)),
        Stack(at) if from == to => Ok(Stack(at + from)),
        _ => Err(format!("math between {pointer:?} and a number")),
    }
}

/// The comparison that holds where this one does not.
fn opposite(operation: u32) -> Option<u32> {
    const PAIRS: [(u32, u32); 5] = [
        (sys::BPF_JEQ, sys::BPF_JNE),
        (sys::BPF_JGT, sys::BPF_JLE),
        (sys::BPF_JGE, sys::BPF_JLT),
        (sys::BPF_JSGT, sys::BPF_JSLE),
        (sys::BPF_JSGE, sys::BPF_JSLT),
    ];
    PAIRS.iter().find_map(|&(a, b)| (operation == a).then_some(b).or((operation == b).then_some(a)))
}

/// The comparison with its sides changed.
fn turned(operation: u32) -> Option<u32> {
    Some(match operation {
        sys::BPF_JGT => sys::BPF_JLT,
        sys::BPF_JLT => sys::BPF_JGT,
        sys::BPF_JGE => sys::BPF_JLE,
        sys::BPF_JLE => sys::BPF_JGE,
        sys::BPF_JEQ | sys::BPF_JNE => operation,
        _ => return None,
    })
}

/// A number of which a comparison with `by` holds. Where it cannot, the least is more than the most, and stays so.
fn bounded(number: Value, operation: u32, by: u64) -> Value {
    let Number(min, max) = number else { return number };
    let (positive, limit) = (i64::MAX as u64, by as i64 >= 0);
    match operation {
        sys::BPF_JEQ => Number(by, by),
        sys::BPF_JGT => Number(min.max(by.saturating_add(1)), max),
        sys::BPF_JGE => Number(min.max(by), max),
        sys::BPF_JLT => Number(min, max.min(by.saturating_sub(1))),
        sys::BPF_JLE => Number(min, max.min(by)),
        sys::BPF_JSGT if limit => Number(min.max(by + 1), max.min(positive)),
        sys::BPF_JSGT if by == u64::MAX => Number(min, max.min(positive)),
        sys::BPF_JSGE if limit => Number(min.max(by), max.min(positive)),
        sys::BPF_JSLE if limit && max <= positive => Number(min, max.min(by)),
        sys::BPF_JSLT if limit && max <= positive => Number(min, max.min(by.saturating_sub(1))),
        _ => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: i32 = 7;
    const VALUE: u32 = 64;

    fn insn(code: u32, dst: u8, src: u8, off: i16, imm: i32) -> sys::bpf_insn {
        let mut insn = sys::bpf_insn { code: code as u8, off, imm, ..Default::default() };
        insn.set_dst_reg(dst);
        insn.set_src_reg(src);
        insn
    }

    const LOAD: u32 = sys::BPF_LDX | sys::BPF_MEM | sys::BPF_DW;
    const STORE: u32 = sys::BPF_STX | sys::BPF_MEM | sys::BPF_DW;
    const MOVE: u32 = sys::BPF_ALU64 | sys::BPF_MOV;
    const ADD: u32 = sys::BPF_ALU64 | sys::BPF_ADD;
    const X: u32 = sys::BPF_X;
    const JUMP: u32 = sys::BPF_JMP;

    /// r0 = what is in the map under 0, r7 = a number of the context; then `rest`, and the exit.
    fn after_a_look(rest: &[sys::bpf_insn]) -> Checked<Walk> {
        let mut insns = vec![
            insn(LOAD, 7, 1, 8, 0),
            insn(sys::BPF_ST | sys::BPF_MEM | sys::BPF_W, 10, 0, -4, 0),
            insn(MOVE | X, 2, 10, 0, 0),
            insn(ADD, 2, 0, 0, -4),
            insn(sys::BPF_LD | sys::BPF_DW, 1, sys::BPF_PSEUDO_MAP_FD as u8, 0, MAP),
            insn(0, 0, 0, 0, 0),
            insn(JUMP | sys::BPF_CALL, 0, 0, 0, sys::BPF_FUNC_map_lookup_elem as i32),
        ];
        insns.extend_from_slice(rest);
        insns.extend([insn(MOVE, 0, 0, 0, 0), insn(JUMP | sys::BPF_EXIT, 0, 0, 0, 0)]);
        let maps = BTreeMap::from([(MAP, Map { key: 4, value: VALUE, of_maps: false })]);
        walk(&insns, (0, 64), &maps)
    }

    #[test]
    fn a_value_is_accessed_within_its_bounds_once_it_is_known_to_be_there() {
        let to_the_end = |jumped: i16| insn(JUMP | sys::BPF_JEQ, 0, 0, jumped, 0);
        let load = |off| insn(LOAD, 3, 0, off, 0);
        after_a_look(&[to_the_end(1), load(VALUE as i16 - 8)]).unwrap();
        assert!(after_a_look(&[to_the_end(1), load(VALUE as i16 - 7)]).unwrap_err().contains("off=57 size=8"));
        assert!(after_a_look(&[load(0)]).unwrap_err().contains("Maybe"));
        assert!(after_a_look(&[insn(LOAD, 3, 5, 0, 0)]).unwrap_err().contains("R5 !read_ok"));
        assert!(after_a_look(&[insn(LOAD, 3, 10, -16, 0)]).unwrap_err().contains("invalid read from stack off -16"));
    }

    /// r0[r7], if r7 is less than 8: what 4.14 sees only on the very register that is the index.
    #[test]
    fn an_index_is_bounded_by_a_check_on_its_own_register() {
        let index = |checked: u8| {
            after_a_look(&[
                insn(JUMP | sys::BPF_JEQ, 0, 0, 5, 0),
                insn(MOVE | X, 6, 7, 0, 0),
                insn(JUMP | sys::BPF_JGT, checked, 0, 3, 7),
                insn(sys::BPF_ALU64 | sys::BPF_LSH, 7, 0, 0, 3),
                insn(ADD | X, 0, 7, 0, 0),
                insn(LOAD, 3, 0, 0, 0),
            ])
        };
        index(7).unwrap();
        assert!(index(6).unwrap_err().contains("no bounds"));
    }

    /// r7 = 8, if it is more than 7, and r0[r7] if it is less than 8: never with 8, and yet 4.14 walks there.
    #[test]
    fn an_index_beyond_its_bound_is_refused_where_it_never_is() {
        let program = |check: u32, limit: i32| {
            after_a_look(&[
                insn(JUMP | sys::BPF_JEQ, 0, 0, 5, 0),
                insn(MOVE, 7, 0, 0, 8),
                insn(JUMP | check, 7, 0, 3, limit),
                insn(sys::BPF_ALU64 | sys::BPF_LSH, 7, 0, 0, 3),
                insn(ADD | X, 0, 7, 0, 0),
                insn(LOAD, 3, 0, 0, 0),
            ])
        };
        assert!(program(sys::BPF_JGT, 7).unwrap_err().contains("no bounds"));
        // A constant beside itself is the one comparison that it decides.
        program(sys::BPF_JEQ, 8).unwrap();
    }

    /// r0, put on the stack and compared there: before the comparison with null it stays the same pointer; after it, the
    /// null that was put there is any number, which may not be null.
    #[test]
    fn a_null_pointer_that_was_put_on_the_stack_is_any_number() {
        let back = [insn(LOAD, 4, 10, -16, 0), insn(JUMP | sys::BPF_JEQ, 4, 0, 1, 0), insn(LOAD, 3, 4, 0, 0)];
        let put = insn(STORE, 10, 0, -16, 0);
        let first = [&[put, insn(JUMP | sys::BPF_JEQ, 0, 0, 0, 0)][..], &back].concat();
        after_a_look(&first).unwrap();
        let then = [&[insn(JUMP | sys::BPF_JEQ, 0, 0, 0, 0), put][..], &back].concat();
        assert!(after_a_look(&then).unwrap_err().contains("Number"));
    }
}
