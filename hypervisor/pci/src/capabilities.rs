//! The lists of capabilities (PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification 4.0, section 7.6).

use arrayvec::ArrayVec;

use crate::ConfigSpace;
use crate::function::{Function, HeaderKind, Msi, Msix, Power};
use crate::registers::{
    CAPABILITIES, EXTENDED, HEADER_END, SPACE, STATUS, STATUS_CAPABILITIES, advanced, capability, msi, msix,
    power,
};

/// Walks the list, which has at most 48 entries. What is hidden is its own whole, up to the next one.
pub(crate) fn find_capabilities(space: &mut impl ConfigSpace, function: &mut Function) {
    /// Bytes of the PCI Express capability in its second version (section 7.5.3).
    const EXPRESS_BYTES: u16 = 0x3c;
    let at = function.address;
    if function.header == HeaderKind::Other || space.read(at, STATUS, 2) & STATUS_CAPABILITIES == 0 {
        return;
    }
    let mut starts = ArrayVec::<u16, 48>::new();
    let mut offset = space.read(at, CAPABILITIES, 1) as u16 & !3;
    while offset >= HEADER_END && !starts.contains(&offset) && starts.try_push(offset).is_ok() {
        let head = space.read(at, offset, 4);
        let control = (head >> 16) as u16;
        match head as u8 {
            capability::MSI if function.msi.is_none() && offset <= 0xe8 => {
                let (wide, maskable) = (control & msi::WIDE != 0, control & msi::MASKABLE != 0);
                function.msi = Some(Msi { offset, wide, maskable });
            }
            capability::MSIX if function.msix.is_none() && offset <= 0xf4 => {
                let table = space.read(at, offset + 4, 4);
                let entries = (control & msix::SIZE) + 1;
                let table = ((table & msix::BAR) as u8, u64::from(table & !msix::BAR));
                function.msix = Some(Msix { offset, entries, table });
            }
            capability::EXPRESS if function.express.is_none() && offset <= EXTENDED - EXPRESS_BYTES => {
                function.express = Some(offset);
            }
            capability::POWER if function.power.is_none() && offset <= 0xf8 => {
                let state = space.read(at, offset + power::CONTROL, 2);
                function.power = Some(Power { offset, resets: state & power::NO_SOFT_RESET == 0 });
            }
            capability::ADVANCED if function.advanced.is_none() && offset <= 0xf8 => {
                let has = space.read(at, offset + advanced::CAPABILITIES, 1) & advanced::CAN_RESET;
                function.advanced = (has == advanced::CAN_RESET).then_some(offset);
            }
            capability::ALLOCATION => hide(function, offset),
            _ => {}
        }
        offset = (head >> 8) as u16 & 0xfc;
    }
    end_hidden(function, &starts, EXTENDED);
}

/// What begins here is no domain's.
fn hide(function: &mut Function, start: u16) {
    // More than there are kinds of them: none can be told from another.
    if function.hidden.try_push((start, SPACE)).is_err() {
        function.hidden.clear();
        function.hidden.push((0, SPACE));
    }
}

/// What is hidden ends where the next capability begins, wherever in the list that is, or where its part of configuration space
/// does: how long each is, is not told.
fn end_hidden(function: &mut Function, starts: &[u16], end: u16) {
    for (start, until) in function.hidden.iter_mut().filter(|(start, _)| starts.contains(start)) {
        *until = starts.iter().copied().filter(|next| next > start).min().unwrap_or(end);
    }
}

/// Walks the list of extended capabilities for those to hide.
pub(crate) fn find_extended(space: &mut impl ConfigSpace, function: &mut Function) {
    const MOST: usize = (SPACE - EXTENDED) as usize / 8;
    let mut starts = ArrayVec::<u16, MOST>::new();
    let mut offset = EXTENDED;
    while offset >= EXTENDED && !starts.contains(&offset) && starts.try_push(offset).is_ok() {
        let head = space.read(function.address, offset, 4);
        if head == 0 || head == u32::MAX {
            starts.pop();
            break;
        }
        if capability::HIDDEN.contains(&(head as u16)) {
            hide(function, offset);
        }
        offset = (head >> 20) as u16 & 0xffc;
    }
    end_hidden(function, &starts, SPACE);
}
