//! Whose memory and ports are whose: what functions decode may be nobody else's, and what an owner reaches without exits is
//! whole pages of its own.

use alloc::vec::Vec;

use crate::Function;
use crate::address::Address;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// What is not in any base address register (interrupt controllers, timers, firmware) lies between here and 4 GiB: a page with
/// registers of a function there may hold others' as well.
const MAINBOARD: core::ops::Range<u64> = 0xfec0_0000..1 << 32;
/// Ports below are the mainboard's: no base address register of PCI's can be meant to decode them.
const FIRST_PORT: u64 = 0x1000;

/// What no function may decode: the machine's RAM, and what Caisson uses or keeps.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    /// Memory: start and past-the-end address.
    pub memory: Vec<(u64, u64)>,
    /// Ports, likewise.
    pub ports: Vec<(u64, u64)>,
}

/// A register that decodes what is not its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collision {
    /// The function.
    pub function: Address,
    /// The number of the base address register.
    pub register: u8,
    /// What it decodes from.
    pub start: u64,
}

/// Takes back the addresses of registers that decode what is reserved, or what another register decodes as well: nobody uses
/// what they decode, and no owner turns their decoding on.
pub fn settle(functions: &mut [Function], reserved: &Reserved) -> Vec<Collision> {
    // What is decoded, by whom: a bridge's windows are none of these.
    let claims: Vec<(usize, u8, bool, u64, u64)> = functions
        .iter()
        .enumerate()
        .flat_map(|(number, function)| {
            let placed = function.bars.iter().filter(|bar| bar.is_placed());
            placed.map(move |bar| (number, bar.index, bar.is_memory(), bar.address, bar.end()))
        })
        .collect();
    let mut collisions = Vec::new();
    for &(number, register, is_memory, start, end) in &claims {
        let meets = |&(from, to): &(u64, u64)| from < end && start < to;
        let mut taken = (if is_memory { &reserved.memory } else { &reserved.ports }).iter();
        let mut others = claims.iter().filter(|other| (other.0, other.1) != (number, register));
        let is_bad = taken.any(meets)
            || !is_memory && start < FIRST_PORT
            || others.any(|other| other.2 == is_memory && meets(&(other.3, other.4)));
        if is_bad {
            collisions.push(Collision { function: functions[number].address, register, start });
        }
    }
    for collision in &collisions {
        let found = functions.iter_mut().find(|function| function.address == collision.function);
        let mut bars = found.into_iter().flat_map(|function| &mut function.bars);
        if let Some(bar) = bars.find(|bar| bar.index == collision.register) {
            bar.address = 0;
        }
    }
    collisions
}

/// How an owner reaches its functions' memory: start and bytes of whole pages, in ascending order without overlap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// By itself: nothing else is there.
    pub direct: Vec<(u64, u64)>,
    /// By exits, which are judged by [`crate::Bus`]: pages with MSI-X tables, and such as others have a part in.
    pub judged: Vec<(u64, u64)>,
}

impl Layout {
    /// For the owner of `own`; `foreign` is what others decode (start and bytes), and what is reserved in their stead. The
    /// functions have been through [`settle`].
    #[must_use]
    pub fn new<'a>(own: impl Iterator<Item = &'a Function> + Clone, foreign: &[(u64, u64)]) -> Self {
        let mut judged: Vec<(u64, u64)> =
            own.clone().filter_map(Function::msix_table).map(|(start, bytes)| pages(start, bytes)).collect();
        let mut whole: Vec<(u64, u64)> = own.flat_map(Function::memory).collect();
        whole.sort_unstable();
        whole.dedup();
        let mut direct = Vec::new();
        for (start, bytes) in whole {
            let (from, to) = pages(start, bytes);
            // What is smaller than a page shares it.
            let is_shared = bytes < PAGE
                && (MAINBOARD.contains(&from)
                    || foreign
                        .iter()
                        .any(|&(other, bytes)| other < to && from < other.saturating_add(bytes)));
            if is_shared { judged.push((from, to)) } else { direct.push((from, to)) }
        }
        let judged = merged(judged);
        let mut direct = merged(direct);
        for &(start, end) in &judged {
            let cut = |(from, to): (u64, u64)| [(from, to.min(start)), (from.max(end), to)];
            direct = direct.into_iter().flat_map(cut).filter(|(from, to)| from < to).collect();
        }
        let sized =
            |ranges: Vec<(u64, u64)>| ranges.into_iter().map(|(from, to)| (from, to - from)).collect();
        Self { direct: sized(direct), judged: sized(judged) }
    }
}

/// The pages with these bytes: start and past-the-end address.
fn pages(start: u64, bytes: u64) -> (u64, u64) {
    let end = start.saturating_add(bytes).min(u64::MAX - PAGE);
    (start & !(PAGE - 1), end.next_multiple_of(PAGE))
}

/// The same ranges, ascending and without overlap.
fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}
