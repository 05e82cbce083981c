//! Which vCPUs an interrupt message is for.
//!
//! One atomic word a vCPU, written only by that vCPU's run loop (on [`Effect::RoutingChanged`](crate::Effect)) and read
//! by every sender, so that resolving takes no lock. A message that meets a change goes by the old or by the new word,
//! as on a machine whose APICs see it a moment earlier or later.
//!
//! Intel SDM volume 3, "Determining IPI Destination", "Logical Destination Mode", "Lowest Priority Delivery Mode" and
//! "Deriving Logical x2APIC ID from the Local x2APIC ID".

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    ApicMode, BROADCAST, DeliveryMode, DestinationMode, InterruptMessage, Ipi, MAX_VCPUS, Shorthand, VcpuSet,
};

/// How an xAPIC's logical id is compared (its DFR).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LogicalModel {
    /// Eight bits, one an APIC.
    Flat,
    /// A cluster's number in the upper four bits, one bit an APIC in the lower four.
    Cluster,
}

/// What senders must know of a local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Routing {
    /// APIC id: in xAPIC mode the low 8 bits can be addressed.
    pub id: u32,
    /// The mode; a disabled APIC receives nothing.
    pub mode: ApicMode,
    /// Software enabled (SVR bit 8): otherwise only NMI, INIT and SIPI are received.
    pub software_enabled: bool,
    /// LDR bits 31:24; counts in xAPIC mode.
    pub logical_id: u8,
    /// DFR's model; counts in xAPIC mode.
    pub model: LogicalModel,
}

const PRESENT: u64 = 1 << 40;
const X2APIC: u64 = 1 << 41;
const SOFTWARE_ENABLED: u64 = 1 << 42;
const CLUSTER: u64 = 1 << 43;

/// A [`Routing`] in one word: id in bits 31:0, logical id in 39:32, flags above; 0 receives nothing.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    fn new(routing: &Routing) -> Self {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        if routing.mode == ApicMode::Disabled {
            return Self(0);
        }
        Self(
            u64::from(routing.id)
                | u64::from(routing.logical_id) << 32
                | PRESENT
                | flag(routing.mode == ApicMode::X2Apic, X2APIC)
                | flag(routing.software_enabled, SOFTWARE_ENABLED)
                | flag(routing.model == LogicalModel::Cluster, CLUSTER),
        )
    }

    const fn id(self) -> u32 {
        self.0 as u32
    }

    /// Whether the APIC takes messages of this delivery mode at all.
    #[inline]
    const fn accepts(self, delivery: DeliveryMode) -> bool {
        let needed = match delivery {
            DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::Startup => PRESENT,
            _ => PRESENT | SOFTWARE_ENABLED,
        };
        self.0 & needed == needed
    }

    /// Whether the logical `destination` (not [`BROADCAST`]) names this APIC.
    fn matches_logical(self, destination: u32) -> bool {
        if self.0 & X2APIC != 0 {
            let (cluster, bit) = (self.id() >> 4, 1 << (self.id() & 0xf));
            return destination >> 16 == cluster & 0xffff && destination & bit != 0;
        }
        let own = (self.0 >> 32) as u8;
        let Ok(destination) = u8::try_from(destination) else { return false };
        if self.0 & CLUSTER == 0 {
            return destination & own != 0;
        }
        (destination >> 4 == 0xf || destination >> 4 == own >> 4) && destination & own & 0xf != 0
    }
}

/// The routing table of a domain.
#[derive(Debug)]
pub struct ApicMap {
    entries: [AtomicU64; MAX_VCPUS],
    /// Entries from here on are never used.
    vcpus: usize,
}

impl ApicMap {
    /// A map for `vcpus` vCPUs (at most [`MAX_VCPUS`]; more are cut off), none of which receives anything until its
    /// first [`Self::update`].
    #[must_use]
    pub const fn new(vcpus: usize) -> Self {
        let vcpus = if vcpus > MAX_VCPUS { MAX_VCPUS } else { vcpus };
        Self { entries: [const { AtomicU64::new(0) }; MAX_VCPUS], vcpus }
    }

    /// Publishes vCPU `index`'s routing; no effect for an index past the last vCPU.
    pub fn update(&self, index: usize, routing: &Routing) {
        if index < self.vcpus
            && let Some(entry) = self.entries.get(index)
        {
            entry.store(Entry::new(routing).0, Ordering::Release);
        }
    }

    #[inline]
    fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        let load = |entry: &AtomicU64| Entry(entry.load(Ordering::Acquire));
        self.entries.iter().take(self.vcpus).map(load).enumerate()
    }

    /// The vCPUs that get `message` from a device or another sender that names its destination. Empty when nobody
    /// does; a lowest-priority message has one receiver at most.
    #[inline]
    #[must_use]
    pub fn resolve(&self, message: &InterruptMessage) -> VcpuSet {
        if message.is_ignored() {
            return VcpuSet::EMPTY;
        }
        let destination = message.destination;
        if message.destination_mode == DestinationMode::Physical && destination != BROADCAST {
            return self.by_id(destination, message.delivery);
        }
        let all = destination == BROADCAST;
        self.choose(message, |_, entry| all || entry.matches_logical(destination))
    }

    /// The vCPUs that get `ipi` from vCPU `sender`.
    #[inline]
    #[must_use]
    pub fn resolve_ipi(&self, ipi: &Ipi, sender: usize) -> VcpuSet {
        if ipi.message.is_ignored() {
            return VcpuSet::EMPTY;
        }
        match ipi.shorthand {
            Shorthand::None => self.resolve(&ipi.message),
            Shorthand::SelfOnly => self.choose(&ipi.message, |index, _| index == sender),
            Shorthand::AllIncludingSelf => self.choose(&ipi.message, |_, _| true),
            Shorthand::AllExcludingSelf => self.choose(&ipi.message, |index, _| index != sender),
        }
    }

    /// The vCPU whose APIC id is `id`, unless its APIC is disabled.
    #[must_use]
    pub fn index_of(&self, id: u32) -> Option<usize> {
        self.by_id(id, DeliveryMode::Nmi).into_iter().next()
    }

    /// The vCPUs that get a message with this delivery mode for the APIC ids `lowest + n`, for each bit `n` of `bitmap`
    /// that is set. Each of them gets it, in lowest-priority mode too.
    #[must_use]
    pub fn resolve_bitmap(&self, bitmap: u128, lowest: u32, delivery: DeliveryMode) -> VcpuSet {
        let named = |entry: Entry| {
            entry.id().checked_sub(lowest).is_some_and(|n| bitmap.checked_shr(n).unwrap_or(0) & 1 != 0)
        };
        let receivers = self.entries().filter(|&(_, entry)| entry.accepts(delivery) && named(entry));
        receivers.map(|(index, _)| index).collect()
    }

    /// The vCPU whose APIC id is `id`. Ids are nearly always indices.
    #[inline]
    fn by_id(&self, id: u32, delivery: DeliveryMode) -> VcpuSet {
        let is = |entry: Entry| entry.id() == id && entry.accepts(delivery);
        let index = id as usize;
        if index < self.vcpus
            && let Some(entry) = self.entries.get(index)
            && is(Entry(entry.load(Ordering::Acquire)))
        {
            return VcpuSet::single(index);
        }
        let found = self.entries().find(|&(_, entry)| is(entry));
        found.map_or(VcpuSet::EMPTY, |(index, _)| VcpuSet::single(index))
    }

    fn choose(&self, message: &InterruptMessage, matches: impl Fn(usize, Entry) -> bool) -> VcpuSet {
        let receivers: VcpuSet = self
            .entries()
            .filter(|&(index, entry)| entry.accepts(message.delivery) && matches(index, entry))
            .map(|(index, _)| index)
            .collect();
        if message.delivery != DeliveryMode::LowestPriority {
            return receivers;
        }
        // Which CPU has the lowest priority is model specific; here the vector picks, so that a device's interrupts
        // stay on one vCPU's caches and those of several devices spread.
        match receivers.len() {
            0 | 1 => receivers,
            count => {
                let nth = usize::from(message.vector) % count;
                receivers.into_iter().nth(nth).map_or(VcpuSet::EMPTY, VcpuSet::single)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TriggerMode;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn xapic(id: u32, logical_id: u8, model: LogicalModel) -> Routing {
        Routing { id, mode: ApicMode::XApic, software_enabled: true, logical_id, model }
    }

    fn x2apic(id: u32) -> Routing {
        Routing { mode: ApicMode::X2Apic, ..xapic(id, 0, LogicalModel::Flat) }
    }

    fn map(routings: &[Routing]) -> ApicMap {
        let map = ApicMap::new(routings.len());
        for (index, routing) in routings.iter().enumerate() {
            map.update(index, routing);
        }
        map
    }

    fn logical(destination: u32) -> InterruptMessage {
        InterruptMessage {
            destination_mode: DestinationMode::Logical,
            ..InterruptMessage::fixed(destination, 0x40)
        }
    }

    fn members(set: VcpuSet) -> Vec<usize> {
        set.into_iter().collect()
    }

    #[test]
    fn physical_destinations() {
        let map = map(&[xapic(0, 1, LogicalModel::Flat), xapic(7, 2, LogicalModel::Flat), x2apic(300)]);
        let to = |id| members(map.resolve(&InterruptMessage::fixed(id, 0x40)));
        assert_eq!(to(0), [0]);
        assert_eq!(to(7), [1]);
        assert_eq!(to(300), [2]);
        assert_eq!(to(1), []);
        assert_eq!(to(BROADCAST), [0, 1, 2]);
    }

    #[test]
    fn logical_destinations_flat_cluster_and_x2apic() {
        let flat = map(&[0, 1, 2].map(|i| xapic(i, 1 << i, LogicalModel::Flat)));
        assert_eq!(members(flat.resolve(&logical(0b101))), [0, 2]);
        assert_eq!(members(flat.resolve(&logical(0b1000))), []);
        assert_eq!(members(flat.resolve(&logical(0x101))), []);
        let cluster = map(&[
            xapic(0, 0x01, LogicalModel::Cluster),
            xapic(1, 0x02, LogicalModel::Cluster),
            xapic(2, 0x11, LogicalModel::Cluster),
        ]);
        assert_eq!(members(cluster.resolve(&logical(0x03))), [0, 1]);
        assert_eq!(members(cluster.resolve(&logical(0x11))), [2]);
        assert_eq!(members(cluster.resolve(&logical(0xf1))), [0, 2]);
        let x2 = map(&[x2apic(0), x2apic(1), x2apic(16), x2apic(31)]);
        assert_eq!(members(x2.resolve(&logical(3))), [0, 1]);
        assert_eq!(members(x2.resolve(&logical(0x1_8001))), [2, 3]);
        assert_eq!(members(x2.resolve(&logical(BROADCAST))), [0, 1, 2, 3]);
    }

    #[test]
    fn lowest_priority_has_one_receiver() {
        let map = map(&[0, 1, 2].map(x2apic));
        for vector in 0x20..=0xff {
            let m = InterruptMessage { vector, delivery: DeliveryMode::LowestPriority, ..logical(7) };
            assert_eq!(map.resolve(&m).len(), 1);
        }
    }

    #[test]
    fn what_an_apic_accepts_depends_on_its_state() {
        let software_disabled = Routing { software_enabled: false, ..x2apic(0) };
        let disabled = Routing { mode: ApicMode::Disabled, ..x2apic(1) };
        let map = map(&[software_disabled, disabled, x2apic(2)]);
        let send = |delivery| {
            members(map.resolve(&InterruptMessage { delivery, ..InterruptMessage::fixed(BROADCAST, 0x40) }))
        };
        assert_eq!(send(DeliveryMode::Fixed), [2]);
        assert_eq!(send(DeliveryMode::Nmi), [0, 2]);
        assert_eq!(send(DeliveryMode::Init), [0, 2]);
        assert_eq!(send(DeliveryMode::Startup), [0, 2]);
        assert_eq!(send(DeliveryMode::Smi), []);
        let deassert = InterruptMessage {
            trigger: TriggerMode::Level,
            assert: false,
            ..InterruptMessage::fixed(2, 0x40)
        };
        assert!(map.resolve(&deassert).is_empty());
    }

    #[test]
    fn bitmaps_of_ids() {
        let disabled = Routing { mode: ApicMode::Disabled, ..x2apic(5) };
        let deaf = Routing { software_enabled: false, ..x2apic(6) };
        let map = map(&[x2apic(0), xapic(3, 1, LogicalModel::Flat), x2apic(u32::MAX - 1), disabled, deaf]);
        let to = |bitmap, lowest| members(map.resolve_bitmap(bitmap, lowest, DeliveryMode::Fixed));
        assert_eq!(to(0b1001, 0), [0, 1]);
        assert_eq!(to(0b1001, 3), [1]);
        assert_eq!(to(u128::MAX, 0), [0, 1]);
        assert_eq!(to(u128::MAX, 4), []);
        assert_eq!(to(u128::MAX, u32::MAX), []);
        assert_eq!(to(1 << 127, u32::MAX - 128), [2]);
        assert_eq!(to(0, 0), []);
        assert_eq!(members(map.resolve_bitmap(u128::MAX, 1, DeliveryMode::Nmi)), [1, 4]);
        let indices = [0, 3, u32::MAX - 1, 5, 6, 1, u32::MAX].map(|id| map.index_of(id));
        assert_eq!(indices, [Some(0), Some(1), Some(2), None, Some(4), None, None]);
    }

    #[test]
    fn shorthands() {
        let map = map(&[0, 1, 2].map(x2apic));
        let ipi = |shorthand| {
            members(map.resolve_ipi(&Ipi { message: InterruptMessage::fixed(0, 0x40), shorthand }, 1))
        };
        assert_eq!(ipi(Shorthand::None), [0]);
        assert_eq!(ipi(Shorthand::SelfOnly), [1]);
        assert_eq!(ipi(Shorthand::AllIncludingSelf), [0, 1, 2]);
        assert_eq!(ipi(Shorthand::AllExcludingSelf), [0, 2]);
    }

    proptest! {
        #[test]
        fn receivers_are_present(
            states in proptest::collection::vec((0u32..20, 0u8..3, any::<bool>(), any::<u8>(), any::<bool>()), 0..70),
            destination: u32, small in 0u32..300, narrow: bool, is_logical: bool, vector: u8,
        ) {
            let routings: Vec<Routing> = states.iter().map(|&(id, mode, software_enabled, logical_id, flat)| Routing {
                id,
                mode: [ApicMode::Disabled, ApicMode::XApic, ApicMode::X2Apic][usize::from(mode)],
                software_enabled,
                logical_id,
                model: if flat { LogicalModel::Flat } else { LogicalModel::Cluster },
            }).collect();
            let map = map(&routings);
            let destination = if narrow { small } else { destination };
            let base = InterruptMessage { vector, ..InterruptMessage::fixed(destination, 0) };
            let m = if is_logical { InterruptMessage { vector, ..logical(destination) } } else { base };
            for index in map.resolve(&m) {
                prop_assert!(routings[index].software_enabled && routings[index].mode != ApicMode::Disabled);
            }
        }
    }
}
