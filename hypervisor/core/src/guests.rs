//! Making guests from the configuration blob, and taking them apart.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use caisson_abi::Privileges;
use caisson_accounts::{Activity, VcpuAccount};
use caisson_config::{Console, Domain as Record, LoaderKind, OnExitAction};
use caisson_console::Ring;
use caisson_domain::{
    CPU_APIC_KHZ, Domain, DomainClock, DomainSetup, Ended, Image, Module, TscScale, VirtioDevice, VirtualCpu,
};
use caisson_firmware::{GuestLayout, RealMachine, VIRTIO_ADDRESS};
use caisson_frames::Owner;
use caisson_hwvirt::{Backend, EnableError, Vcpu, VcpuSetup};
use caisson_locks::{Mutex, Rank};
use caisson_machine::clock;
use caisson_machine::cpu::{self, Features};
use caisson_machine::memory::{DomainTables, GuestRam, PageBox};
use caisson_machine::pci::Access;
use caisson_machine::percpu;
use caisson_machine::random::Random;
use caisson_policy::{CpuidResult, CpuidSetup, CpuidTable, HostCaps, MsrSetup, Paravirt, Topology};
use caisson_smp::{Changes, Place, Seen};
use caisson_stage2::{Config, Error as Stage2Error, Format, MemoryType, Permissions, Stage2};
use caisson_types::{DomainId, Gpa, Hpa, PAGE_SIZE, PageSize, VcpuId};
use caisson_virtio::{PageRef, RegisterPage};

use crate::console;
use crate::control::Pause;
use crate::dirty::Tracking;
use crate::dma::{Dma, DmaDomain, DmaError};
use crate::functions::Devices;
use crate::life::Phase;
use crate::logger::EVENT;
use crate::scheduler::serve_between_steps;

/// Where a local APIC is after reset.
const APIC: Gpa = Gpa::new(caisson_irqchip::APIC_DEFAULT_BASE);
/// A guest that restarts again and again takes one part in so many of the machine's time for being made.
const RESTART_PART: u64 = 20;
/// How often it is said that a guest ended and is started again.
const LINES_PER_SECOND: u64 = 1;

/// A guest: its record in the configuration, and what exists of it.
pub(crate) struct Guest<B: Backend, F: Format> {
    /// What the configuration says of it.
    pub(crate) record: Record<'static>,
    /// Its id.
    pub(crate) id: DomainId,
    /// What exists while it lives.
    pub(crate) live: Option<Arc<Live<B, F>>>,
    /// What is to be done for it beside running it.
    pub(crate) phase: Phase,
    /// The number of its life, or its last one; 0 before the first.
    pub(crate) life: u32,
    /// Somebody has said that it is to be gone, whatever it is doing.
    pub(crate) unwanted: bool,
    /// It could not be made the last time.
    pub(crate) is_unmade: bool,
    /// How often it has been restarted.
    restarts: u32,
    /// How it ended last.
    ended: Option<Ended>,
    /// It is to be started again as soon as its old memory is free.
    restarting: bool,
    /// The earliest TSC for that, by what the last start cost.
    not_before: u64,
    /// The TSC when it was last said how it ended, and how often it ended since without a word.
    said: u64,
    unsaid: u64,
}

/// A vCPU, and where it is.
pub(crate) struct Task<V> {
    /// Locked by the CPU that runs it, for as long as it does.
    pub(crate) vcpu: Mutex<VirtualCpu<V>>,
    /// Where it is, and which CPU holds its registers.
    pub(crate) place: Place,
    /// Where its time goes: written by the CPU that runs it, and by who wakes it, under its queue's lock.
    pub(crate) account: VcpuAccount,
    /// The last change of its domain's stage-2 tables for which it has flushed.
    pub(crate) seen: Seen,
}

impl<V: Vcpu> Task<V> {
    fn new(vcpu: VirtualCpu<V>) -> Self {
        Self {
            vcpu: Mutex::new(Rank::Vcpu, vcpu),
            place: Place::new(0),
            account: VcpuAccount::new(cpu::tsc(), Activity::Blocked),
            seen: Seen::new(),
        }
    }
}

/// A living guest. Its end is in the order of the fields: the vCPUs go first, then the memory, and with it every frame that
/// the domain owns, those of its stage-2 tables included. No CPU walks those any more: the vCPUs are gone, and their
/// address-space ids are not used again before a flush.
pub(crate) struct Live<B: Backend, F: Format> {
    pub(crate) tasks: Box<[Task<B::Vcpu>]>,
    pub(crate) tables: Mutex<Tables<F>>,
    /// How often they have lost something that CPUs may have cached ([`Live::flush_everywhere`]).
    pub(crate) changes: Changes,
    /// Which pages it writes, where somebody wants to know.
    pub(crate) tracking: Tracking,
    /// What the vCPUs share.
    pub(crate) domain: Domain<GuestRam>,
    /// What its functions reach, where the machine has an IOMMU.
    pub(crate) dma: Option<DmaDomain>,
    /// What Caisson accesses of its functions for it, if it owns any.
    pub(crate) access: Option<Arc<Access>>,
    /// Its number in the configuration.
    pub(crate) guest: usize,
    /// How many of its virtio devices Caisson serves itself; they come before the others.
    pub(crate) own_devices: usize,
    /// Where what it writes to its serial line goes, if that is shown.
    pub(crate) console: Option<Arc<Ring>>,
    /// One of its vCPUs has reported its end: none is entered any more.
    ending: AtomicBool,
    /// vCPUs that are in some queue.
    pub(crate) vcpus_left: AtomicUsize,
    /// Whether it stands still.
    pub(crate) pause: Pause,
}

/// A domain's stage-2 tables.
pub(crate) struct Tables<F: Format> {
    /// RAM alone.
    plain: Stage2<F>,
    /// The same with the backend's page where a local APIC is, if it has one.
    with_apic: Option<Stage2<F>>,
}

impl<F: Format> Tables<F> {
    /// All of them: what is done to the guest's RAM is done to each.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Stage2<F>> {
        core::iter::once(&mut self.plain).chain(&mut self.with_apic)
    }
}

impl<B: Backend, F: Format> Live<B, F> {
    /// A vCPU's name.
    #[inline]
    pub(crate) fn vcpu_id(&self, index: usize) -> VcpuId {
        VcpuId { domain: self.domain.id, index: index as u16 }
    }

    /// Whether it has ended.
    #[inline]
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// It has ended. Whether it had before.
    pub(crate) fn set_ending(&self) -> bool {
        self.ending.swap(true, Ordering::AcqRel)
    }

    /// Takes everything apart but the memory, which is still to be scrubbed.
    fn into_memory(self) -> GuestRam {
        drop(self.tasks);
        self.domain.memory
    }
}

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
    Build(&'static str, caisson_domain::BuildError),
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
    /// Makes a guest of its record.
    pub(crate) fn make<B: Backend, F: Format>(
        &self,
        backend: &B,
        record: &Record<'static>,
        id: DomainId,
        guest: usize,
        served: Vec<VirtioDevice>,
    ) -> Result<Live<B, F>, MakeError> {
        let clock = clock::get();
        let start = cpu::tsc();
        let guest_clock = domain_clock(backend, record.tsc_khz(), start, clock.tsc_hz)?;
        let vcpus = record.vcpus() as usize;
        let apic_ids: Vec<u32> = (0..record.vcpus()).collect();
        let devices = self.devices.as_ref().filter(|_| record.owns_devices());
        let mut memory =
            allocate(record.memory(), id, devices).ok_or(MakeError::OutOfMemory(record.memory()))?;
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
        let mut layout = GuestLayout { virtio: virtio.len(), ..GuestLayout::new(record.memory(), &apic_ids) };
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
        let dma = match (devices, self.dma) {
            (Some(devices), Some(dma)) => {
                let owned = devices.owned(guest).map(|found| found.function().address);
                Some(dma.domain(id, &memory, owned).map_err(MakeError::Dma)?)
            }
            _ => None,
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
            .map_err(|error| MakeError::Build(record.kernel().name(), error))?;
        for vcpu in &mut made {
            // Any CPU may be the first to run it.
            vcpu.hw.leave_cpu();
        }
        Ok(Live {
            vcpus_left: AtomicUsize::new(made.len()),
            tasks: made.into_iter().map(Task::new).collect(),
            tables: Mutex::new(Rank::Stage2, tables),
            changes: Changes::new(),
            tracking: Tracking::new(),
            domain,
            dma,
            access,
            guest,
            own_devices,
            console: console::ring(id),
            ending: AtomicBool::new(false),
            pause: Pause::new(),
        })
    }

    /// How many of a guest's virtio devices Caisson serves itself.
    pub(crate) fn own_devices(&self, record: &Record<'static>) -> u16 {
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

/// A guest's RAM: from address 0 on, or, where it owns devices, where it is.
fn allocate(bytes: u64, id: DomainId, devices: Option<&Devices>) -> Option<GuestRam> {
    match devices {
        None => {
            let ranges: Vec<_> = GuestLayout::new(bytes, &[]).backed().collect();
            GuestRam::allocate(id, &ranges)
        }
        Some(_) => {
            const LOW: u64 = 1 << 20;
            let mut memory = GuestRam::allocate(id, &[(Gpa::new(0), LOW)])?;
            // Nobody else's memory shares a piece of 2 MiB with it, which is what its kernel can map of others'.
            let bytes = bytes.saturating_sub(LOW).next_multiple_of(PageSize::Size2M.bytes());
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

impl<B: Backend, F: Format> Guest<B, F> {
    /// A guest that does not exist yet.
    pub(crate) fn new(record: Record<'static>, id: DomainId) -> Self {
        if record.console() == Console::Serial {
            console::add_guest(id, record.name());
        }
        Self {
            record,
            id,
            live: None,
            phase: Phase::Living,
            life: 0,
            unwanted: false,
            is_unmade: false,
            restarts: 0,
            ended: None,
            restarting: false,
            not_before: 0,
            said: 0,
            unsaid: 0,
        }
    }

    /// Its old memory is free: the TSC from which on it may be made again, if it is to be.
    pub(crate) fn restart_at(&mut self) -> Option<u64> {
        (core::mem::take(&mut self.restarting) && !self.unwanted).then_some(self.not_before)
    }

    /// It lives again, after work of `cost` TSC ticks: the next time must wait so long that such work stays a small part
    /// of the machine's.
    pub(crate) fn started(&mut self, live: Arc<Live<B, F>>, cost: u64) {
        self.live = Some(live);
        self.phase = Phase::Living;
        // 0 is no life.
        self.life = self.life.checked_add(1).unwrap_or(1);
        self.not_before = cpu::tsc().saturating_add(cost.saturating_mul(RESTART_PART));
    }

    /// Says that it is started, the first time.
    pub(crate) fn say_start(&self) {
        if self.restarts != 0 {
            return;
        }
        let (memory, vcpus) = (self.record.memory() >> 20, self.record.vcpus());
        let s = if vcpus == 1 { "" } else { "s" };
        log::info!("guest {}: {memory} MiB, {vcpus} vCPU{s}, started", self.name());
    }

    /// It is gone, and is to live again as if for the first time.
    pub(crate) fn begin_anew(&mut self) {
        self.restarts = 0;
        self.unwanted = false;
        self.is_unmade = false;
        self.phase = Phase::Awaited;
    }

    /// How often it has been started again by itself.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How it ended last.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether it is gone for good.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.record.name()
    }

    /// Whether it ended as it should.
    pub(crate) fn ended_well(&self) -> bool {
        self.unwanted || matches!(self.ended, Some(Ended::PowerOff | Ended::Destroyed))
    }

    /// It has ended, as `vcpu` reports, which is on this CPU, or as somebody has said: says so, and notes whether it is to be
    /// started again.
    pub(crate) fn end(&mut self, ended: Ended, vcpu: Option<&VirtualCpu<B::Vcpu>>) {
        console::end_guest(self.id);
        let actions = self.record.on_exit();
        let (action, failed) = match ended {
            Ended::PowerOff => (actions.poweroff, false),
            Ended::Reset => (actions.reboot, false),
            Ended::TripleFault { .. } | Ended::Killed(_) => (actions.crash, true),
            Ended::Destroyed => (OnExitAction::Destroy, false),
        };
        let within = self.record.max_restarts().is_none_or(|most| self.restarts < most);
        let again = action == OnExitAction::Restart && within;
        let what: String = match (again, action) {
            (true, _) => "restarting".to_string(),
            (false, OnExitAction::Restart) => "not restarted again: its limit is reached".to_string(),
            (false, OnExitAction::Destroy) => "destroyed".to_string(),
        };
        self.say_end(ended, failed, &what, again, vcpu);
        self.ended = Some(ended);
        self.restarts += u32::from(again);
        self.restarting = again;
    }

    /// Takes it apart after its end, all but its memory.
    pub(crate) fn take_apart(&self, live: Live<B, F>) -> GuestRam {
        live.into_memory()
    }

    /// Says how it ended, with its registers where it failed. A guest that ends and starts again and again is heard
    /// [`LINES_PER_SECOND`] times a second at most.
    fn say_end(
        &mut self,
        ended: Ended,
        failed: bool,
        what: &str,
        again: bool,
        vcpu: Option<&VirtualCpu<B::Vcpu>>,
    ) {
        let now = cpu::tsc();
        if again && now.wrapping_sub(self.said) < clock::get().tsc_hz / LINES_PER_SECOND {
            self.unsaid += 1;
            return;
        }
        self.said = now;
        let unsaid = core::mem::take(&mut self.unsaid);
        if unsaid != 0 {
            log::warn!("guest {}: ended {unsaid} times more since it was last heard of", self.name());
        }
        if failed {
            log::error!("guest {}: {ended}; {what}", self.name());
            if let Some(vcpu) = vcpu {
                self.log_registers(vcpu);
            }
        } else {
            log::info!(target: EVENT, "guest {}: {ended}; {what}", self.name());
        }
    }

    /// Where its vCPU was, and the last exits here.
    fn log_registers(&self, vcpu: &VirtualCpu<B::Vcpu>) {
        use caisson_hwvirt::VcpuState;
        use caisson_x86::{Gpr, SegmentRegister};
        for exit in percpu::current().recent_exits().iter().filter(|exit| exit.vcpu.domain == self.id) {
            log::error!("  {}: exit {:#x} at rip {:#x}", exit.vcpu, exit.code, exit.rip);
        }
        let hw = &vcpu.hw;
        if let Some(refusal) = hw.refusal() {
            log::error!("  {}: the entry check that failed: {refusal}", vcpu.id);
        }
        let cs = hw.segment(SegmentRegister::Cs);
        log::error!(
            "  {}: {:?} cs:rip {:#x}:{:#x} (base {:#x}) rsp {:#x} rflags {:#x} rax {:#x}",
            vcpu.id,
            hw.mode(),
            cs.selector,
            hw.rip(),
            cs.base,
            hw.gpr(Gpr::Rsp),
            hw.rflags(),
            hw.gpr(Gpr::Rax)
        );
        log::error!(
            "  {}: cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} idt {:#x}+{:#x}",
            vcpu.id,
            hw.cr0(),
            hw.cr2(),
            hw.cr3(),
            hw.cr4(),
            hw.efer(),
            hw.idtr().base,
            hw.idtr().limit
        );
    }
}
