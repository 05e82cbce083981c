//! Building a guest: firmware's tables and the kernel into its memory, the entry state into its boot vCPU.

use alloc::vec::Vec;
use core::fmt;

use caisson_firmware::{GuestLayout, InstallError};
use caisson_hwvirt::Vcpu;
use caisson_loader::{EntryState, LoadError, LoadRequest};
use caisson_types::{GuestMemory, MemoryRegion};
use caisson_x86::{Attributes, DescriptorTable, Gpr, Rflags, Segment, SegmentRegister};

use crate::domain::Domain;
use crate::vcpu::VirtualCpu;

pub use caisson_loader::Module;

/// What a guest boots.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// How it is loaded; `None` finds out.
    pub kind: Option<caisson_loader::Kind>,
    /// Its initial RAM disk, or its modules.
    pub modules: &'a [Module<'a>],
    /// Its command line.
    pub command_line: &'a str,
}

/// Why a guest could not be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// The firmware's tables do not fit.
    Firmware(InstallError),
    /// The kernel cannot be loaded.
    Kernel(LoadError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware(error) => error.fmt(f),
            Self::Kernel(error) => error.fmt(f),
        }
    }
}

/// Puts what `image` names into the domain's memory, and the state in which it is entered into `boot`.
///
/// # Errors
/// [`BuildError`] in words for the person who wrote the configuration.
pub fn load<M: GuestMemory, V: Vcpu>(
    domain: &Domain<M>,
    boot: &mut VirtualCpu<V>,
    layout: &GuestLayout<'_>,
    image: &Image<'_>,
) -> Result<(), BuildError> {
    let rsdp = caisson_firmware::install(layout, &domain.memory).map_err(BuildError::Firmware)?;
    domain.chipset().rtc_mut().set_memory_size(layout.shared_below_4g(), layout.shared_above_4g());
    if layout.private != 0 {
        domain.chipset().add_host_bridge();
    }
    let map: Vec<MemoryRegion> = layout.memory_map().collect();
    let request = LoadRequest {
        modules: image.modules,
        cmdline: image.command_line,
        memory_map: &map,
        reserved: &[],
        rsdp: Some(rsdp),
    };
    let entry = match image.kind {
        Some(kind) => caisson_loader::load_as(kind, image.kernel, &request, &domain.memory),
        None => caisson_loader::load(image.kernel, &request, &domain.memory),
    };
    enter(boot, &entry.map_err(BuildError::Kernel)?);
    boot.set_virtual_wire(domain);
    Ok(())
}

/// Sets the boot vCPU to the kernel's entry.
fn enter<V: Vcpu>(boot: &mut VirtualCpu<V>, entry: &EntryState) {
    let hw = &mut boot.hw;
    hw.set_efer(entry.efer());
    hw.set_cr0(entry.cr0());
    hw.set_cr3(entry.cr3());
    hw.set_cr4(entry.cr4());
    hw.set_rip(entry.rip);
    hw.set_rflags(Rflags::FIXED.bits());
    for register in Gpr::ALL {
        hw.set_gpr(register, 0);
    }
    hw.set_gpr(Gpr::Rax, entry.rax);
    hw.set_gpr(Gpr::Rbx, entry.rbx);
    hw.set_gpr(Gpr::Rsi, entry.rsi);
    hw.set_segment(SegmentRegister::Cs, entry.code);
    for register in [
        SegmentRegister::Ds,
        SegmentRegister::Es,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
        SegmentRegister::Ss,
    ] {
        hw.set_segment(register, entry.data);
    }
    hw.set_segment(SegmentRegister::Tr, entry.task);
    hw.set_segment(SegmentRegister::Ldtr, Segment { attributes: Attributes(0), ..Segment::default() });
    hw.set_cpl(0);
    hw.set_gdtr(entry.gdt);
    hw.set_idtr(DescriptorTable { base: 0, limit: 0 });
}
