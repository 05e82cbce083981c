//! DMA: which memory the devices of a guest reach, where the machine has an IOMMU.
//!
//! A guest that owns functions has a [`DmaDomain`]: what its devices find there is what it has, at its guest-physical
//! addresses. Whatever else a device asks for is stopped, and told in the log: once a second, a few lines.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use caisson_boot::{Area, AreaKind, BootInfo};
use caisson_hwvirt::Backend;
use caisson_iommu::{Error, Fault, Interrupt, Sender, Tag};
use caisson_locks::{Mutex, Rank};
use caisson_machine::acpi::Platform;
use caisson_machine::iommu::{self, InUse, IommuRefusal};
use caisson_machine::memory::GuestRam;
use caisson_machine::{apic, clock, cpu};
use caisson_pci::Address;
use caisson_stage2::Format;
use caisson_types::{DomainId, Extent};

use crate::functions::Devices;
use crate::scheduler::System;

/// Stopped devices that are told of at a time, and all that are looked at then: as many as the units of a large machine
/// remember.
const LINES: usize = 4;
const MOST: u64 = 4096;

/// What the boot word `iommu=` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Off,
    On,
    Required,
}

/// Why Caisson does not start.
pub(crate) enum DmaRefusal {
    /// The boot word is none of those there are.
    Word,
    /// It is required, and there is none.
    None,
    /// It is required, and a device is behind none.
    Uncovered(Address),
    /// It does not work.
    Broken(IommuRefusal),
}

impl fmt::Display for DmaRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word => f.write_str("the boot word `iommu=` takes `on`, `off` or `require`: change it"),
            Self::None => f.write_str(
                "iommu=require: ACPI tells of no IOMMU: turn VT-d or AMD-Vi on in the firmware's setup, or take the word away",
            ),
            Self::Uncovered(device) => write!(
                f,
                "iommu=require: the function {device} is behind no IOMMU: take it out of the machine, or the word away"
            ),
            Self::Broken(error) => write!(f, "IOMMU: {error}; `iommu=off` starts without it"),
        }
    }
}

/// Who raises an interrupt.
#[derive(Clone, Copy)]
pub(crate) enum InterruptSender {
    /// A function, by messages.
    Function(Address),
    /// A line, by its number among the machine's, and whether by its level.
    Line(u32, bool),
}

/// Devices that were stopped: a few of them with their owners, and how many more there were.
type Stopped = (ArrayVec<(Fault, Option<DomainId>), LINES>, u64);

/// The machine's IOMMU.
pub(crate) struct Dma {
    state: Mutex<State>,
    /// The TSC at which somebody should look who was stopped.
    due: AtomicU64,
}

/// An id by which requests arrive, and whose it is.
struct Claim {
    device: Address,
    /// Whose it is, or was last.
    owner: DomainId,
    /// The owner's address space, while it lives.
    tag: Option<Tag>,
}

struct State {
    used: InUse,
    claims: Vec<Claim>,
    /// The TSC before which nobody looks again.
    not_before: u64,
}

impl State {
    /// The ids by which requests of these functions may arrive.
    fn ids_of(&self, functions: impl Iterator<Item = Address>) -> Vec<Address> {
        let of = |device| self.used.requesters.iter().find(|(function, _)| *function == device);
        let mut ids: Vec<Address> = functions.filter_map(of).flat_map(|(_, ids)| ids).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Why a guest's functions cannot have an address space.
#[derive(Debug)]
pub(crate) enum DmaError {
    /// The IOMMU.
    Iommu(Error),
    /// Requests with this id are another guest's.
    Shared(Address),
    /// The IOMMU, and what they reach of the guest's memory already cannot be taken from them.
    Lost(Error),
}

impl From<Error> for DmaError {
    fn from(error: Error) -> Self {
        Self::Iommu(error)
    }
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iommu(error) => write!(f, "IOMMU: {error}"),
            Self::Lost(error) => {
                write!(
                    f,
                    "its memory is lost until the machine restarts: they cannot be kept out of it: IOMMU: {error}"
                )
            }
            Self::Shared(device) => write!(
                f,
                "the bridge {device} makes one of functions of several guests: give all that is behind it to one guest"
            ),
        }
    }
}

impl Dma {
    /// Takes the machine's IOMMU over, as the boot words say: from now on devices reach nothing. `None` where there is none,
    /// or it is not to be used.
    ///
    /// # Safety
    /// Once, at start, on the boot CPU, after the heap and the clocks.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn start(
        info: &BootInfo,
        platform: &Platform,
        devices: Option<&Devices>,
    ) -> Result<Option<&'static Self>, DmaRefusal> {
        let wish = match info.option("iommu") {
            None | Some("on") => Wish::On,
            Some("off") => Wish::Off,
            Some("require") => Wish::Required,
            Some(_) => return Err(DmaRefusal::Word),
        };
        if wish == Wish::Off {
            // SAFETY: promised by the caller.
            unsafe { iommu::turn_off(platform) }.map_err(DmaRefusal::Broken)?;
            return Ok(None);
        }
        let functions = || devices.into_iter().flat_map(Devices::all);
        // SAFETY: promised by the caller.
        let used =
            unsafe { iommu::init(platform, functions, |start, bytes| is_free(&info.areas, start, bytes)) };
        let Some(used) = used.map_err(DmaRefusal::Broken)? else {
            return if wish == Wish::Required { Err(DmaRefusal::None) } else { Ok(None) };
        };
        let uncovered = used.requesters.iter().flat_map(|(_, ids)| ids);
        let mut uncovered = uncovered.filter(|device| !used.iommu.covers(**device));
        match uncovered.next() {
            Some(device) if wish == Wish::Required => return Err(DmaRefusal::Uncovered(*device)),
            Some(device) => log::warn!(
                "{device}, and {} more, are behind no IOMMU: they reach all of the machine's memory",
                uncovered.count()
            ),
            None => {}
        }
        let mut used = used;
        let remaps = used.remap().map_err(DmaRefusal::Broken)?;
        log::info!(
            "IOMMU: {}, {} unit{}: devices reach what their guest has{}",
            used.name,
            used.units,
            if used.units == 1 { "" } else { "s" },
            if remaps { ", and raise the interrupts that are theirs" } else { "" }
        );
        let state = State { used, claims: Vec::new(), not_before: 0 };
        let dma = Self { state: Mutex::new(Rank::Dma, state), due: AtomicU64::new(u64::MAX) };
        Ok(Some(Box::leak(Box::new(dma))))
    }

    /// An address space for these functions of a guest's, with its memory in it.
    ///
    /// # Errors
    /// [`DmaError`]: they reach nothing, but for [`DmaError::Lost`]: then nobody must get the memory.
    pub(crate) fn domain(
        &'static self,
        id: DomainId,
        memory: &GuestRam,
        functions: impl Iterator<Item = Address>,
    ) -> Result<DmaDomain, DmaError> {
        let (tag, ids) = {
            let state = &mut *self.state.lock();
            let ids = state.ids_of(functions);
            state.claims.retain(|claim| claim.tag.is_some() || !ids.contains(&claim.device));
            if let Some(claim) = state.claims.iter().find(|claim| ids.contains(&claim.device)) {
                return Err(DmaError::Shared(claim.device));
            }
            let tag = state.used.iommu.create()?;
            let claim = |&device: &Address| Claim { device, owner: id, tag: Some(tag) };
            state.claims.extend(ids.iter().map(claim));
            (tag, ids)
        };
        let mut domain = DmaDomain { dma: self, tag, ended: false };
        match domain.fill(memory, &ids) {
            Ok(()) => Ok(domain),
            Err(error) => match domain.end() {
                Ok(()) => Err(error.into()),
                Err(error) => Err(DmaError::Lost(error)),
            },
        }
    }

    /// Has the interrupt with `vector`, of a function or a line, arrive at this CPU as just that, where interrupts are remapped.
    /// `None` where the IOMMU does not work any more.
    pub(crate) fn deliver(&self, vector: u8, sender: InterruptSender) -> Option<()> {
        if !iommu::remaps() {
            return Some(());
        }
        let state = &mut *self.state.lock();
        let (sender, level) = match sender {
            InterruptSender::Function(device) => {
                let ids = state.used.requesters.iter().find(|(function, _)| *function == device);
                (Sender::of(ids.map(|(_, ids)| &ids[..])?), false)
            }
            InterruptSender::Line(gsi, level) => (state.used.line_sender(gsi), level),
        };
        let interrupt = Interrupt { vector, processor: apic::id(), level, sender };
        state.used.iommu.set_interrupt(vector, Some(interrupt)).ok()
    }

    /// Nobody has that vector any more.
    pub(crate) fn withhold(&self, vector: u8) {
        if iommu::remaps()
            && let Err(error) = self.state.lock().used.iommu.set_interrupt(vector, None)
        {
            log::error!("interrupt {vector:#x} cannot be taken away: {error}");
        }
    }

    /// When somebody should look at the latest who was stopped.
    pub(crate) fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    /// Takes who was stopped since the last time. `None` where
    /// that was a moment ago: then it is due later. Until somebody has looked the units do not interrupt again.
    fn take_faults(&self) -> Option<Stopped> {
        let now = cpu::tsc();
        let mut state = self.state.lock();
        if now < state.not_before {
            self.due.store(state.not_before, Ordering::Relaxed);
            return None;
        }
        self.due.store(u64::MAX, Ordering::Relaxed);
        state.not_before = now + clock::get().tsc_hz;
        let (mut told, mut more) = (ArrayVec::new(), 0);
        for _ in 0..MOST {
            let Some((fault, _)) = state.used.iommu.take_fault() else { break };
            let claim = state.claims.iter().find(|claim| Some(claim.device) == fault.device);
            let owner = claim.map(|claim| claim.owner);
            if told.try_push((fault, owner)).is_err() {
                more += 1;
            }
        }
        if more >= MOST - LINES as u64 {
            // There are others, of which nobody will tell.
            self.due.store(state.not_before, Ordering::Relaxed);
        }
        Some((told, more))
    }
}

/// Whether part of it is memory that anybody may be given.
fn is_free(areas: &[Area], start: u64, bytes: u64) -> bool {
    let end = start.saturating_add(bytes);
    let mut usable = areas.iter().filter(|area| area.kind == AreaKind::Usable);
    usable.any(|area| area.range.start < end && start < area.range.end)
}

/// What the functions of a guest reach. Addresses are the guest's, ranges are whole pages.
pub(crate) struct DmaDomain {
    dma: &'static Dma,
    tag: Tag,
    ended: bool,
}

impl DmaDomain {
    /// Maps a guest's memory, then has requests with these ids find it.
    fn fill(&self, memory: &GuestRam, ids: &[Address]) -> Result<(), Error> {
        let state = &mut *self.dma.state.lock();
        let iommu = &mut state.used.iommu;
        for extent in memory.extents() {
            iommu.map(self.tag, extent.gpa, extent.hpa, extent.bytes, true)?;
        }
        for &device in ids {
            if iommu.covers(device) {
                iommu.attach(self.tag, device)?;
            }
        }
        Ok(())
    }

    /// Maps memory of another guest's that is granted to this one, where the machine has it.
    ///
    /// # Errors
    /// [`Error`]: a part may be mapped, and is to be revoked.
    pub(crate) fn grant(&self, mut pieces: impl Iterator<Item = Extent>) -> Result<(), Error> {
        self.dma.state.lock().used.iommu.grant(self.tag, &mut pieces)
    }

    /// Takes it away: no device uses it any more when this returns.
    ///
    /// # Errors
    /// [`Error`]: nothing has changed, unless a unit is stuck. Then devices may use the memory for ever, and nobody else must
    /// get it.
    pub(crate) fn revoke(&self, mut pieces: impl Iterator<Item = Extent>) -> Result<(), Error> {
        self.dma.state.lock().used.iommu.revoke(self.tag, &mut pieces)
    }

    /// Blocks the functions and ends the address space.
    ///
    /// # Errors
    /// As with [`revoke`](Self::revoke), of all memory that it had.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        if core::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let state = &mut *self.dma.state.lock();
        let own = state.claims.iter_mut().filter(|claim| claim.tag == Some(self.tag));
        own.for_each(|claim| claim.tag = None);
        state.used.iommu.destroy(self.tag)
    }
}

impl Drop for DmaDomain {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("DMA cannot be stopped: {error}");
        }
    }
}

impl<B: Backend, F: Format> System<B, F> {
    /// Tells which devices were stopped.
    pub(crate) fn tell_faults(&self) {
        let Some((told, more)) = self.maker.dma.and_then(Dma::take_faults) else { return };
        for (fault, owner) in told {
            match owner.and_then(|id| self.domains.get(id)) {
                Some(entry) => log::warn!("guest {}: {fault}", entry.name()),
                None => log::warn!("{fault}"),
            }
        }
        if more > 0 {
            log::warn!("DMA was stopped {more} times more");
        }
    }
}
