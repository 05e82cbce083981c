//! Port accesses.

use caisson_devices::Effect;
use caisson_emulate::{Done, IoBus, MmioBus, Opcode, StepError, string_io};
use caisson_hwvirt::{Direction, IoExit, Vcpu};
use caisson_types::{Gpa, GuestMemory, Instant};
use caisson_x86::Gpr;

use crate::domain::{Domain, Host};
use crate::vcpu::{Ended, Outcome, VirtualCpu};

/// The first port that a real function can have: those of configuration space. Below are the chipset's.
const FIRST_FUNCTION_PORT: u16 = *caisson_pci::PORTS.start();

impl<V: Vcpu> VirtualCpu<V> {
    #[inline]
    pub(super) fn io<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        io: &IoExit,
    ) -> Outcome {
        if io.string {
            return self.string_io(domain, host, io);
        }
        if io.port >= FIRST_FUNCTION_PORT && domain.has_functions() && self.function_io(domain, host, io) {
            return match io.next_rip {
                Some(next) => {
                    self.complete(next);
                    Outcome::Resume
                }
                None => self.skip(domain, Opcode::PortIo, Outcome::Resume),
            };
        }
        // Read only where the port has to do with it.
        let now = || domain.clock.at(host.tsc());
        let rax = self.hw.gpr(Gpr::Rax);
        let mut chipset = domain.chipset();
        let effect = match io.direction {
            Direction::In => {
                let value = u64::from(chipset.port_read(io.port, io.size, now));
                self.hw.set_gpr(Gpr::Rax, merge(rax, value, io.size));
                Effect::None
            }
            Direction::Out => chipset.port_write(io.port, io.size, rax as u32, now),
        };
        if domain.is_unsettled(&chipset) {
            let wake = self.settle(domain, &mut chipset);
            if !wake.is_empty() {
                host.wake(wake);
            }
        }
        drop(chipset);
        if let Some(stop) = apply(effect, host) {
            return self.stop(stop);
        }
        match io.next_rip {
            Some(next) => {
                self.complete(next);
                Outcome::Resume
            }
            None => self.skip(domain, Opcode::PortIo, Outcome::Resume),
        }
    }

    #[cold]
    fn stop(&mut self, stop: Stop) -> Outcome {
        match stop {
            Stop::Full => Outcome::Yield,
            Stop::End(how) => self.end(how),
        }
    }

    /// An access to a port of a function that the domain owns. `false` where it is none.
    #[inline(never)]
    fn function_io<M>(&mut self, domain: &Domain<M>, host: &mut impl Host, io: &IoExit) -> bool {
        let (Some(mut bus), Some(hardware)) = (domain.functions(), host.hardware()) else { return false };
        let rax = self.hw.gpr(Gpr::Rax);
        match io.direction {
            Direction::In => match bus.read_port(hardware, io.port, io.size) {
                Some(value) => self.hw.set_gpr(Gpr::Rax, merge(rax, value.into(), io.size)),
                None => return false,
            },
            Direction::Out => {
                let written = bus.write_port(hardware, io.port, io.size, rax as u32);
                drop(bus);
                domain.drive_door(host);
                return written;
            }
        }
        true
    }

    #[inline(never)]
    fn string_io<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        io: &IoExit,
    ) -> Outcome {
        let now = domain.clock.at(host.tsc());
        let mut bus = Ports { domain, host, now, stop: None };
        let done = string_io(&mut self.hw, &domain.memory, &mut bus, io, &domain.paging);
        let stop = bus.stop;
        match done {
            Ok(Done::Completed) => {
                self.trap_if_stepping();
                Outcome::Resume
            }
            Ok(Done::Partial) => stop.map_or(Outcome::Resume, |stop| self.stop(stop)),
            Ok(Done::Retry) => {
                self.hw.flush_tlb();
                Outcome::Resume
            }
            Err(StepError::Exception(exception)) => self.raise(exception),
            Err(StepError::Unhandleable(_)) => self.raise(caisson_x86::Exception::UNDEFINED),
        }
    }
}

/// RAX after `size` bytes were read: a 32-bit result clears the upper half; smaller ones leave the rest alone.
#[inline]
fn merge(rax: u64, value: u64, size: u8) -> u64 {
    match size {
        1 => rax & !0xff | value & 0xff,
        2 => rax & !0xffff | value & 0xffff,
        _ => value,
    }
}

/// What stops an access with RIP still at the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    /// No room on the console: it is tried again later.
    Full,
    /// The guest's end.
    End(Ended),
}

/// Carries an effect out.
#[inline]
fn apply(effect: Effect, host: &mut impl Host) -> Option<Stop> {
    match effect {
        Effect::None => None,
        Effect::Console(byte) => (!host.console(byte)).then_some(Stop::Full),
        Effect::Reset => Some(Stop::End(Ended::Reset)),
        Effect::PowerOff => Some(Stop::End(Ended::PowerOff)),
    }
}

/// The ports as a string instruction reaches them.
struct Ports<'a, M, H> {
    domain: &'a Domain<M>,
    host: &'a mut H,
    now: Instant,
    /// Why an element was not taken.
    stop: Option<Stop>,
}

impl<M: GuestMemory, H: Host> IoBus for Ports<'_, M, H> {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        if let (Some(mut bus), Some(hardware)) = (self.domain.functions(), self.host.hardware())
            && let Some(value) = bus.read_port(hardware, port, size)
        {
            return value;
        }
        let mut chipset = self.domain.chipset();
        let value = chipset.port_read(port, size, self.now);
        let wake = self.domain.settle(&mut chipset);
        drop(chipset);
        self.host.wake(wake);
        value
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool {
        if let (Some(mut bus), Some(hardware)) = (self.domain.functions(), self.host.hardware())
            && bus.write_port(hardware, port, size, value)
        {
            drop(bus);
            self.domain.drive_door(self.host);
            return true;
        }
        let mut chipset = self.domain.chipset();
        let effect = chipset.port_write(port, size, value, self.now);
        let wake = self.domain.settle(&mut chipset);
        drop(chipset);
        self.host.wake(wake);
        // As with OUT: a full console has the rest of the string wait, and an end comes before the element's.
        self.stop = apply(effect, self.host);
        self.stop.is_none()
    }
}

impl<M, H> MmioBus for Ports<'_, M, H> {
    fn read(&mut self, _: Gpa, size: u8) -> u64 {
        // A string instruction between a port and a device in memory: nothing of ours answers there.
        u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
    }

    fn write(&mut self, _: Gpa, _: u8, _: u64) {}
}
