//! From the loader's hand-over to the first guest.

use core::fmt::Display;

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_boot::BootInfo;
use caisson_config::{Blob, Functions, LogLevel, MachineLimits, PciAddress, SelectedConsole};
use caisson_hwvirt::{Backend, EnableError, MsrPassthrough, Policy};
use caisson_machine::acpi::{self, Platform};
use caisson_machine::cpu::{self, Features};
use caisson_machine::exit_device::ExitDevice;
use caisson_machine::power::{self, RunResult};
use caisson_machine::random::Random;
use caisson_machine::{apic, clock, crash, gdt, ioapic, iommu, memory, percpu, pic, screen, serial, trap};
use caisson_pci::{Address, Choice, Collision, Owners};
use caisson_policy::HostCaps;
use caisson_stage2::{Ept, Format, Npt};
use caisson_svm::Svm;
use caisson_types::{DomainId, Hpa};
use caisson_vmx::Vmx;
use caisson_x86::msr;
use caisson_x86::svm::SvmFeatures;
use caisson_x86::vmx::VmxFeatures;
use log::LevelFilter;

use crate::console::{self, Shown};
use crate::cpus;
use crate::dirty::Meter;
use crate::dma::{Dma, InterruptSender};
use crate::drill::Drill;
use crate::functions::Devices;
use crate::logger;
use crate::maker::Maker;
use crate::scheduler::System;
use crate::trace;

/// The module that holds the configuration: by this word in the loader's configuration, or the only module there is.
const CONFIG_MODULE: &str = "config";
/// State components that can be carried: everything whose size the backends' areas have room for.
const CARRIED_XCR0: u64 = 0x2e7;

/// What VT-x has a control for, and AMD-V has without one.
const XSAVES: &str = "xsaves";

/// Guest-physical address bits that four levels of stage-2 tables span.
const STAGE2_BITS: u8 = 48;

/// Says why Caisson cannot start, on every screen there is, and stops.
fn refuse(reason: impl Display) -> ! {
    log::error!("cannot start: {reason}");
    console::drain();
    power::finish(RunResult::Refused)
}

/// Starts everything. Called by the boot crate, on the boot stack, with the boot tables.
#[expect(clippy::needless_pass_by_value, reason = "the boot crate hands it over for good")]
pub(crate) fn main(info: BootInfo) -> ! {
    let machine = bring_up(&info);
    // The decoder makes its tables on the heap at first use, which must not be on the exit path.
    caisson_emulate::prepare();
    let free = memory::frames().free_frames() * caisson_types::PAGE_SIZE;
    let clock = clock::get();
    log::info!("Caisson {}: {} MiB of memory free", env!("CARGO_PKG_VERSION"), free >> 20);
    log::info!(
        "{} CPU{}, {}, TSC {} kHz measured against {}",
        machine.platform.cpus.len().max(1),
        if machine.platform.cpus.len() > 1 { "s" } else { "" },
        if apic::is_x2apic() { "x2APIC" } else { "xAPIC" },
        clock.tsc_hz / 1000,
        clock.reference
    );
    let blob = configuration(&info, &machine.features, free);
    set_log_level(&blob);
    run(&info, machine, &blob)
}

/// What is known of the machine once it is up.
struct Machine {
    features: Features,
    platform: Platform,
    /// Where the other CPUs start.
    trampoline: Option<Hpa>,
    /// The TSC at Caisson's first step.
    began: u64,
}

/// The machine, from serial line to clocks.
#[allow(unsafe_code)]
fn bring_up(info: &BootInfo) -> Machine {
    let began = cpu::tsc();
    serial::init();
    logger::init();
    // SAFETY: this is the boot CPU, once, in the order that each part asks for: traps before anything can fault, ACPI and
    // screen while the boot tables are active, memory, then what needs it. Interrupts are off.
    unsafe {
        if let Some(info) = info.screen {
            screen::init(info);
        }
        percpu::init();
        gdt::init();
        trap::init();
        let trampoline = memory::place_trampoline(info);
        let platform = info.rsdp.and_then(|rsdp| acpi::read(rsdp)).unwrap_or_default();
        power::init(&platform, exit_device(info));
        let features = Features::detect();
        if let Err(error) = memory::init(info, &features) {
            refuse(error);
        }
        screen::remap();
        crash::init(info);
        crash::set_last_words(console::last_words);
        pic::disable();
        if !apic::is_present() || apic::init(&features).is_none() {
            refuse("this CPU has no local APIC, which Caisson needs for its timer: use a newer CPU");
        }
        if let Err(error) = clock::init(&platform) {
            refuse(error);
        }
        ioapic::init(&platform);
        if ioapic::route_isa(&platform, serial::COM1_IRQ, trap::SERIAL) {
            serial::enable_receive_interrupt();
        } else {
            log::warn!("no I/O APIC serves the serial line: consoles take no input");
        }
        Machine { features, platform, trampoline, began }
    }
}

/// `exit=isa-debug:0xf4`, `exit=bochs`: where a test's run ends.
fn exit_device(info: &BootInfo) -> Option<ExitDevice> {
    let word = info.option("exit")?;
    word.parse().inspect_err(|error| log::warn!("exit={word}: {error}")).ok()
}

/// Finds and checks the configuration blob among the loader's modules.
#[allow(unsafe_code)]
fn configuration(info: &BootInfo, features: &Features, free: u64) -> Blob<'static> {
    let module = match &info.modules[..] {
        [] => refuse(
            "no configuration: name the blob with `module2 /boot/config.blob config` in the loader's configuration",
        ),
        [only] => only,
        several => match several.iter().find(|m| m.name.split(' ').any(|word| word == CONFIG_MODULE)) {
            Some(module) => module,
            None => refuse("several modules and none is called `config`: name the configuration's module so"),
        },
    };
    // SAFETY: the range is a module's, which the frame allocator leaves alone.
    let bytes = unsafe { memory::loader_bytes(module.range) };
    let blob = Blob::parse(bytes).unwrap_or_else(|error| refuse(format_args!("config: {error}")));
    let limits = MachineLimits {
        memory: free,
        max_vcpus: caisson_irqchip::MAX_VCPUS as u32,
        address_bits: features.physical_bits.min(STAGE2_BITS),
    };
    if let Err(error) = blob.check_complete().and_then(|()| blob.check_machine(&limits)) {
        refuse(format_args!("config: {error}"));
    }
    blob
}

fn set_log_level(blob: &Blob<'static>) {
    log::set_max_level(match blob.machine().log_level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// Shows what the configuration asks for, from here on: what Caisson has said of the machine so far has been seen.
fn select_console(blob: &Blob<'static>) {
    console::show(match blob.machine().console {
        SelectedConsole::All => Shown::All,
        SelectedConsole::Log => Shown::Log,
        SelectedConsole::Domain(index) => Shown::Guest(DomainId(index as u16 + 1)),
    });
}

/// Turns the vendor's virtualisation on and runs the guests.
fn run(info: &BootInfo, machine: Machine, blob: &Blob<'static>) -> ! {
    if machine.features.svm {
        run_svm(info, machine, blob)
    } else if machine.features.vmx {
        run_vmx(info, machine, blob)
    } else {
        refuse(EnableError::NotSupported)
    }
}

/// What every backend carries.
fn carried(features: &Features) -> HostCaps {
    HostCaps {
        physical_bits: features.physical_bits.min(STAGE2_BITS),
        xcr0: CARRIED_XCR0,
        spec_ctrl: false,
        tsc_aux: features.rdtscp,
        arch_capabilities: false,
        xsaves: true,
    }
}

#[allow(unsafe_code)]
fn run_svm(info: &BootInfo, machine: Machine, blob: &Blob<'static>) -> ! {
    let features = machine.features;
    let (without, _) = without(info);
    // The CPU asks nobody about XSAVES.
    let xsaves = !left_out(info).any(|word| word == XSAVES);
    let caps = HostCaps { xsaves, ..carried(&features) };
    let passthrough = passthrough(&caps);
    let policy = Policy { passthrough: &passthrough, xcr0: CARRIED_XCR0 };
    // SAFETY: once, on the only CPU in use; the host's segments and SYSCALL MSRs do not change any more.
    let svm = unsafe { Svm::enable(&features, without, &policy) }.unwrap_or_else(|error| refuse(error));
    log::info!("{}: {}", Svm::NAME, svm.used());
    // SAFETY: every AMD CPU with SVM has the patch level in this MSR, if it is not an emulated one; reading it has no
    // effect.
    let microcode = unsafe { cpu::probe_msr(msr::BIOS_SIGN_ID) }.unwrap_or(0);
    let devices = devices(info, &machine, blob);
    let dma = dma(info, &machine, devices.as_ref());
    let maker = Maker {
        devices,
        dma,
        features,
        caps,
        stage2_gigabytes: features.gigabyte_pages,
        invpcid: true,
        lfence_serializes: svm.lfence_serializes(),
        started: (clock::wall_clock(), cpu::tsc()),
        microcode,
    };
    run_guests::<Svm, Npt>(info, machine, svm, maker, blob)
}

#[allow(unsafe_code)]
fn run_vmx(info: &BootInfo, machine: Machine, blob: &Blob<'static>) -> ! {
    let features = machine.features;
    let (_, without) = without(info);
    let available = Vmx::features(&features) - without;
    let tsc_aux = features.rdtscp && available.contains(VmxFeatures::RDTSCP);
    let xsaves = available.contains(VmxFeatures::XSAVES);
    let caps = HostCaps { tsc_aux, xsaves, ..carried(&features) };
    let passthrough = passthrough(&caps);
    let policy = Policy { passthrough: &passthrough, xcr0: CARRIED_XCR0 };
    // SAFETY: once, on the only CPU in use; the host's segments, descriptor tables and page tables do not change any more.
    let vmx = unsafe { Vmx::enable(&features, without, &policy) }.unwrap_or_else(|error| refuse(error));
    log::info!("{}: {}", Vmx::NAME, vmx.used());
    let devices = devices(info, &machine, blob);
    let dma = dma(info, &machine, devices.as_ref());
    let maker = Maker {
        devices,
        dma,
        features,
        caps,
        stage2_gigabytes: vmx.used().contains(VmxFeatures::EPT_1G),
        invpcid: vmx.used().contains(VmxFeatures::INVPCID),
        // On Intel's CPUs LFENCE always does.
        lfence_serializes: true,
        started: (clock::wall_clock(), cpu::tsc()),
        microcode: vmx.microcode(),
    };
    run_guests::<Vmx, Ept>(info, machine, vmx, maker, blob)
}

#[allow(unsafe_code)]
fn run_guests<B: Backend + 'static, F: Format + Send + Sync + 'static>(
    info: &BootInfo,
    machine: Machine,
    backend: B,
    maker: Maker,
    blob: &Blob<'static>,
) -> ! {
    let Machine { features, platform, trampoline, began } = machine;
    let most = cpu_limit(info);
    let (backend, clock): (&'static B, _) = (Box::leak(Box::new(backend)), clock::get());
    // SAFETY: on the boot CPU, once, with interrupts off; the start-up code lies where `bring_up` put it.
    unsafe { cpus::start(backend, &platform, trampoline, &features, clock, most) };
    trace::start(info);
    select_console(blob);
    if let Err(error) = blob.check_cpus(percpu::count()) {
        refuse(format_args!("config: {error}"));
    }
    if Random::of(&features).is_none() {
        for domain in blob.domains().filter(caisson_config::Domain::entropy) {
            log::warn!("guest {}: gets no entropy: this CPU has neither RDSEED nor RDRAND", domain.name());
        }
    }
    let system: &'static System<B, F> = Box::leak(Box::new(System::new(backend, maker, blob)));
    if system.start().is_err() {
        console::drain();
        power::finish(RunResult::Refused)
    }
    system.plan(Drill::of(info));
    system.tell_writes(Meter::of(info, clock));
    cpus::release(system);
    // The TSC starts at zero with the machine.
    log::debug!("ticks since power-on: {began} when Caisson began, {} now that guests can run", cpu::tsc());
    system.run()
}

/// Which functions a guest is to own, if any.
fn choice(record: &caisson_config::Domain<'_>) -> Option<Choice> {
    let address = |at: PciAddress| Address::new(at.segment, at.bus, at.device, at.function);
    match record.functions() {
        Functions::None => None,
        Functions::All => Some(None),
        Functions::Named(list) => Some(Some(list.iter().map(address).collect())),
    }
}

/// The machine's PCI functions, where a guest is to own them.
#[allow(unsafe_code)]
fn devices(info: &BootInfo, machine: &Machine, blob: &Blob<'static>) -> Option<Devices> {
    let choices = blob.domains().enumerate();
    let choices: Vec<_> = choices.filter_map(|(index, record)| Some((index, choice(&record)?))).collect();
    if choices.is_empty() {
        return None;
    }
    let owners = Owners::new(choices);
    // SAFETY: on the boot CPU, once; nothing is used yet but the serial line and the screen, of which nobody writes now. RAM,
    // the interrupt controllers, timers and configuration space are reserved.
    let devices = unsafe { Devices::find(&machine.platform, &info.areas, owners) };
    let devices = devices
        .unwrap_or_else(|error| refuse(format_args!("config: domain[{}].devices: {error}", error.guest())));
    for function in devices.all() {
        let (vendor, device, class) = (function.vendor, function.device, function.class);
        log::debug!("{}: {vendor:04x}:{device:04x}, class {class:06x}", function.address);
    }
    for Collision { function, register, start } in &devices.collisions {
        log::debug!(
            "{function}: base address register {register} is left out: others decode {start:#x} as well"
        );
    }
    for (index, record) in blob.domains().enumerate().filter(|(_, record)| record.owns_devices()) {
        log::info!("guest {} owns {} PCI functions", record.name(), devices.owned(index).count());
    }
    devices.reserve_edges();
    Some(devices)
}

/// The machine's IOMMU, where it has one that is to be used.
#[allow(unsafe_code)]
fn dma(info: &BootInfo, machine: &Machine, devices: Option<&Devices>) -> Option<&'static Dma> {
    // SAFETY: on the boot CPU, once, with the machine up and before anybody uses a function.
    let dma = unsafe { Dma::start(info, &machine.platform, devices) }.unwrap_or_else(|error| refuse(error));
    if dma.is_none() && devices.is_some() {
        log::info!("no IOMMU: the devices that a guest owns reach all of the machine's memory");
    }
    if let Some(dma) = dma.filter(|_| iommu::remaps()) {
        // The line's own interrupt goes that way as well from now on; what came meanwhile is looked at.
        let (line, mode) = ioapic::isa_line(&machine.platform, serial::COM1_IRQ);
        let _ = dma.deliver(trap::SERIAL, InterruptSender::Line(line, mode.level));
        let _ = ioapic::route(line, trap::SERIAL, mode);
        let _ = percpu::current().pending().set(percpu::pending::SERIAL);
    }
    dma
}

/// `cpus=N`: use no more than so many CPUs.
fn cpu_limit(info: &BootInfo) -> usize {
    let Some(word) = info.option("cpus") else { return usize::MAX };
    match word.parse() {
        Ok(most @ 1..) => most,
        _ => {
            log::warn!("cpus={word}: give the number of CPUs to use, 1 or more");
            usize::MAX
        }
    }
}

/// The MSRs that guests reach without an exit.
fn passthrough(caps: &HostCaps) -> Vec<MsrPassthrough> {
    caisson_policy::msr::passthrough(caps)
        .map(|entry| MsrPassthrough { number: entry.number, read: entry.read, write: entry.write })
        .collect()
}

/// What stands behind `without=`.
fn left_out(info: &BootInfo) -> impl Iterator<Item = &str> {
    info.option("without").unwrap_or("").split(',').filter(|word| !word.is_empty())
}

/// `without=decode-assists,vpid,...`: optional features that are not to be used, of either vendor, by the names under
/// which the log tells them.
fn without(info: &BootInfo) -> (SvmFeatures, VmxFeatures) {
    let (mut svm, mut vmx) = (SvmFeatures::empty(), VmxFeatures::empty());
    for word in left_out(info) {
        match (SvmFeatures::named(word), VmxFeatures::named(word)) {
            (None, None) if word == "nrips" => svm |= SvmFeatures::NRIP_SAVE,
            (None, None) => log::warn!("without={word}: no such feature"),
            (of_svm, of_vmx) => {
                svm |= of_svm.unwrap_or(SvmFeatures::empty());
                vmx |= of_vmx.unwrap_or(VmxFeatures::empty());
            }
        }
    }
    (svm, vmx)
}
