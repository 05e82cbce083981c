//! Making guests: a record of the configuration becomes a domain with its memory, tables, vCPUs and kernel.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize};

use caisson_abi::Privileges;
use caisson_config::{Domain as Record, LoaderKind};
use caisson_domain::{
    CPU_APIC_KHZ, Domain, DomainClock, DomainSetup, Image, Module, TscScale, VirtioDevice, VirtualCpu,
};
use caisson_firmware::{GuestLayout, RealMachine, VIRTIO_ADDRESS};
use caisson_frames::Owner;
use caisson_hwvirt::{Backend, EnableError, Vcpu, VcpuSetup};
use caisson_locks::{Mutex, Rank};
use caisson_machine::clock;
use caisson_machine::cpu::{self, Features};
use caisson_machine::memory::{DomainTables, GuestRam, PageBox};
use caisson_machine::random::Random;
use caisson_policy::{CpuidResult, CpuidSetup, CpuidTable, HostCaps, MsrSetup, Paravirt, Topology};
use caisson_smp::Changes;
use caisson_stage2::{Config, Error as Stage2Error, Format, MemoryType, Permissions, Stage2};
use caisson_types::{DomainId, Gpa, Hpa, PAGE_SIZE, PageSize, VcpuId};
use caisson_virtio::{PageRef, RegisterPage};

use crate::console;
use crate::control::Pause;
use crate::dirty::Tracking;
use crate::dma::{Dma, DmaError};
use crate::domains::Entry;
use crate::functions::Devices;
use crate::guests::{Live, Tables, Task};
use crate::scheduler::serve_between_steps;

/// Where a local APIC is after reset.
const APIC: Gpa = Gpa::new(caisson_irqchip::APIC_DEFAULT_BASE);
/// Pieces of private memory of which it is told where they are.
const PRIVATE_LINES: usize = 4;

/// Why a guest could not be made.
pub(crate) enum MakeError {
    /// No room for its RAM.
    OutOfMemory(u64),
    /// The vCPU's structures.
    Hardware(EnableError),
    /// Its stage-2 tables.
    Tables(Stage2Error),
    /// A TSC frequency, in kHz, that this CPU cannot give it; the host's.
    Tsc(u32, u64),
    /// No room to map its functions' registers.
    NoWindow,
    /// What its functions reach.
    Dma(DmaError),
    /// Its kernel, by the name that the configuration has for it, or firmware tables.
    Build(Box<str>, caisson_domain::BuildError),
}

impl MakeError {
    /// Whether devices may reach what was to be the guest's memory for ever: it is nobody's.
    pub(crate) fn has_lost_memory(&self) -> bool {
        matches!(self, Self::Dma(DmaError::Lost(_)))
    }
}

impl fmt::Display for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(bytes) => {
                write!(f, "memory: no {} MiB are left for it: give it less, or the machine more", bytes >> 20)
            }
            Self::Hardware(error) => error.fmt(f),
            Self::Tables(error) => write!(f, "memory: {error}"),
            Self::Tsc(khz, host) => write!(
                f,
                "tsc_khz: this CPU cannot scale its TSC of {host} kHz to {khz}, or `without=` forbids it: leave the line out, \
                 or use a CPU with TSC scaling"
            ),
            Self::NoWindow => f.write_str("devices: their registers do not fit into Caisson's address space"),
            Self::Dma(error) => write!(f, "devices: {error}"),
            Self::Build(kernel, error) => write!(f, "kernel {kernel:?}: {error}"),
        }
    }
}

/// What every guest is made with.
pub(crate) struct Maker {
    /// The host CPU.
    pub(crate) features: Features,
    /// What can be carried for a guest on this host.
    pub(crate) caps: HostCaps,
    /// Stage-2 tables may have leaves of 1 GiB.
    pub(crate) stage2_gigabytes: bool,
    /// Guests can use INVPCID where the CPU has it.
    pub(crate) invpcid: bool,
    /// LFENCE serialises.
    pub(crate) lfence_serializes: bool,
    /// Seconds since 1970 when Caisson started, and the TSC then.
    pub(crate) started: (u64, u64),
    /// The host's microcode revision, as RDMSR gives it.
    pub(crate) microcode: u64,
    /// The machine's functions, where a guest owns them.
    pub(crate) devices: Option<Devices>,
    /// The machine's IOMMU, where it has one.
    pub(crate) dma: Option<&'static Dma>,
}

impl Maker {
    /// Makes a guest of its record, with the devices that others serve.
    pub(crate) fn make<B: Backend, F: Format>(
        &self,
        backend: &B,
        entry: &Arc<Entry<B, F>>,
        record: &Record<'_>,
        served: Vec<VirtioDevice>,
    ) -> Result<Live<B, F>, MakeError> {
        let (id, guest) = (entry.id, entry.index());
        let clock = clock::get();
        let start = cpu::tsc();
        let guest_clock = domain_clock(backend, record.tsc_khz(), start, clock.tsc_hz)?;
        let vcpus = record.vcpus() as usize;
        let apic_ids: Vec<u32> = (0..record.vcpus()).collect();
        let devices = self.devices.as_ref().filter(|_| record.owns_devices());
        let mut memory = allocate(record, id, devices).ok_or(MakeError::OutOfMemory(record.memory()))?;
        for piece in memory.private().take(PRIVATE_LINES) {
            let (name, bytes, at) = (entry.name(), piece.bytes, piece.hpa);
            log::debug!("guest {name}: {bytes} bytes of its private memory are at {at}");
        }
        let has_door = devices.is_some() && record.privileges().contains(Privileges::EVENTS);
        let door = match has_door {
            true => Some(memory.add_door().ok_or(MakeError::OutOfMemory(record.memory()))?),
            false => None,
        };
        serve_between_steps();
        let acpi = devices.and_then(|devices| acpi_room(devices, &memory));
        let (regions, definitions) = match (devices, acpi) {
            (Some(devices), Some(acpi)) => (devices.regions(&memory, acpi.0, door), devices.definitions()),
            (Some(_), None) => return Err(MakeError::OutOfMemory(record.memory())),
            (None, _) => (Vec::new(), Vec::new()),
        };
        let own_devices = usize::from(self.own_devices(record));
        let own = core::iter::repeat_n(VirtioDevice::Entropy, own_devices);
        let virtio = register_pages(id, own.chain(served)).ok_or(MakeError::OutOfMemory(record.memory()))?;
        let pages: Vec<Hpa> = virtio.iter().map(|(_, page)| page.hpa()).collect();
        let mut layout = GuestLayout { virtio: virtio.len(), ..layout_of(record, &apic_ids) };
        layout.real = devices.zip(acpi).map(|(devices, acpi)| RealMachine {
            regions: &regions,
            acpi,
            definitions: &definitions,
            ecam: &devices.ecam,
            overrides: &devices.overrides,
        });
        let access = match devices {
            Some(devices) => Some(devices.access(guest).ok_or(MakeError::NoWindow)?),
            None => None,
        };
        let direct = devices.map(|devices| devices.direct(guest)).unwrap_or_default();
        let apic_page = backend.apic_access_page();
        let mapped = Mapped { memory: &memory, direct: &direct, registers: &pages };
        let tables = self.tables::<F>(id, &mapped, apic_page).map_err(MakeError::Tables)?;
        let (root, apic_root) = (tables.plain.root(), tables.with_apic.as_ref().map(Stage2::root));
        let cpuid = self.cpuid(vcpus, guest_clock.tsc_hz());
        let msrs = MsrSetup {
            paravirt: Paravirt::of(vcpus),
            microcode: self.microcode,
            lfence_serializes: self.lfence_serializes,
            low_memory_end: devices.map_or(layout.ram_below_4g(), |devices| devices.memory_ends().0),
            high_memory_end: match (devices, layout.ram_above_4g()) {
                (Some(devices), _) => devices.memory_ends().1,
                (None, 0) => 0,
                (None, bytes) => (4 << 30) + bytes,
            },
            ..MsrSetup::default()
        };
        let cr4 = cpuid.limits().cr4;
        let wall_clock = self.started.0 + (start - self.started.1) / clock.tsc_hz;
        let domain = Domain::new(DomainSetup {
            id,
            memory,
            cpuid,
            msrs,
            clock: guest_clock,
            wall_clock,
            vcpus,
            functions: devices.map(|devices| devices.bus(guest, has_door)),
            gigabyte_pages: self.features.gigabyte_pages,
            virtio: virtio.into_iter().map(|(device, page)| (device, Box::new(page) as PageRef)).collect(),
            privileges: record.privileges(),
            door,
        });
        let setup = VcpuSetup {
            stage2_root: root,
            apic_root,
            tsc_offset: domain.clock.tsc_offset(),
            tsc_multiplier: domain.clock.tsc_multiplier(),
            cr4,
        };
        if let Some(soft_off) = devices.and_then(|devices| devices.soft_off) {
            domain.chipset().set_soft_off(soft_off);
        }
        let mut made = Vec::with_capacity(vcpus);
        for index in 0..vcpus {
            serve_between_steps();
            let id = VcpuId { domain: id, index: index as u16 };
            let hw = backend.create_vcpu(id, &setup).map_err(MakeError::Hardware)?;
            made.push(VirtualCpu::new(hw, id, &domain));
        }
        let modules: Vec<Module<'_>> =
            record.modules().map(|m| Module { data: m.payload().data(), cmdline: m.cmdline() }).collect();
        let image = Image {
            kernel: record.kernel().data(),
            kind: match record.loader() {
                LoaderKind::Auto => None,
                LoaderKind::Linux => Some(caisson_loader::Kind::Linux),
                LoaderKind::Pvh => Some(caisson_loader::Kind::Pvh),
                LoaderKind::Multiboot1 => Some(caisson_loader::Kind::Multiboot1),
            },
            modules: &modules,
            command_line: record.cmdline(),
        };
        caisson_domain::load(&domain, &mut made[0], &layout, &image)
            .map_err(|error| MakeError::Build(record.kernel().name().into(), error))?;
        for vcpu in &mut made {
            // Any CPU may be the first to run it.
            vcpu.hw.leave_cpu();
        }
        // The last thing that can fail: from here on its devices reach its memory.
        let dma = match (devices, self.dma) {
            (Some(devices), Some(dma)) => {
                let owned = devices.owned(guest).map(|found| found.function().address);
                match dma.domain(id, &domain.memory, owned) {
                    Ok(dma) => Some(dma),
                    Err(error) => {
                        if matches!(error, DmaError::Lost(_)) {
                            core::mem::forget(domain.memory);
                        }
                        return Err(MakeError::Dma(error));
                    }
                }
            }
            _ => None,
        };
        Ok(Live {
            vcpus_left: AtomicUsize::new(made.len()),
            tasks: made.into_iter().map(Task::new).collect(),
            tables: Mutex::new(Rank::Stage2, tables),
            changes: Changes::new(),
            tracking: Tracking::new(),
            domain,
            dma,
            access,
            entry: entry.clone(),
            own_devices,
            console: console::ring(id),
            ending: AtomicBool::new(false),
            pause: Pause::new(),
            upload: Mutex::new(Rank::Upload, None),
        })
    }

    /// How many of a guest's virtio devices Caisson serves itself.
    pub(crate) fn own_devices(&self, record: &Record<'_>) -> u16 {
        // The real machine's tables describe none.
        u16::from(record.entropy() && !record.owns_devices() && Random::of(&self.features).is_some())
    }

    /// The guest's stage-2 tables, twice where there is a page for its local APIC.
    fn tables<F: Format>(
        &self,
        id: DomainId,
        mapped: &Mapped<'_>,
        apic: Option<Hpa>,
    ) -> Result<Tables<F>, Stage2Error> {
        let plain = self.map(id, mapped, None)?;
        let with_apic = apic.map(|page| self.map(id, mapped, Some(page))).transpose();
        match with_apic {
            Ok(with_apic) => Ok(Tables { plain, with_apic }),
            Err(error) => {
                plain.destroy(&mut DomainTables(id));
                Err(error)
            }
        }
    }

    /// The guest's RAM in stage-2 tables of its own, by the largest pages, the memory of functions that it owns, the registers of
    /// its virtio devices to read, and what stands where its local APIC is.
    fn map<F: Format>(
        &self,
        id: DomainId,
        mapped: &Mapped<'_>,
        apic: Option<Hpa>,
    ) -> Result<Stage2<F>, Stage2Error> {
        let frames = &mut DomainTables(id);
        let mut tables = Stage2::<F>::new(frames, Config::four_levels(self.stage2_gigabytes))?;
        let (ram, registers) = (MemoryType::WriteBack, MemoryType::Uncacheable);
        let own = mapped.memory.extents().iter();
        let own = own.map(|extent| (extent.gpa, extent.hpa, extent.bytes, Permissions::ALL, ram));
        let functions = mapped
            .direct
            .iter()
            .map(|&(hpa, bytes)| (Gpa::new(hpa.as_u64()), hpa, bytes, Permissions::READ_WRITE, registers));
        let apic = apic.map(|page| (APIC, page, PAGE_SIZE, Permissions::READ_WRITE, ram));
        let devices = (0..).zip(mapped.registers).map(|(index, &page)| {
            let at = Gpa::new(u64::from(VIRTIO_ADDRESS) + index * PAGE_SIZE);
            (at, page, PAGE_SIZE, Permissions::READ, ram)
        });
        for (gpa, hpa, bytes, permissions, memory_type) in own.chain(functions).chain(apic).chain(devices) {
            let mapped = tables.map(frames, gpa, hpa, bytes, permissions, memory_type);
            if let Err(error) = mapped {
                tables.destroy(frames);
                return Err(error);
            }
        }
        Ok(tables)
    }

    fn cpuid(&self, vcpus: usize, tsc_hz: u64) -> CpuidTable {
        let setup = CpuidSetup {
            caps: self.caps,
            topology: Topology::cores(vcpus as u16),
            paravirt: Paravirt::of(vcpus),
            tsc_khz: (tsc_hz / 1000) as u32,
            apic_khz: CPU_APIC_KHZ,
        };
        CpuidTable::build(&setup, |leaf, subleaf| {
            const INVPCID: u32 = 1 << 10;
            let mut r = cpu::cpuid(leaf, subleaf);
            if (leaf, subleaf) == (7, 0) && !self.invpcid {
                r.ebx &= !INVPCID;
            }
            CpuidResult::new(r.eax, r.ebx, r.ecx, r.edx)
        })
    }
}

/// What is mapped in a guest's stage-2 tables.
struct Mapped<'a> {
    memory: &'a GuestRam,
    /// The memory of functions that it owns: start and bytes.
    direct: &'a [(Hpa, u64)],
    /// The registers of its virtio devices, a page each.
    registers: &'a [Hpa],
}

/// Devices, each with a page for its registers. `None` without memory.
fn register_pages(
    id: DomainId,
    devices: impl Iterator<Item = VirtioDevice>,
) -> Option<Vec<(VirtioDevice, PageBox<RegisterPage>)>> {
    devices.map(|device| Some((device, PageBox::zeroed(Owner::Domain(id))?))).collect()
}

/// What a guest's record says of its machine.
fn layout_of<'a>(record: &Record<'_>, apic_ids: &'a [u32]) -> GuestLayout<'a> {
    GuestLayout { private: record.private(), ..GuestLayout::new(record.memory(), apic_ids) }
}

/// A guest's RAM: from address 0 on, or, where it owns devices, where it is.
fn allocate(record: &Record<'_>, id: DomainId, devices: Option<&Devices>) -> Option<GuestRam> {
    match devices {
        None => {
            let layout = layout_of(record, &[]);
            let ranges: Vec<_> = layout.backed().collect();
            Some(GuestRam::allocate(id, &ranges)?.private_from(layout.private_from()))
        }
        Some(_) => {
            const LOW: u64 = 1 << 20;
            let mut memory = GuestRam::allocate(id, &[(Gpa::new(0), LOW)])?;
            // Nobody else's memory shares a piece of 2 MiB with it, which is what its kernel can map of others'.
            let bytes = record.memory().saturating_sub(LOW).next_multiple_of(PageSize::Size2M.bytes());
            memory.add_identical(bytes).then_some(memory)
        }
    }
}

/// Room for the ACPI tables of a guest that owns devices: the end of its largest piece of RAM.
fn acpi_room(devices: &Devices, memory: &GuestRam) -> Option<(Gpa, u64)> {
    let bytes = devices.acpi_bytes();
    let extent = memory.extents().iter().max_by_key(|extent| extent.bytes)?;
    (extent.bytes > 2 * bytes && extent.gpa == Gpa::new(extent.hpa.as_u64()))
        .then(|| (Gpa::new(extent.gpa.as_u64() + extent.bytes - bytes), bytes))
}

/// A guest's clock, whose TSC is 0 at the host's `start`: with the host's frequency, or with one of its own.
fn domain_clock<B: Backend>(
    backend: &B,
    tsc_khz: Option<u32>,
    start: u64,
    host_hz: u64,
) -> Result<DomainClock, MakeError> {
    let Some(khz) = tsc_khz.filter(|&khz| u64::from(khz) != host_hz / 1000) else {
        return Ok(DomainClock::starting_at(start, host_hz));
    };
    let hz = u64::from(khz) * 1000;
    let scale = backend.tsc_fraction_bits().and_then(|bits| TscScale::between(host_hz, hz, bits));
    let scale = scale.ok_or(MakeError::Tsc(khz, host_hz / 1000))?;
    Ok(DomainClock::scaled(start, hz, scale))
}
