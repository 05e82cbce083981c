//! Bridges, which nobody owns: what is behind them has to reach memory and to be reached whoever owns it (PCI-to-PCI Bridge
//! Architecture Specification 1.2, section 3.2.5.3).

use crate::registers::{COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY};
use crate::{ConfigSpace, Function};

/// Lets each bridge pass on what functions behind it ask for, and accesses to what they decode: the firmware has set the windows.
pub fn open_bridges<'a>(
    space: &mut (impl ConfigSpace + ?Sized),
    functions: &(impl Iterator<Item = &'a Function> + Clone),
) {
    for bridge in functions.clone() {
        let Some((first, last)) = bridge.buses_behind().filter(|(first, _)| *first != 0) else { continue };
        let mut wanted = 0;
        for function in functions.clone() {
            let at = function.address;
            let is_behind = at.segment == bridge.address.segment && (first..=last).contains(&at.bus());
            for bar in function.bars.iter().filter(|bar| is_behind && bar.is_placed()) {
                wanted |= if bar.is_memory() { COMMAND_MEMORY } else { COMMAND_IO };
            }
            wanted |= if is_behind { COMMAND_MASTER } else { 0 };
        }
        let command = space.read(bridge.address, COMMAND, 2);
        if command & wanted != wanted {
            space.write(bridge.address, COMMAND, 2, command | wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BRIDGE, functions, machine};

    #[test]
    fn a_bridge_passes_on_what_is_behind_it() {
        let mut machine = machine();
        let found = functions(&mut machine);
        machine.reset(BRIDGE);
        let others = machine.functions.clone();
        machine.writes.clear();
        open_bridges(&mut machine, &found.iter());
        assert_eq!(machine.writes, [(BRIDGE, COMMAND, 2, 7)]);
        for (at, function) in machine.functions.iter().filter(|(at, _)| **at != BRIDGE) {
            assert!(function.words == others[at].words, "{at}");
        }
        // With nothing behind it there is nothing to do.
        machine.writes.clear();
        let alone: alloc::vec::Vec<_> = found.iter().filter(|function| function.address == BRIDGE).collect();
        open_bridges(&mut machine, &alone.iter().copied());
        assert!(machine.writes.is_empty());
    }
}
