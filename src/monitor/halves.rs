//! Two maps of the kernel that take turns: programs write to one, through a map of maps, while the other is emptied, so that no
//! count is lost to a delete.

use std::os::fd::AsFd;

use crate::ebpf::abi::Plain;
use crate::ebpf::object::{Error, Map, Object};

/// The two maps.
pub struct Halves {
    /// Tells the programs which.
    outer: Map,
    /// The one in use, and the other.
    maps: [Map; 2],
    /// Whether the one not in use may hold rows.
    undrained: bool,
}

impl Halves {
    /// Those of the object: the map of maps, what stands in it at first, and the other.
    pub fn new(object: &Object, outer: &str, maps: [&str; 2]) -> Result<Self, Error> {
        let [in_use, idle] = maps;
        Ok(Self { outer: object.map(outer)?, maps: [object.map(in_use)?, object.map(idle)?], undrained: false })
    }

    /// The one that programs write to.
    pub fn in_use(&self) -> &Map {
        &self.maps[0]
    }

    /// Has the programs write to the other one. From Linux 4.20 on the kernel waits for those that still write to the former.
    pub fn swap(&mut self) -> Result<(), Error> {
        let [in_use, idle] = &mut self.maps;
        self.outer.set_fd(idle.as_fd())?;
        std::mem::swap(in_use, idle);
        self.undrained = true;
        Ok(())
    }

    /// Takes out the rows of the time until the last swap. Whether there was one since the last call.
    pub fn drain<K: Plain, V: Plain>(&mut self, each: impl FnMut(K, V)) -> Result<bool, Error> {
        if !self.undrained {
            return Ok(false);
        }
        self.maps[1].drain(each)?;
        self.undrained = false;
        Ok(true)
    }
}
