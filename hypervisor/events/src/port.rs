//! One port: a word of state and the name of what it is connected to.
//!
//! The state word has, from the low end, how many *pins* are on the port (16 bits), its kind (8 bits) and the serial number
//! of its life (40 bits). The other word is written only before the port is connected, by whoever is about to connect it.
//!
//! A sender pins the port that it delivers to, and then looks whether it is what the sender believes: so long as it is
//! pinned, its life does not end. Who ends it first changes its kind, so that new pins are refused, and then waits for
//! those there are, which are held for a few instructions. A pin that comes too late, on another life of the port, changes
//! the count of pins and nothing else: every change of the kind keeps the count.

use crate::name::{Name, SERIAL_MASK};
use crate::sync::{AtomicU64, Ordering, spin_loop};

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// In nobody's use.
    Free = 0,
    /// Offered to the domain whose life the other word names.
    Unbound = 1,
    /// Offered; the one who binds to it is writing his name.
    Claimed = 2,
    /// Being bound to a port by its own domain, which does not know it yet. The peer may send to it already.
    Binding = 3,
    /// Connected to the port that the other word names.
    Bound = 4,
    /// Connected to the source of Caisson's that the other word has.
    Source = 5,
    /// Its peer is gone.
    PeerClosed = 6,
    /// Its life is ending.
    Closing = 7,
}

impl Kind {
    const fn of(bits: u8) -> Self {
        match bits {
            0 => Self::Free,
            1 => Self::Unbound,
            2 => Self::Claimed,
            3 => Self::Binding,
            4 => Self::Bound,
            5 => Self::Source,
            6 => Self::PeerClosed,
            _ => Self::Closing,
        }
    }
}

/// A state word's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(u64);

const PIN: u64 = 1;
const PINS: u64 = 0xffff;
const KIND_SHIFT: u32 = 16;
const SERIAL_SHIFT: u32 = 24;

impl State {
    pub(crate) const fn kind(self) -> Kind {
        Kind::of((self.0 >> KIND_SHIFT) as u8)
    }

    pub(crate) const fn serial(self) -> u64 {
        self.0 >> SERIAL_SHIFT
    }

    const fn pins(self) -> u64 {
        self.0 & PINS
    }

    /// Of another kind, in the same life.
    const fn become_kind(self, kind: Kind) -> Self {
        Self(self.0 & !(0xff << KIND_SHIFT) | (kind as u64) << KIND_SHIFT)
    }

    /// In another life.
    const fn in_life(self, kind: Kind, serial: u64) -> Self {
        Self(self.pins() | (kind as u64) << KIND_SHIFT | (serial & SERIAL_MASK) << SERIAL_SHIFT)
    }
}

/// A port.
#[derive(Debug)]
pub(crate) struct Port {
    state: AtomicU64,
    other: AtomicU64,
}

/// Keeps a port's life from ending.
#[must_use]
pub(crate) struct Pin<'a> {
    port: &'a Port,
    kind: Kind,
}

impl Pin<'_> {
    /// What the port was when it was pinned.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.port.state.fetch_sub(PIN, Ordering::Release);
    }
}

impl Port {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU64::new(0), other: AtomicU64::new(0) }
    }

    /// Its state as it is now.
    #[inline]
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// The other word as it is now.
    #[inline]
    pub(crate) fn other(&self) -> u64 {
        self.other.load(Ordering::Acquire)
    }

    /// Its state, and the other word if both were true at one time: else the state has just become what it is.
    #[inline]
    pub(crate) fn read(&self) -> (State, Option<u64>) {
        let before = self.state();
        let other = self.other();
        let after = self.state();
        // Within a life no kind comes twice.
        let same = before.kind() == after.kind() && before.serial() == after.serial();
        (after, same.then_some(other))
    }

    /// Changes the state in one step, if `step` has a new one for it: the old one, or what was not to be changed.
    fn change(&self, step: impl Fn(State) -> Option<State>) -> Result<State, State> {
        let step = |bits| step(State(bits)).map(|state| state.0);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).map(State).map_err(State)
    }

    /// Begins a life, for the one who has taken the port from the free ones.
    pub(crate) fn open(&self, kind: Kind, serial: u64, other: u64) {
        self.other.store(other, Ordering::Release);
        let _ = self.change(|state| Some(state.in_life(kind, serial)));
    }

    /// Pins the port, if it is in the life that `serial` says. Whether it is of the right kind, the caller looks then.
    #[inline]
    pub(crate) fn pin(&self, serial: u64) -> Option<Pin<'_>> {
        // Who comes for a life that is over leaves the word alone: nobody is kept waiting without end.
        let alive =
            |state: State| state.serial() == serial && !matches!(state.kind(), Kind::Free | Kind::Closing);
        if !alive(self.state()) {
            return None;
        }
        let state = State(self.state.fetch_add(PIN, Ordering::AcqRel));
        let pin = Pin { port: self, kind: state.kind() };
        alive(state).then_some(pin)
    }

    /// Takes the offer of the port, which is in the life that `serial` says, for the one whose name is `binder`: false if
    /// it is no offer any more. Its domain does not have it closed in between: it waits for the pin.
    pub(crate) fn claim(&self, serial: u64, binder: Name) -> bool {
        let claimed = self.change(|state| {
            let offered = state.kind() == Kind::Unbound && state.serial() == serial;
            offered.then(|| State(state.become_kind(Kind::Claimed).0 + PIN))
        });
        if claimed.is_err() {
            return false;
        }
        let pin = Pin { port: self, kind: Kind::Claimed };
        self.other.store(binder.to_bits(), Ordering::Release);
        let bound = self.turn(serial, Kind::Claimed, Kind::Bound);
        drop(pin);
        bound
    }

    /// From one kind to another, in the life that `serial` says. Whether it was of that kind.
    pub(crate) fn turn(&self, serial: u64, from: Kind, to: Kind) -> bool {
        let step =
            |state: State| (state.kind() == from && state.serial() == serial).then(|| state.become_kind(to));
        self.change(step).is_ok()
    }

    /// Its peer goes. The port, pinned, for who has changed it: exactly one does.
    pub(crate) fn lose_peer(&self, serial: u64) -> Option<Pin<'_>> {
        let changed = self.change(|state| {
            let connected = matches!(state.kind(), Kind::Bound | Kind::Binding) && state.serial() == serial;
            connected.then(|| State(state.become_kind(Kind::PeerClosed).0 + PIN))
        });
        changed.is_ok().then(|| Pin { port: self, kind: Kind::PeerClosed })
    }

    /// Begins the end of its life, for the domain that knows the port. What it was; `None` where there is nothing to end.
    pub(crate) fn begin_close(&self) -> Option<State> {
        let changed = self.change(|state| match state.kind() {
            Kind::Free | Kind::Binding | Kind::Closing => None,
            Kind::Unbound | Kind::Claimed | Kind::Bound | Kind::Source | Kind::PeerClosed => {
                Some(state.become_kind(Kind::Closing))
            }
        });
        changed.ok()
    }

    /// Gives up a port that was being bound and that nobody can have sent to. Whether its life is now ending by this.
    pub(crate) fn abandon(&self, serial: u64) -> bool {
        self.turn(serial, Kind::Binding, Kind::Closing)
    }

    /// Waits until nobody pins it. It is [`Kind::Closing`], and nobody who looks at its peer's port finds it bound to this.
    pub(crate) fn drain(&self) {
        while self.state().pins() != 0 {
            spin_loop();
        }
    }

    /// Ends its life.
    pub(crate) fn finish(&self) {
        self.other.store(0, Ordering::Release);
        let _ = self.change(|state| Some(state.in_life(Kind::Free, 0)));
    }
}
