//! Task switches by hardware, where the CPU leaves them to software.

use caisson_emulate::{Opcode, TaskError, TaskRequest, instruction_end, switch_task};
use caisson_hwvirt::{Event, TaskSwitch, TaskSwitchSource, Vcpu};
use caisson_types::GuestMemory;
use caisson_x86::{Exception, ExceptionKind};

use crate::domain::Domain;
use crate::vcpu::{Outcome, VirtualCpu};

/// DR6.BT: the new task's TSS has its T flag set.
const DR6_TASK: u64 = 1 << 15;

impl<V: Vcpu> VirtualCpu<V> {
    /// Switches tasks, and delivers with it the event that took a task gate. A fault on the way is the old task's, with
    /// the event still to be delivered, or the new one's, by whose start the event has been.
    #[inline(never)]
    pub(super) fn task_switch<M: GuestMemory>(&mut self, domain: &Domain<M>, switch: TaskSwitch) -> Outcome {
        // What INTn, INT3 or INTO raised is the instruction's own.
        let event = self
            .interrupted
            .take()
            .filter(|event| matches!(event, Event::Interrupt(_) | Event::Nmi | Event::Exception(_)));
        let return_rip = match (event, switch.next_rip) {
            (Some(_), _) => self.hw.rip(),
            (None, Some(next)) => next,
            (None, None) => match instruction_end(&self.hw, &domain.memory, Opcode::Any) {
                Ok(next) => next,
                Err(_) => {
                    // The code has changed since the exit: the guest executes what is there now.
                    self.hw.flush_tlb();
                    return Outcome::Resume;
                }
            },
        };
        let error_code = match event {
            Some(Event::Exception(raised)) if raised.kind.has_error_code() => Some(raised.error_code),
            _ => None,
        };
        let request = TaskRequest {
            selector: switch.selector,
            source: switch.source,
            return_rip,
            error_code,
            external: event.is_some(),
        };
        self.attention = true;
        let result = switch_task(&mut self.hw, &domain.memory, &request, &domain.paging);
        match result {
            Err(TaskError::Retry) => {
                self.interrupted = event;
                Outcome::Resume
            }
            Err(TaskError::Before(exception)) => {
                self.interrupted = event;
                self.raise(exception)
            }
            Ok(false) => {
                self.mask_nmis(event, switch.source);
                Outcome::Resume
            }
            Ok(true) => {
                self.mask_nmis(event, switch.source);
                self.hw.set_dr6(self.hw.dr6() | DR6_TASK);
                self.raise(Exception::plain(ExceptionKind::Debug))
            }
            Err(TaskError::After(exception)) => {
                self.mask_nmis(event, switch.source);
                // An exception whose handler faults at its start counts towards a double fault; an interrupt has arrived.
                self.interrupted = event.filter(|event| matches!(event, Event::Exception(_)));
                self.raise(exception)
            }
        }
    }

    /// A task that handles an NMI blocks further ones until its IRET.
    fn mask_nmis(&mut self, event: Option<Event>, source: TaskSwitchSource) {
        if event == Some(Event::Nmi) {
            self.hw.set_nmi_blocked(true);
        } else if source == TaskSwitchSource::Return {
            self.hw.set_nmi_blocked(false);
        }
    }
}
