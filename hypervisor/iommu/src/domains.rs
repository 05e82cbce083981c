//! All units of a machine, and the DMA domains behind them.

use alloc::vec::Vec;

use caisson_pci::Address;
use caisson_stage2::{Config, Levels, MemoryType, Permissions, Stage2};
use caisson_types::{Extent, Gpa, Hpa};

use crate::{Coverage, Error, Fault, Interrupt, Memory, Message, Reserved, Shape, Tag, Unit};

/// What is asked of a machine's IOMMU, whoever made it.
pub trait Iommu: Send {
    /// Whether a unit restricts the device.
    fn covers(&self, device: Address) -> bool;

    /// A domain in which nothing is mapped.
    ///
    /// # Errors
    /// [`Error::TooManyDomains`] or [`Error::Tables`].
    fn create(&mut self) -> Result<Tag, Error>;

    /// Maps `bytes` of memory at `hpa` for the domain's devices at `at`, where nothing is mapped: all multiples of 4 KiB. They
    /// write it if `write`.
    ///
    /// # Errors
    /// [`Error::Tables`], with nothing changed, [`Error::NoDomain`], or [`Error::Stuck`]: then devices may reach it or not.
    fn map(&mut self, tag: Tag, at: Gpa, hpa: Hpa, bytes: u64, write: bool) -> Result<(), Error>;

    /// Takes it away; what is not mapped there is left so. When it returns, no device uses it any more.
    ///
    /// # Errors
    /// As with [`map`](Self::map). After [`Error::Stuck`] devices may use the memory for ever: it must be given to nobody.
    fn unmap(&mut self, tag: Tag, at: Gpa, bytes: u64) -> Result<(), Error>;

    /// Maps what is granted to the domain of another's memory, for its devices to read and write: each piece at its machine address.
    ///
    /// # Errors
    /// As with [`map`](Self::map). Some pieces may be mapped then: it is to be [revoked](Self::revoke).
    fn grant(&mut self, tag: Tag, pieces: &mut dyn Iterator<Item = Extent>) -> Result<(), Error> {
        for piece in pieces {
            self.map(tag, there(piece), piece.hpa, piece.bytes, true)?;
        }
        Ok(())
    }

    /// Takes it away again, of which some may never have been mapped.
    ///
    /// # Errors
    /// As with [`unmap`](Self::unmap), for all of it.
    fn revoke(&mut self, tag: Tag, pieces: &mut dyn Iterator<Item = Extent>) -> Result<(), Error> {
        for piece in pieces {
            self.unmap(tag, there(piece), piece.bytes)?;
        }
        Ok(())
    }

    /// Has requests with this id use the domain from now on, in place of what they used.
    ///
    /// # Errors
    /// [`Error::NoUnit`], [`Error::NoDomain`], or [`Error::Stuck`].
    fn attach(&mut self, tag: Tag, device: Address) -> Result<(), Error>;

    /// Blocks them, but for what the firmware has reserved.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    fn detach(&mut self, device: Address) -> Result<(), Error>;

    /// Ends a domain: blocks its devices, and frees its tables.
    ///
    /// # Errors
    /// [`Error::NoDomain`], or [`Error::Stuck`]: then the tables are kept for ever, as what they lead to has to be.
    fn destroy(&mut self, tag: Tag) -> Result<(), Error>;

    /// Has the units write this when they stop a device, where they can by themselves.
    fn interrupt(&mut self, message: Option<Message>);

    /// Holds devices to the interrupts that are theirs, if all units can: from then on a message arrives as what it names in
    /// the table, or not at all. Whether they can. `wide` where processors' ids may have more than 8 bits.
    ///
    /// # Errors
    /// [`Error::Stuck`] or [`Error::OutOfMemory`]: some units do and others do not.
    fn remap(&mut self, wide: bool) -> Result<bool, Error>;

    /// Writes an entry of the table.
    ///
    /// # Errors
    /// [`Error::Stuck`], or [`Error::NoRemapping`].
    fn set_interrupt(&mut self, index: u8, interrupt: Option<Interrupt>) -> Result<(), Error>;

    /// A device that was stopped, and its domain; `None` when there are no more.
    fn take_fault(&mut self) -> Option<(Fault, Option<Tag>)>;
}

/// Where devices find memory that is granted.
fn there(piece: Extent) -> Gpa {
    Gpa::new(piece.hpa.as_u64())
}

/// A domain.
struct Domain<F: caisson_stage2::Format> {
    tables: Stage2<F>,
}

/// What a tag stands for.
enum Slot<F: caisson_stage2::Format> {
    Free,
    Used(Domain<F>),
    /// A unit did not say that it has forgotten it.
    Lost,
}

/// A unit, and what is behind it.
struct Placed<U> {
    coverage: Coverage,
    unit: U,
    /// It has failed to answer.
    stuck: Option<&'static str>,
}

impl<U> Placed<U> {
    /// Does something with the unit, if it has always answered.
    fn with(&mut self, act: impl FnOnce(&mut U) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(what) = self.stuck {
            return Err(Error::Stuck(what));
        }
        let done = act(&mut self.unit);
        if let Err(Error::Stuck(what)) = done {
            self.stuck = Some(what);
        }
        done
    }
}

/// The units of a machine, all of one vendor, and the domains.
pub struct Iommus<U: Unit, M> {
    units: Vec<Placed<U>>,
    memory: M,
    shape: Shape,
    depth: Levels,
    reserved: Vec<Reserved>,
    /// By tag, the first for tag 1.
    domains: Vec<Slot<U::Pages>>,
    attached: Vec<(Address, Tag)>,
    /// The domain of what the firmware has reserved.
    firmware: Option<Tag>,
}

impl<U: Unit, M: Memory> Iommus<U, M> {
    /// Takes the units over. From now on devices reach nothing but what `reserved` has for them. `requesters` are the ids
    /// that may be attached later.
    ///
    /// # Errors
    /// [`Error`]: the units may be in any state.
    pub fn enable(
        units: Vec<(Coverage, U)>,
        mut memory: M,
        reserved: Vec<Reserved>,
        requesters: &[Address],
    ) -> Result<Self, Error> {
        let shape = units.iter().map(|(_, unit)| unit.shape()).reduce(Shape::and).ok_or(Error::Absent)?;
        let depth = shape.depth().ok_or(Error::NoShape)?;
        memory.set_snooped(shape.snooped);
        let units = units.into_iter().map(|(coverage, unit)| Placed { coverage, unit, stuck: None });
        let mut iommus = Self {
            units: units.collect(),
            memory,
            shape,
            depth,
            reserved,
            domains: Vec::new(),
            attached: Vec::new(),
            firmware: None,
        };
        for &device in requesters {
            if let Some(index) = iommus.unit_of(device) {
                let (placed, memory) = (&mut iommus.units[index], &mut iommus.memory);
                placed.with(|unit| unit.prepare(memory, device.routing))?;
            }
        }
        // These keep what they have at every moment.
        let keeps = |device: &Address| iommus.reserved.iter().any(|reserved| reserved.is_for(*device));
        let keepers = requesters.iter().copied().filter(|device| keeps(device) && iommus.covers(*device));
        let keepers: Vec<Address> = keepers.collect();
        if !keepers.is_empty() {
            let tag = iommus.create()?;
            iommus.firmware = Some(tag);
            for device in keepers {
                iommus.attach(tag, device)?;
            }
        }
        for placed in &mut iommus.units {
            let memory = &mut iommus.memory;
            placed.with(|unit| unit.enable(memory))?;
        }
        Ok(iommus)
    }

    /// Which unit a device is behind.
    fn unit_of(&self, device: Address) -> Option<usize> {
        let named = self.units.iter().position(|placed| placed.coverage.names(device));
        named.or_else(|| self.units.iter().position(|placed| placed.coverage.has_rest(device)))
    }

    fn domain(&mut self, tag: Tag) -> Result<(&mut Domain<U::Pages>, &mut M), Error> {
        let slot = usize::from(tag.0).checked_sub(1).and_then(|index| self.domains.get_mut(index));
        match slot {
            Some(Slot::Used(domain)) => Ok((domain, &mut self.memory)),
            _ => Err(Error::NoDomain(tag)),
        }
    }

    /// Has every unit do something, and says what the first one said that failed.
    fn each(&mut self, mut act: impl FnMut(&mut U, &mut M) -> Result<(), Error>) -> Result<(), Error> {
        let mut result = Ok(());
        for placed in &mut self.units {
            let memory = &mut self.memory;
            result = result.and(placed.with(|unit| act(unit, memory)));
        }
        result
    }

    /// Maps what the firmware has reserved for a device, but where the domain has something else already.
    fn map_reserved(&mut self, tag: Tag, device: Address) -> Result<(), Error> {
        for index in 0..self.reserved.len() {
            let reserved = self.reserved[index];
            if !reserved.is_for(device) {
                continue;
            }
            let (start, bytes) = (reserved.start, reserved.bytes);
            match self.map(tag, Gpa::new(start), Hpa::new(start), bytes, reserved.write) {
                Ok(()) | Err(Error::Tables(caisson_stage2::Error::Overlap(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets whose a device is.
    fn unlist(&mut self, device: Address) {
        self.attached.retain(|(attached, _)| *attached != device);
    }
}

impl<U: Unit, M: Memory> Iommu for Iommus<U, M> {
    fn covers(&self, device: Address) -> bool {
        self.unit_of(device).is_some()
    }

    fn create(&mut self) -> Result<Tag, Error> {
        let config = Config {
            levels: self.depth,
            largest_leaf: self.shape.largest_leaf,
            address_bits: self.shape.address_bits,
        };
        let free = self.domains.iter().position(|slot| matches!(slot, Slot::Free));
        let index = free.unwrap_or(self.domains.len());
        let tag = u16::try_from(index + 1).ok().filter(|&tag| u32::from(tag) < self.shape.tags);
        let tag = tag.ok_or(Error::TooManyDomains)?;
        let tables = Stage2::new(&mut self.memory, config).map_err(Error::Tables)?;
        let slot = Slot::Used(Domain { tables });
        match free {
            Some(index) => self.domains[index] = slot,
            None => self.domains.push(slot),
        }
        Ok(Tag(tag))
    }

    fn map(&mut self, tag: Tag, at: Gpa, hpa: Hpa, bytes: u64, write: bool) -> Result<(), Error> {
        let permissions = if write { Permissions::READ_WRITE } else { Permissions::READ };
        let (domain, memory) = self.domain(tag)?;
        // Where nothing was mapped nothing is to be forgotten, but by units that remember that.
        let _none = domain
            .tables
            .map(memory, at, hpa, bytes, permissions, MemoryType::WriteBack)
            .map_err(Error::Tables)?;
        self.each(|unit, memory| unit.mapped(memory, tag))
    }

    fn unmap(&mut self, tag: Tag, at: Gpa, bytes: u64) -> Result<(), Error> {
        let (domain, memory) = self.domain(tag)?;
        // Whatever it says is to be flushed: all of the domain is, since that is seldom.
        let _flush = domain.tables.unmap(memory, at, bytes).map_err(Error::Tables)?;
        self.each(|unit, memory| unit.forget(memory, tag))?;
        let (domain, memory) = self.domain(tag)?;
        domain.tables.flushed(memory);
        Ok(())
    }

    fn attach(&mut self, tag: Tag, device: Address) -> Result<(), Error> {
        let index = self.unit_of(device).ok_or(Error::NoUnit(device))?;
        self.map_reserved(tag, device)?;
        let depth = self.depth;
        let root = self.domain(tag)?.0.tables.root();
        let (placed, memory) = (&mut self.units[index], &mut self.memory);
        let done = placed.with(|unit| unit.attach(memory, device.routing, tag, root, depth));
        // Whatever came of it, the domain's tables may be in use from here on.
        self.unlist(device);
        self.attached.push((device, tag));
        done
    }

    fn detach(&mut self, device: Address) -> Result<(), Error> {
        let Some(index) = self.unit_of(device) else { return Ok(()) };
        let (placed, memory) = (&mut self.units[index], &mut self.memory);
        placed.with(|unit| unit.block(memory, device.routing))?;
        self.unlist(device);
        match self.firmware {
            Some(tag) if self.reserved.iter().any(|reserved| reserved.is_for(device)) => {
                self.attach(tag, device)
            }
            _ => Ok(()),
        }
    }

    fn destroy(&mut self, tag: Tag) -> Result<(), Error> {
        self.domain(tag)?;
        let devices = self.attached.iter().filter(|(_, of)| *of == tag).map(|(device, _)| *device);
        let mut result = Ok(());
        for device in devices.collect::<Vec<_>>() {
            result = result.and(self.detach(device));
        }
        // With its devices the units have forgotten its tables: the tag may be another's.
        let Some(slot) = usize::from(tag.0).checked_sub(1).and_then(|index| self.domains.get_mut(index))
        else {
            return Err(Error::NoDomain(tag));
        };
        match (core::mem::replace(slot, Slot::Lost), result) {
            (Slot::Used(domain), Ok(())) => {
                *slot = Slot::Free;
                domain.tables.destroy(&mut self.memory);
                Ok(())
            }
            (_, result) => result,
        }
    }

    fn interrupt(&mut self, message: Option<Message>) {
        for placed in self.units.iter_mut().filter(|placed| placed.stuck.is_none()) {
            placed.unit.interrupt(message);
        }
    }

    fn remap(&mut self, wide: bool) -> Result<bool, Error> {
        if !self.units.iter().all(|placed| placed.unit.can_remap(wide)) {
            return Ok(false);
        }
        self.each(|unit, memory| unit.remap(memory, wide)).map(|()| true)
    }

    fn set_interrupt(&mut self, index: u8, interrupt: Option<Interrupt>) -> Result<(), Error> {
        self.each(|unit, memory| unit.set_interrupt(memory, index, interrupt))
    }

    fn take_fault(&mut self) -> Option<(Fault, Option<Tag>)> {
        let memory = &mut self.memory;
        let fault = self.units.iter_mut().find_map(|placed| placed.unit.take_fault(memory))?;
        let of = |device| self.attached.iter().find(|(attached, _)| *attached == device);
        Some((fault, fault.device.and_then(of).map(|(_, tag)| *tag)))
    }
}
