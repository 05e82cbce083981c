//! Where the time goes, shown to a person: the table on the console (`Ctrl-A t`), and a line at the end of a run.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use caisson_accounts::{Count, CpuTimes, VcpuAccount};
use caisson_console::{DomainSnapshot, Snapshot, VcpuSnapshot};
use caisson_hwvirt::{Backend, ExitClass};
use caisson_machine::{cpu, memory};
use caisson_stage2::Format;
use caisson_types::PAGE_SIZE;

use crate::console;
use crate::domains::Entry;
use crate::guests::Live;
use crate::scheduler::System;
use crate::trace::DomainName;

impl<B: Backend, F: Format> System<B, F> {
    /// Shows the table, once a second.
    pub(crate) fn show_table(&self) {
        let next = cpu::tsc() + self.clock.tsc_hz;
        console::show_table(next, || self.top.lock().table(self.snapshot()));
    }

    /// All accounts as they are now.
    fn snapshot(&self) -> Snapshot {
        let domain = |entry: Arc<Entry<B, F>>| {
            let live = entry.guest.lock().live.clone();
            let now = cpu::tsc();
            let vcpus = live.iter().flat_map(|live| live.tasks.iter());
            let vcpus = vcpus.filter_map(|task| VcpuSnapshot::of(&task.account, now)).collect();
            DomainSnapshot { id: entry.id, name: entry.name().to_string(), memory: entry.facts.memory, vcpus }
        };
        let domains = self.domains.iter().map(domain).collect();
        let now = cpu::tsc();
        Snapshot {
            now,
            tsc_hz: self.clock.tsc_hz,
            free_memory: memory::frames().free_frames() * PAGE_SIZE,
            cpus: self.cpus.iter().map(|cpu| cpu.account.times(now)).collect(),
            domains,
        }
    }

    /// Says what the CPUs spent their time on.
    pub(crate) fn say_cpu_times(&self) {
        let now = cpu::tsc();
        let all =
            self.cpus.iter().map(|cpu| cpu.account.times(now)).fold(CpuTimes::default(), |sum, times| {
                CpuTimes {
                    guests: sum.guests + times.guests,
                    hypervisor: sum.hypervisor + times.hypervisor,
                    idle: sum.idle + times.idle,
                }
            });
        let permille = |part: u64| u128::from(part) * 1000 / u128::from(all.elapsed().max(1));
        let [guests, hypervisor, idle] = [all.guests, all.hypervisor, all.idle].map(permille);
        log::info!(
            "the CPUs' time: guests {}.{}%, hypervisor {}.{}%, idle {}.{}%",
            guests / 10,
            guests % 10,
            hypervisor / 10,
            hypervisor % 10,
            idle / 10,
            idle % 10
        );
        let CpuTimes { guests, hypervisor, idle } = all;
        log::debug!("the CPUs' ticks: guests {guests}, hypervisor {hypervisor}, idle {idle}");
    }

    /// Says what a guest that has ended has exited for, the most frequent first, and the ticks that answering took.
    pub(crate) fn say_exits(&self, live: &Live<B, F>, name: &str) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let sum = |of: &dyn Fn(&VcpuAccount) -> Count| {
            live.tasks.iter().map(|task| of(&task.account)).fold(Count::default(), |sum, one| Count {
                count: sum.count + one.count,
                ticks: sum.ticks + one.ticks,
            })
        };
        let of = |class: ExitClass| (sum(&|account| account.exits(class)), class);
        let mut exits: Vec<_> = ExitClass::ALL.into_iter().map(of).collect();
        exits.retain(|(sum, _)| sum.count != 0);
        exits.sort_unstable_by_key(|(sum, _)| core::cmp::Reverse(sum.count));
        let turns = sum(&VcpuAccount::turns);
        let total = exits.iter().fold(Count { count: 0, ticks: turns.ticks }, |total, (one, _)| Count {
            count: total.count + one.count,
            ticks: total.ticks + one.ticks,
        });
        let (mut counts, mut ticks) = (String::new(), String::new());
        for (sum, class) in exits {
            // Writing into a string cannot fail.
            let _ = write!(counts, ", {class} {}", sum.count);
            let _ = write!(ticks, ", {class} {}", sum.ticks);
        }
        log::debug!("guest {name}: {} exits{counts}", total.count);
        log::debug!("guest {name}: {} ticks, turns {}{ticks}", total.ticks, turns.ticks);
    }

    /// The guests by name, for the trace.
    pub(crate) fn names(&self) -> Vec<DomainName> {
        let name = |entry: Arc<Entry<B, F>>| DomainName {
            id: entry.id,
            vcpus: entry.facts.vcpus as u16,
            name: entry.name().to_string(),
        };
        self.domains.iter().map(name).collect()
    }
}
