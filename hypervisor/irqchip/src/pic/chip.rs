//! One 8259A.

/// Where the initialisation sequence stands: which ICW the next write to the odd port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Init {
    /// Never initialised: no output.
    None,
    Icw2,
    Icw3,
    Icw4,
    Done,
}

/// What a read of the even port gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Select {
    Irr,
    Isr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chip {
    /// Lines that are high.
    lines: u8,
    /// Edges not acknowledged yet. Level-triggered lines request as long as they are high.
    edges: u8,
    /// The input where a second chip's output is, as a bit, or 0; and its request.
    cascade: u8,
    cascade_requests: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    elcr_writable: u8,
    init: Init,
    needs_icw3: bool,
    needs_icw4: bool,
    /// ICW2 bits 7:3.
    base: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    poll: bool,
    select: Select,
    /// The input of the highest priority.
    first: u8,
}

impl Chip {
    /// A chip whose inputs `elcr_writable` can be made level-triggered, with a second chip at `cascade` (a bit, or 0).
    pub(super) const fn new(elcr_writable: u8, cascade: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            cascade,
            cascade_requests: 0,
            imr: 0xff,
            isr: 0,
            elcr: 0,
            elcr_writable,
            init: Init::None,
            needs_icw3: false,
            needs_icw4: false,
            base: 0,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            poll: false,
            select: Select::Irr,
            first: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.elcr_writable, self.cascade) };
    }

    // ---- requests

    pub(super) fn set_line(&mut self, ir: u8, high: bool) {
        let bit = 1 << (ir & 7);
        if !high {
            self.lines &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.edges |= bit & !self.elcr;
        }
    }

    /// The second chip's output, which requests as long as it is high.
    #[inline]
    pub(super) fn set_cascade(&mut self, high: bool) {
        self.cascade_requests = if high { self.cascade } else { 0 };
    }

    #[inline]
    fn irr(&self) -> u8 {
        self.edges | self.lines & self.elcr | self.cascade_requests
    }

    /// Inputs from the highest priority down: bit n of the answer is input `first + n`.
    #[inline]
    fn by_priority(&self, inputs: u8) -> u8 {
        inputs.rotate_right(u32::from(self.first))
    }

    /// The input that may interrupt now: requested, not masked, of higher priority than what is in service.
    #[inline]
    fn candidate(&self) -> Option<u8> {
        let requests = self.by_priority(self.irr() & !self.imr);
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.special_fully_nested {
            // The second chip has put its own requests in order.
            blocking &= !self.cascade;
        }
        let best = requests.trailing_zeros();
        if best >= 8 || best >= self.by_priority(blocking).trailing_zeros() {
            return None;
        }
        Some((best as u8 + self.first) & 7)
    }

    #[inline]
    pub(super) fn output(&self) -> bool {
        self.init == Init::Done && self.candidate().is_some()
    }

    /// Takes the candidate into service.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let ir = self.candidate()?;
        let bit = 1 << ir;
        self.edges &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.first = (ir + 1) & 7;
        }
        Some(ir)
    }

    pub(super) const fn vector(&self, ir: u8) -> u8 {
        self.base | ir & 7
    }

    // ---- registers

    pub(super) const fn elcr(&self) -> u8 {
        self.elcr
    }

    /// Inputs that become level-triggered forget their edges.
    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_writable;
        self.edges &= !self.elcr;
    }

    pub(super) fn read(&mut self, odd: bool) -> u8 {
        if core::mem::replace(&mut self.poll, false) {
            return self.acknowledge().map_or(0, |ir| 0x80 | ir);
        }
        match (odd, self.select) {
            (true, _) => self.imr,
            (false, Select::Irr) => self.irr(),
            (false, Select::Isr) => self.isr,
        }
    }

    pub(super) fn write(&mut self, odd: bool, value: u8) {
        match (odd, self.init) {
            (false, _) if value & 0x10 != 0 => self.icw1(value),
            (false, _) if value & 0x08 != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, Init::Icw2) => {
                self.base = value & 0xf8;
                self.init = if self.needs_icw3 { Init::Icw3 } else { self.after_icw3() };
            }
            // Who is cascaded with whom is wired: ICW3 is taken as right.
            (true, Init::Icw3) => self.init = self.after_icw3(),
            (true, Init::Icw4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
            (true, Init::None | Init::Done) => self.imr = value,
        }
    }

    const fn after_icw3(&self) -> Init {
        if self.needs_icw4 { Init::Icw4 } else { Init::Done }
    }

    /// "Initialization Command Words 1 and 2": what ICW1 resets.
    fn icw1(&mut self, value: u8) {
        self.edges = 0;
        self.imr = 0;
        self.isr = 0;
        self.first = 0;
        self.special_mask = false;
        self.poll = false;
        self.select = Select::Irr;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.special_fully_nested = false;
        self.needs_icw3 = value & 0x02 == 0;
        self.needs_icw4 = value & 0x01 != 0;
        self.init = Init::Icw2;
    }

    /// "Operation Control Word 2": end of interrupt and rotation.
    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.first = (ended + 1) & 7;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.first = (level + 1) & 7;
            }
            0b110 => self.first = (level + 1) & 7,
            // No operation.
            _ => {}
        }
    }

    /// The non-specific EOI: ends the service of the highest priority; in special mask mode, of the highest one that is
    /// not masked.
    fn end_highest(&mut self) -> Option<u8> {
        let eligible = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let best = self.by_priority(eligible).trailing_zeros();
        if best >= 8 {
            return None;
        }
        let ir = (best as u8 + self.first) & 7;
        self.isr &= !(1 << ir);
        Some(ir)
    }

    /// "Operation Control Word 3": special mask mode, poll, register to read.
    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        match value & 3 {
            2 => self.select = Select::Irr,
            3 => self.select = Select::Isr,
            _ => {}
        }
    }
}
