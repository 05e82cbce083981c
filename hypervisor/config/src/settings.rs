//! The choices that a configuration makes, each with its word in the TOML text and its code in the blob.

use core::fmt;

/// An enum whose variants have a code in the blob and a word in the TOML text.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $word:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// The words of all choices, as the TOML text spells them.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The choice's code in the blob.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The choice with the given code, if there is one.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The choice's word in the TOML text.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The choice that the TOML text spells `word`, if there is one.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

choice! {
    /// By which protocol a domain's kernel is loaded and entered.
    LoaderKind {
        /// By what the image itself announces.
        Auto = 0, "auto";
        /// The Linux/x86 boot protocol.
        Linux = 1, "linux";
        /// The Xen PVH entry of an ELF image.
        Pvh = 2, "pvh";
        /// Multiboot version 1 (0.6.96).
        Multiboot1 = 3, "multiboot1";
    }
}

choice! {
    /// What a device is that another domain serves. The code is the virtio device type (VIRTIO 1.2, section 5), the word
    /// the table of the TOML text that describes it.
    DeviceKind {
        /// A network card.
        Network = 1, "network";
        /// A disk.
        Disk = 2, "disk";
        /// A console port.
        Port = 3, "port";
        /// A source of random numbers.
        Entropy = 4, "entropy";
        /// A directory.
        Share = 26, "share";
    }
}

choice! {
    /// How the bytes of a disk are kept in its file.
    DiskFormat {
        /// As they are.
        Raw = 0, "raw";
        /// QEMU's format, which grows with what is written.
        Qcow2 = 1, "qcow2";
    }
}

choice! {
    /// Where a domain's first serial port leads.
    Console {
        /// Nowhere: what the guest writes is dropped.
        None = 0, "none";
        /// To the machine's serial line.
        Serial = 1, "serial";
    }
}

choice! {
    /// What becomes of a domain that has ended by itself.
    OnExitAction {
        /// It is taken apart and its memory and CPU time return to the machine.
        Destroy = 0, "destroy";
        /// It starts anew from its kernel and modules.
        Restart = 1, "restart";
    }
}

choice! {
    /// The least important messages that Caisson logs.
    LogLevel {
        /// No messages at all.
        Off = 0, "off";
        /// What failed.
        Error = 1, "error";
        /// What may surprise.
        Warn = 2, "warn";
        /// What a person at the console wants to know.
        Info = 3, "info";
        /// What helps to find a fault.
        Debug = 4, "debug";
        /// Everything.
        Trace = 5, "trace";
    }
}

choice! {
    /// How the CPUs of a pool are shared out.
    PoolPolicy {
        /// Borrowed virtual time: by weight.
        Bvt = 0, "bvt";
        /// Simple earliest deadline first: by reservations, and what they leave by weight.
        Sedf = 1, "sedf";
    }
}

/// What a configuration is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Purpose {
    /// A machine starts with it: it describes everything.
    Machine,
    /// Domains are made of it while the machine runs. Their pools are the machine's, which has them by these names, and so are the
    /// domains that serve their devices where the text describes none of that name; the machine's settings stay as they are.
    Later,
}

/// What a domain's vCPUs get of their pool's CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Contract {
    /// The share of each vCPU, in relation to those of other domains: 1 to [`MAX_WEIGHT`](crate::MAX_WEIGHT).
    pub weight: u32,
    /// The most that all vCPUs use together, in percent of one CPU; `None`: no limit.
    pub cap: Option<u32>,
    /// How far a vCPU goes ahead of its turn when it wakes, in microseconds of a vCPU of the usual weight.
    pub warp: u32,
    /// For how long it may in every [`WARP_PERIOD`](crate::WARP_PERIOD), in microseconds.
    pub warp_limit: u32,
    /// What each vCPU reserves, under [`PoolPolicy::Sedf`].
    pub reservation: Option<ReservedTime>,
}

/// So much of a CPU in every period.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReservedTime {
    /// Microseconds.
    pub period: u32,
    /// Microseconds, up to the period.
    pub slice: u32,
    /// Whether it takes part in what the reservations leave.
    pub extra: bool,
}

impl Contract {
    /// What a domain gets for which nothing else is said.
    pub const USUAL: Self =
        Self { weight: caisson_sched::DEFAULT_WEIGHT, cap: None, warp: 0, warp_limit: 0, reservation: None };
}

/// What becomes of a domain, by the cause of its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OnExit {
    /// When the guest powered itself off.
    pub poweroff: OnExitAction,
    /// When the guest asked for a reset.
    pub reboot: OnExitAction,
    /// When the guest could not go on: a triple fault, or something that Caisson had to end it for.
    pub crash: OnExitAction,
}

impl Default for OnExit {
    /// As a machine on a desk behaves: off stays off, a reboot reboots; a crash is left for a person to look at.
    fn default() -> Self {
        Self { poweroff: OnExitAction::Destroy, reboot: OnExitAction::Restart, crash: OnExitAction::Destroy }
    }
}

/// Whose console the machine's serial line shows after boot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SelectedConsole {
    /// All of them, line by line, each line with its domain's name.
    All,
    /// Caisson's own log.
    Log,
    /// That of the domain with this index in the blob; it has a serial console.
    Domain(usize),
}

impl SelectedConsole {
    /// [`SelectedConsole::All`] in the TOML text.
    pub const ALL_WORD: &'static str = "all";
    /// [`SelectedConsole::Log`] in the TOML text.
    pub const LOG_WORD: &'static str = "caisson";
}

/// Settings of the whole machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MachineSettings {
    /// Whose console is shown after boot.
    pub console: SelectedConsole,
    /// The least important messages that are logged.
    pub log_level: LogLevel,
}
