//! What an end does to the machine.

use caisson_served::LetGo;

use super::parts::{Block, Fault, Frames, Life, Memory, Reset};
use super::{DOMAINS, DRIVER, Domain, World, id, index};
use crate::{Course, Hold, Reach};

/// What an end of a domain does to the machine.
pub(super) struct Effects<'a> {
    pub(super) world: &'a mut World,
    pub(super) number: usize,
}

impl Effects<'_> {
    fn domain(&mut self) -> &mut Domain {
        &mut self.world.domains[self.number]
    }

    /// Whether its function reaches nothing.
    fn is_quiet(&self) -> bool {
        (0..self.world.blocks.len()).all(|block| !self.world.reaches(self.number, block))
    }
}

impl Course for Effects<'_> {
    type Life = Life;
    type Memory = Frames;
    type Reset = Reset;
    type Time = u64;
    type Loss = &'static str;

    fn leave(&mut self) -> bool {
        let left = &mut self.domain().to_leave;
        let done = *left == 0;
        *left = left.saturating_sub(1);
        done || self.world.is(Fault::Leave)
    }

    fn let_go(&mut self) -> Hold<&'static str> {
        match self.domain().served.let_go() {
            _ if self.world.is(Fault::LetGo) => Hold::Free,
            LetGo::Free => Hold::Free,
            LetGo::Used => {
                self.domain().is_runnable = false;
                Hold::Used
            }
            LetGo::Lost(backend) if index(backend) == DRIVER => Hold::Lost("devices of the driver"),
            LetGo::Lost(_) => Hold::Lost("devices of the other driver"),
        }
    }

    fn take(&mut self) -> Option<Life> {
        let has_left = self.domain().to_leave == 0;
        self.world.see(has_left, "a domain is taken apart with what is others'");
        if self.domain().held > 0 {
            self.domain().held -= 1;
            return None;
        }
        self.domain().life.take()
    }

    fn stop(&mut self, _: &mut Life) -> Option<Reset> {
        if self.world.is(Fault::TellEarly) {
            self.tell_guests(Reach::Nothing);
        }
        let (stops, steps) = (!self.world.is(Fault::Stop), self.world.answers.steps % 4);
        let function = self.domain().function.as_mut()?;
        function.is_on &= !stops || function.defies;
        Some(Reset(steps))
    }

    fn block(&mut self, _: &mut Life) -> Result<(), &'static str> {
        if !self.world.has_iommu || self.world.is(Fault::Block) || self.domain().function.is_none() {
            return Ok(());
        }
        if !self.world.unit_answers(self.number) {
            return if self.world.is(Fault::Stuck) { Ok(()) } else { Err("its own devices") };
        }
        if let Some(function) = &mut self.domain().function {
            function.is_attached = false;
        }
        Ok(())
    }

    fn take_apart(&mut self, life: Life) -> Frames {
        self.domain().granted.clear();
        Frames { block: life.0, left: self.world.answers.steps % 5 }
    }

    fn reset(&mut self, reset: &mut Reset) -> Option<u64> {
        if self.world.is(Fault::Reset) {
            return None;
        }
        if reset.0 > 0 {
            reset.0 -= 1;
            return Some(self.world.now + 5);
        }
        if let Some(function) = &mut self.domain().function {
            function.is_busy = function.defies;
        }
        None
    }

    fn tell_guests(&mut self, reach: Reach) {
        if self.world.is(Fault::Tell)
            || self.world.is(Fault::TellEarly) && self.domain().told == self.domain().ends
        {
            return;
        }
        let reach = if self.world.is(Fault::TellWrong) { Reach::Nothing } else { reach };
        let is_quiet = self.is_quiet();
        self.world.see(
            is_quiet == (reach == Reach::Nothing),
            "guests are told something else than what their backend's devices can do",
        );
        self.domain().told += 1 + u32::from(self.world.is(Fault::TellTwice));
        let backend = id(self.number);
        for guest in 0..DOMAINS {
            let served = &mut self.world.domains[guest].served;
            let _ = match reach {
                Reach::Nothing => served.backend_ended(backend),
                Reach::Forever => served.backend_lost(backend),
            };
            self.world.wake(guest);
        }
    }

    fn scrub(&mut self, memory: &mut Frames) -> bool {
        if memory.left > 0 && !self.world.is(Fault::Scrub) {
            memory.left -= 1;
            return false;
        }
        self.world.blocks[memory.block].is_scrubbed = !self.world.is(Fault::Scrub);
        true
    }

    fn free(&mut self, memory: Frames) {
        let Block { state, is_scrubbed } = self.world.blocks[memory.block];
        self.world.see(state == Memory::Used, "memory is freed twice, or was lost");
        self.world.see(is_scrubbed, "memory is freed as its guest left it");
        self.world.blocks[memory.block].state = Memory::Freed;
    }

    fn keep(&mut self, memory: Frames, why: &'static str) {
        let state = self.world.blocks[memory.block].state;
        self.world.see(state == Memory::Used, "memory is freed twice, or was lost");
        self.world.blocks[memory.block].state =
            if self.world.is(Fault::Keep) { Memory::Freed } else { Memory::Kept };
        self.world.lines.push((self.number, why));
    }
}
