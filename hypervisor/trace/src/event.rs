//! One event: what it says, and how it lies in two words.

use caisson_hwvirt::ExitClass;
use caisson_types::{DomainId, VcpuId};

/// Bits of an event's time. At 4 GHz they last 208 days.
pub const TIME_BITS: u32 = 56;
pub(crate) const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// No vCPU: the event is the CPU's own. Domains are counted from 1.
pub const NOBODY: VcpuId = VcpuId { domain: DomainId(0), index: 0 };

/// Ticks that an exit's argument has room for.
const MAX_EXIT_TICKS: u32 = (1 << 24) - 1;

/// Why a vCPU lost its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Why {
    /// It waits for an interrupt.
    Blocked = 0,
    /// Its turn was over, or another's began.
    Preempted = 1,
    /// It gave way by itself: it paused, or asked for it.
    Yielded = 2,
    /// The CPU had work of its own.
    HostWork = 3,
    /// Its guest ended.
    Ended = 4,
}

impl Why {
    const ALL: [Self; 5] = [Self::Blocked, Self::Preempted, Self::Yielded, Self::HostWork, Self::Ended];

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Preempted => "preempted",
            Self::Yielded => "yielded",
            Self::HostWork => "host work",
            Self::Ended => "ended",
        }
    }
}

/// What happened. The vCPU is the event's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Kind 1: the CPU takes the vCPU up.
    Run,
    /// Kind 2: the CPU puts the vCPU down; the argument is why.
    Stop(Why),
    /// Kind 3: the answer to an exit is complete: the guest is entered next, or loses its CPU.
    Exit {
        /// The exit's class: an index into the dump's table of names.
        class: u8,
        /// Ticks since the exit, at most 2^24 - 1: that many or more.
        ticks: u32,
    },
    /// Kind 4: an event goes into the guest with the next entry.
    Inject {
        /// Its vector.
        vector: u8,
    },
    /// Kind 5: another vCPU of the domain sends it an interrupt.
    Ipi {
        /// Its vector.
        vector: u8,
        /// Index of the sender.
        from: u16,
    },
    /// Kind 6: a timer was due: the vCPU's, or the CPU's own.
    Timer {
        /// Ticks after its time.
        late: u32,
    },
    /// Kind 7: a hypercall.
    Hypercall {
        /// The low half of its number.
        number: u32,
    },
    /// Kind 8: the vCPU has something to do, and waits for a CPU.
    Wake,
    /// Kind 9: the CPU has nothing to do and goes to sleep.
    Idle,
    /// Kind 10: the CPU is awake again.
    Awake,
    /// Kind 11: the CPU interrupts another physical one.
    Kick {
        /// Its index.
        cpu: u32,
    },
}

impl What {
    /// Its kind and argument.
    #[inline]
    pub(crate) const fn pack(self) -> (u8, u32) {
        match self {
            Self::Run => (1, 0),
            Self::Stop(why) => (2, why as u32),
            Self::Exit { class, ticks } => {
                let ticks = if ticks < MAX_EXIT_TICKS { ticks } else { MAX_EXIT_TICKS };
                (3, class as u32 | ticks << 8)
            }
            Self::Inject { vector } => (4, vector as u32),
            Self::Ipi { vector, from } => (5, vector as u32 | (from as u32) << 16),
            Self::Timer { late } => (6, late),
            Self::Hypercall { number } => (7, number),
            Self::Wake => (8, 0),
            Self::Idle => (9, 0),
            Self::Awake => (10, 0),
            Self::Kick { cpu } => (11, cpu),
        }
    }

    /// The event of a kind and argument; `None` where there is none.
    pub(crate) fn unpack(kind: u8, argument: u32) -> Option<Self> {
        let vector = |bits: u32| u8::try_from(bits).ok();
        Some(match kind {
            1 if argument == 0 => Self::Run,
            2 => Self::Stop(*Why::ALL.get(argument as usize)?),
            3 => Self::Exit { class: argument as u8, ticks: argument >> 8 },
            4 => Self::Inject { vector: vector(argument)? },
            5 => Self::Ipi { vector: vector(argument & 0xffff)?, from: (argument >> 16) as u16 },
            6 => Self::Timer { late: argument },
            7 => Self::Hypercall { number: argument },
            8 if argument == 0 => Self::Wake,
            9 if argument == 0 => Self::Idle,
            10 if argument == 0 => Self::Awake,
            11 => Self::Kick { cpu: argument },
            _ => return None,
        })
    }

    /// Whether events of `kind` have an argument.
    pub(crate) const fn has_argument(kind: u8) -> bool {
        !matches!(kind, 1 | 8 | 9 | 10)
    }
}

/// An event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, in ticks modulo 2^56.
    pub time: u64,
    /// Whose it is, or [`NOBODY`].
    pub vcpu: VcpuId,
    /// What happened.
    pub what: What,
}

impl Event {
    /// The answer to an exit is complete at `now`, `ticks` after it.
    #[inline]
    #[must_use]
    pub const fn exit(now: u64, vcpu: VcpuId, class: ExitClass, ticks: u64) -> Self {
        let ticks = if ticks < MAX_EXIT_TICKS as u64 { ticks as u32 } else { MAX_EXIT_TICKS };
        Self { time: now, vcpu, what: What::Exit { class: class.index() as u8, ticks } }
    }

    /// The event in two words: time 63:8 and kind 7:0; argument 63:32, vCPU's index 31:16, domain 15:0.
    #[inline]
    pub(crate) const fn pack(self) -> [u64; 2] {
        let (kind, argument) = self.what.pack();
        let vcpu = self.vcpu.domain.0 as u64 | (self.vcpu.index as u64) << 16;
        [self.time << 8 | kind as u64, vcpu | (argument as u64) << 32]
    }

    /// The event of two words; `None` where they are none.
    pub(crate) fn unpack([first, second]: [u64; 2]) -> Option<Self> {
        let vcpu = VcpuId { domain: DomainId(second as u16), index: (second >> 16) as u16 };
        let what = What::unpack(first as u8, (second >> 32) as u32)?;
        Some(Self { time: first >> 8, vcpu, what })
    }
}
