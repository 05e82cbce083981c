//! RDMSR and WRMSR.

use caisson_emulate::Opcode;
use caisson_hwvirt::Vcpu;
use caisson_irqchip::Effect as ApicEffect;
use caisson_policy::MsrClass;
use caisson_policy::msr::{Effect, check_hardware};
use caisson_types::GuestMemory;
use caisson_x86::{Exception, Gpr};

use crate::domain::{Domain, Host};
use crate::vcpu::{Outcome, VirtualCpu};

/// The access raises #GP(0).
struct Fault;

impl<V: Vcpu> VirtualCpu<V> {
    #[inline]
    pub(super) fn read_msr<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Outcome {
        match self.msr(domain, host, self.hw.gpr(Gpr::Rcx) as u32) {
            Ok(value) => {
                self.hw.set_gpr(Gpr::Rax, value & 0xffff_ffff);
                self.hw.set_gpr(Gpr::Rdx, value >> 32);
                self.end_instruction(domain, Opcode::Rdmsr, Outcome::Resume)
            }
            Err(Fault) => self.raise(Exception::GENERAL_PROTECTION),
        }
    }

    #[inline]
    pub(super) fn write_msr<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Outcome {
        let value = self.hw.gpr(Gpr::Rdx) << 32 | self.hw.gpr(Gpr::Rax) & 0xffff_ffff;
        match self.set_msr(domain, host, self.hw.gpr(Gpr::Rcx) as u32, value) {
            Ok(()) => self.end_instruction(domain, Opcode::Wrmsr, Outcome::Resume),
            Err(Fault) => self.raise(Exception::GENERAL_PROTECTION),
        }
    }

    fn msr<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &impl Host,
        number: u32,
    ) -> Result<u64, Fault> {
        match self.msrs.classify(number) {
            MsrClass::X2Apic => {
                self.end_pv_eoi(domain);
                self.load_apic();
                let now = domain.clock.at(host.tsc());
                let value = self.apic.read_x2apic(number, now).map_err(|_| Fault);
                self.notice_request();
                value
            }
            MsrClass::TscDeadline => {
                self.load_apic();
                let now = domain.clock.at(host.tsc());
                let value = self.apic.read_tsc_deadline(now).map_err(|_| Fault);
                self.notice_request();
                value
            }
            MsrClass::ApicBase => Ok(self.apic.apic_base()),
            MsrClass::Hardware => self.hw.hardware_msr(number).ok_or(Fault),
            MsrClass::Tsc => Ok(self.guest_tsc(domain, host)),
            MsrClass::Efer => Ok(self.hw.efer()),
            MsrClass::KvmSystemTime => Ok(self.system_time),
            MsrClass::KvmWallClock => Ok(self.wall_clock),
            MsrClass::KvmPvEoi => Ok(self.pv_eoi_msr()),
            MsrClass::State => self.msrs.read(number).map_err(|_| Fault),
            MsrClass::KvmStealTime => Ok(self.steal_time_msr()),
            MsrClass::Unknown => Err(Fault),
        }
    }

    fn set_msr<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        number: u32,
        value: u64,
    ) -> Result<(), Fault> {
        match self.msrs.classify(number) {
            MsrClass::X2Apic => {
                self.end_pv_eoi(domain);
                self.load_apic();
                let now = domain.clock.at(host.tsc());
                let effect = self.apic.write_x2apic(number, value, now).map_err(|_| Fault)?;
                self.apic_effect(domain, host, effect);
            }
            MsrClass::TscDeadline => {
                self.load_apic();
                let clock = domain.clock.tsc_clock(host.tsc(), self.tsc_adjust);
                let effect = self.apic.write_tsc_deadline(value, &clock).map_err(|_| Fault)?;
                self.apic_effect(domain, host, effect);
            }
            MsrClass::ApicBase => {
                self.end_pv_eoi(domain);
                self.load_apic();
                let effect = self.apic.write_apic_base(value).map_err(|_| Fault)?;
                self.apic_effect(domain, host, effect);
            }
            MsrClass::Hardware => {
                check_hardware(domain.cpuid.limits(), number, value).map_err(|_| Fault)?;
                self.hw.set_hardware_msr(number, value).then_some(()).ok_or(Fault)?;
            }
            MsrClass::Tsc => {
                let effect = self.msrs.write_tsc(self.guest_tsc(domain, host), value);
                self.move_tsc(domain, host, effect);
            }
            MsrClass::Efer => {
                let new = domain.cpuid.limits().check_efer(self.hw.efer(), value, self.hw.cr0());
                self.hw.set_efer(new.map_err(|_| Fault)?);
            }
            MsrClass::State => {
                let effect = self.msrs.write(number, value).map_err(|_| Fault)?;
                self.move_tsc(domain, host, effect);
            }
            MsrClass::KvmSystemTime => self.set_system_time(domain, value).ok_or(Fault)?,
            MsrClass::KvmWallClock => self.set_wall_clock(domain, value).ok_or(Fault)?,
            MsrClass::KvmPvEoi => self.set_pv_eoi(domain, value).ok_or(Fault)?,
            MsrClass::KvmStealTime => self.set_steal_time(domain, value).ok_or(Fault)?,
            MsrClass::Unknown => return Err(Fault),
        }
        Ok(())
    }

    /// This vCPU's TSC.
    fn guest_tsc<M>(&self, domain: &Domain<M>, host: &impl Host) -> u64 {
        domain.clock.guest_tsc(host.tsc()).wrapping_add(self.tsc_adjust)
    }

    /// Moves this vCPU's TSC, and with it its TSC deadline and its KVM clock.
    fn move_tsc<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host, effect: Effect) {
        let Effect::AddTscOffset(ticks) = effect else { return };
        self.tsc_adjust = self.tsc_adjust.wrapping_add(ticks);
        self.hw.set_tsc_offset(domain.clock.tsc_offset().wrapping_add(self.tsc_adjust));
        let clock = domain.clock.tsc_clock(host.tsc(), self.tsc_adjust);
        let effect: ApicEffect = self.apic.retime_tsc_deadline(&clock);
        self.apic_effect(domain, host, effect);
        host.wake(domain.note_tsc_adjust(self.index(), self.tsc_adjust));
        self.refresh_system_time(domain);
    }
}
