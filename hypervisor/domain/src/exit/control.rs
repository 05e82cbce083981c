//! Control registers and XSETBV.

use caisson_emulate::{CrAccess, Opcode, StepError, decode_cr};
use caisson_hwvirt::Vcpu;
use caisson_policy::limits::{Cr0Context, Cr4Context, PagingControls};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Cr0, Cr4, Efer, Exception, Gpr, SegmentRegister};

use crate::domain::Domain;
use crate::vcpu::{Outcome, VirtualCpu};

/// The address of the page-directory pointers in CR3 (SDM vol. 3, table 4-7).
const POINTER_TABLE: u64 = 0xffff_ffe0;

impl<V: Vcpu> VirtualCpu<V> {
    /// What the instruction at RIP does to a control register, and the RIP behind it. `Err` has answered the exit.
    fn control_access<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        register: u8,
        gpr: Option<Gpr>,
    ) -> Result<(CrAccess, u64), Outcome> {
        if let (Some(source), Some(next)) = (gpr, self.hw.next_rip()) {
            return Ok((CrAccess::Write { register, gpr: source }, next));
        }
        decode_cr(&mut self.hw, &domain.memory, &domain.paging).map_err(|error| match error {
            StepError::Exception(exception) => self.raise(exception),
            // The code has changed since the exit: the guest executes what is there now.
            StepError::Unhandleable(_) => {
                self.hw.flush_tlb();
                Outcome::Resume
            }
        })
    }

    /// A write to CR4: what the policy does not have is reserved.
    #[inline(never)]
    pub(super) fn write_cr4<M: GuestMemory>(&mut self, domain: &Domain<M>, gpr: Option<Gpr>) -> Outcome {
        let (access, next) = match self.control_access(domain, 4, gpr) {
            Ok(access) => access,
            Err(outcome) => return outcome,
        };
        if let Some(value) = access.new_cr4(&self.hw) {
            let context = Cr4Context { old: self.hw.cr4(), cr3: self.hw.cr3(), efer: self.hw.efer() };
            if domain.cpuid.limits().check_cr4(value, &context).is_err()
                || !self.load_pointers(domain, self.hw.cr0(), value)
            {
                return self.raise(Exception::GENERAL_PROTECTION);
            }
            self.hw.set_cr4(value);
        }
        self.complete(next);
        Outcome::Resume
    }

    /// A write to CR0, where a backend needs to see it. Long mode is entered and left with paging (APM vol. 2, section
    /// 14.6; SDM vol. 3, section 11.8.5).
    #[inline(never)]
    pub(super) fn write_cr0<M: GuestMemory>(&mut self, domain: &Domain<M>, gpr: Option<Gpr>) -> Outcome {
        let (access, next) = match self.control_access(domain, 0, gpr) {
            Ok(access) => access,
            Err(outcome) => return outcome,
        };
        if let Some(value) = access.new_cr0(&self.hw) {
            let efer = self.hw.efer();
            let context = Cr0Context {
                old: self.hw.cr0(),
                cr4: self.hw.cr4(),
                efer,
                long_code: self.hw.segment(SegmentRegister::Cs).attributes.long(),
                task_16: matches!(self.hw.segment(SegmentRegister::Tr).attributes.kind(), 1 | 3),
            };
            let Ok(value) = domain.cpuid.limits().check_cr0(value, &context) else {
                return self.raise(Exception::GENERAL_PROTECTION);
            };
            if !self.load_pointers(domain, value, context.cr4) {
                return self.raise(Exception::GENERAL_PROTECTION);
            }
            let long = value & Cr0::PG.bits() != 0 && efer & Efer::LME.bits() != 0;
            let efer = if long { efer | Efer::LMA.bits() } else { efer & !Efer::LMA.bits() };
            self.hw.set_efer(efer);
            self.hw.set_cr0(value);
        }
        self.complete(next);
        Outcome::Resume
    }

    /// Loads the page-directory pointers where CR0 and CR4 are to become these and that loads them. `false`: they are bad,
    /// and nothing has changed.
    fn load_pointers<M: GuestMemory>(&mut self, domain: &Domain<M>, cr0: u64, cr4: u64) -> bool {
        let long = self.hw.efer() & Efer::LME.bits() != 0;
        let old = PagingControls { cr0: self.hw.cr0(), cr4: self.hw.cr4(), long };
        if !V::KEEPS_POINTERS || !old.loads_pointers(PagingControls { cr0, cr4, long }) {
            return true;
        }
        let mut table = [[0; 8]; 4];
        let at = Gpa::new(self.hw.cr3() & POINTER_TABLE);
        if domain.memory.read(at, table.as_flattened_mut()).is_err() {
            // Where there is no memory there are ones.
            table = [[0xff; 8]; 4];
        }
        let pointers = table.map(u64::from_le_bytes);
        let valid = domain.cpuid.limits().check_pointers(&pointers).is_ok();
        if valid {
            self.hw.set_page_directory_pointers(pointers);
        }
        valid
    }

    /// A write to CR8, which may let a waiting interrupt in.
    #[inline(never)]
    pub(super) fn write_cr8<M: GuestMemory>(&mut self, domain: &Domain<M>, gpr: Option<Gpr>) -> Outcome {
        let (access, next) = match self.control_access(domain, 8, gpr) {
            Ok(access) => access,
            Err(outcome) => return outcome,
        };
        if let Some(value) = access.new_cr8(&self.hw) {
            if value > 15 {
                return self.raise(Exception::GENERAL_PROTECTION);
            }
            self.hw.set_cr8(value as u8);
            self.attention = true;
        }
        self.complete(next);
        Outcome::Resume
    }

    /// XSETBV (SDM vol. 2): ring 0, register 0, and a value that the policy has.
    #[inline(never)]
    pub(super) fn xsetbv<M: GuestMemory>(&mut self, domain: &Domain<M>) -> Outcome {
        if self.hw.cr4() & Cr4::OSXSAVE.bits() == 0 {
            return self.raise(Exception::UNDEFINED);
        }
        let value = self.hw.gpr(Gpr::Rdx) << 32 | self.hw.gpr(Gpr::Rax) & 0xffff_ffff;
        let register = self.hw.gpr(Gpr::Rcx) as u32;
        if self.hw.cpl() != 0 || domain.cpuid.limits().check_xcr(register, value).is_err() {
            return self.raise(Exception::GENERAL_PROTECTION);
        }
        self.hw.set_xcr0(value);
        self.mirrored.xcr0 = value;
        self.skip(domain, Opcode::Xsetbv, Outcome::Resume)
    }
}
