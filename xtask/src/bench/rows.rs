//! The rows of the benchmark program: what each means and does not mean, how its figure is made of what was measured, and the
//! goal.

use std::collections::BTreeMap;

/// What is compared, in the tables' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// No hypervisor.
    None,
    /// KVM in Linux, with QEMU.
    Kvm,
    /// Xen, with Linux as its first domain.
    Xen,
    /// Ours.
    Caisson,
}

impl Side {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Kvm, Self::Xen, Self::Caisson];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kvm => "KVM",
            Self::Xen => "Xen",
            Self::Caisson => "Caisson",
        }
    }
}

/// Medians by the names in the program's lines; [`START`] is among them.
pub(super) type Medians = BTreeMap<String, u64>;

/// From a domain's start, or a VMM's, to the first step of init.
pub(super) const START: &str = "start";

/// Exits in ten seconds in which the guest does nothing.
pub(super) const IDLE: &str = "idle";

/// How a row's figure is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// The median.
    Median,
    /// The median, less that of another row in the same guest.
    Over(&'static str),
    /// The median, less that without a hypervisor.
    OverNone,
    /// How often the median is that without a hypervisor, in hundred-thousandths.
    TimesNone,
    /// How often it is KVM's, in hundred-thousandths.
    TimesKvm,
    /// The median, a number of exits for each ten of what is counted.
    Exits,
}

/// The unit of ratios.
pub(super) const ONE: u64 = 100_000;

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) figure: Figure,
    /// The most that Caisson's figure may be.
    pub(super) goal: u64,
    pub(super) means: &'static str,
}

pub(super) const ROWS: [Row; 12] = [
    Row {
        name: "cpuid",
        title: "CPUID",
        figure: Figure::Median,
        goal: 300,
        means: "the least exit; without NRIP save, as here, with the instruction's length decoded, which real CPUs spare",
    },
    Row {
        name: "hypercall",
        title: "VMMCALL in ring 3, refused",
        figure: Figure::Median,
        goal: 300,
        means: "how soon a hypervisor is done with a program's nonsense; no call that does anything",
    },
    Row {
        name: "port",
        title: "IN from the 8259",
        figure: Figure::Median,
        goal: 350,
        means: "a device inside the hypervisor; a PVH guest of Xen's has none, which answers for an empty port",
    },
    Row {
        name: "msr",
        title: "RDMSR of APIC_BASE",
        figure: Figure::Over("msr-passed"),
        goal: 350,
        means: "over the same system call for an MSR that does not exit",
    },
    Row {
        name: "sleep",
        title: "sleep of 1 ms, too late by",
        figure: Figure::OverNone,
        goal: 1500,
        means: "over that without a hypervisor: timer armed, HLT, wake-up, interrupt; a halted CPU's way back takes no instructions",
    },
    Row {
        name: "pipe",
        title: "pipe round trip",
        figure: Figure::TimesNone,
        goal: ONE + 500,
        means: "two switches of processes: hardly an exit, so that it shows only what is lost beside them",
    },
    Row {
        name: "fork-exec",
        title: "500 × fork and exec",
        figure: Figure::TimesNone,
        goal: ONE + 2000,
        means: "mostly CPUID: a static C library executes it some 36 times before main",
    },
    Row {
        name: "fresh-memory",
        title: "dd to fresh memory",
        figure: Figure::TimesNone,
        goal: ONE + 1000,
        means: "whether memory is there when the guest first touches it, or only then fetched; not what a miss of the TLB takes, which stage 2 makes longer",
    },
    Row {
        name: "sha256",
        title: "sha256",
        figure: Figure::TimesNone,
        goal: ONE + 50,
        means: "computing: what timer ticks cost; neither caches nor TLB show",
    },
    Row {
        name: "gzip",
        title: "gzip",
        figure: Figure::TimesNone,
        goal: ONE + 50,
        means: "the same with more memory",
    },
    Row {
        name: START,
        title: "start to init",
        figure: Figure::TimesKvm,
        goal: ONE * 95 / 100,
        means: "from a domain's start, or a VMM's, to init's first step; without a hypervisor from power-on, with the firmware and the search of PCI buses",
    },
    Row {
        name: IDLE,
        title: "exits in an idle second",
        figure: Figure::Exits,
        goal: 50,
        means: "how often a tickless Linux that does nothing leaves: its own timers, each with a HLT and the WRMSRs that arm the next; nobody counts Xen's",
    },
];

fn times(value: u64, of: u64) -> Option<u64> {
    let ratio = u128::from(value) * u128::from(ONE) / u128::from(of).max(1);
    u64::try_from(ratio).ok().filter(|_| of > 0)
}

impl Row {
    /// The row's figure for a side, out of all that was measured.
    pub(super) fn of(&self, side: Side, measured: &dyn Fn(Side) -> Option<Medians>) -> Option<u64> {
        let median = |side: Side, name: &str| measured(side)?.get(name).copied();
        let own = median(side, self.name)?;
        match self.figure {
            Figure::Median | Figure::Exits => Some(own),
            Figure::Over(other) => Some(own.saturating_sub(median(side, other)?)),
            Figure::OverNone => Some(own.saturating_sub(median(Side::None, self.name)?)),
            Figure::TimesNone => times(own, median(Side::None, self.name)?),
            Figure::TimesKvm => times(own, median(Side::Kvm, self.name)?),
        }
    }

    /// What its figures count.
    pub(super) fn unit(&self) -> &'static str {
        match self.figure {
            Figure::TimesNone | Figure::TimesKvm => "hundred-thousandths",
            Figure::Exits => "tenths",
            Figure::Median | Figure::Over(_) | Figure::OverNone => "instructions",
        }
    }

    /// Whether it is measured on a side.
    pub(super) fn is_of(&self, side: Side) -> bool {
        match self.name {
            "hypercall" => side != Side::None,
            IDLE => matches!(side, Side::Kvm | Side::Caisson),
            _ => true,
        }
    }

    /// A figure of its for a person.
    pub(super) fn shown(&self, figure: u64) -> String {
        match self.figure {
            Figure::TimesNone | Figure::TimesKvm => format!("{}.{:05}", figure / ONE, figure % ONE),
            Figure::Exits => format!("{}.{}", figure / 10, figure % 10),
            Figure::Median | Figure::Over(_) | Figure::OverNone => super::grouped(figure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        *ROWS.iter().find(|row| row.name == name).unwrap()
    }

    fn measured(side: Side) -> Option<Medians> {
        let medians: &[(&str, u64)] = match side {
            Side::None => &[("cpuid", 7), ("sleep", 4000), ("pipe", 2000), (START, 500)],
            Side::Kvm => &[("cpuid", 3000), ("sleep", 14_000), ("pipe", 2100), (START, 400)],
            Side::Xen => return None,
            Side::Caisson => &[
                ("cpuid", 300),
                ("sleep", 5000),
                ("pipe", 2001),
                (START, 300),
                ("msr", 900),
                ("msr-passed", 600),
            ],
        };
        Some(medians.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect())
    }

    #[test]
    fn figures_are_made_of_medians() {
        let of = |name: &str, side| row(name).of(side, &measured);
        assert_eq!(of("cpuid", Side::Caisson), Some(300));
        assert_eq!(of("msr", Side::Caisson), Some(300));
        assert_eq!(of("msr", Side::Kvm), None);
        assert_eq!(of("sleep", Side::Kvm), Some(10_000));
        assert_eq!(of("pipe", Side::Caisson), Some(100_050));
        assert_eq!(of(START, Side::Caisson), Some(75_000));
        assert_eq!(of("cpuid", Side::Xen), None);
        assert_eq!(times(1, 0), None);
    }

    #[test]
    fn figures_are_shown_as_what_they_are() {
        assert_eq!(row("pipe").shown(100_050), "1.00050");
        assert_eq!(row("cpuid").shown(3207), "3,207");
        assert_eq!((row(IDLE).shown(209).as_str(), row(IDLE).unit()), ("20.9", "tenths"));
        assert!(row(IDLE).is_of(Side::Kvm) && !row(IDLE).is_of(Side::Xen));
    }
}
