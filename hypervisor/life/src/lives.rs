//! What is kept of a domain from life to life.

use core::fmt;

use caisson_config::{OnExit, OnExitAction};

use crate::Outcome;

/// Why a life ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The guest powered itself off.
    PowerOff,
    /// It was reset, by itself or by somebody who may.
    Reset,
    /// It could not go on.
    Crash,
    /// Somebody who may has ended it.
    Destroyed,
}

/// What is to follow on the end of a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Another one.
    Restart,
    /// None, because there were as many as the configuration allows.
    Limit,
    /// None.
    Destroy,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restart => "restarting",
            Self::Limit => "not restarted again: its limit is reached",
            Self::Destroy => "destroyed",
        })
    }
}

/// What a domain does now that its end is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// It lives again, not before that TSC.
    Restart(u64),
    /// It is gone for good; whether it ended as it should.
    Gone(bool),
}

/// What is known of a domain's lives.
#[derive(Debug, Default)]
pub struct Lives {
    /// How often it has been started again by itself.
    restarts: u32,
    /// It is to be, when its old memory is free.
    restarting: bool,
    /// The earliest TSC for that.
    not_before: u64,
    /// Why it ended last.
    cause: Option<Cause>,
    unwanted: bool,
    unmade: bool,
    lost: bool,
}

impl Lives {
    /// Of one that has not lived.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// It has been made, and is not made again before that TSC.
    pub fn made(&mut self, not_before: u64) {
        self.not_before = not_before;
    }

    /// It could not be made; `lost` where devices may reach what was to be its memory for ever.
    pub fn could_not_be_made(&mut self, lost: bool) {
        self.unmade = true;
        self.lost |= lost;
    }

    /// Somebody has said that it is to be gone, whatever it is doing.
    pub fn told_to_go(&mut self) {
        self.unwanted = true;
    }

    /// A life has ended. What follows, by its configuration.
    pub fn ended(&mut self, cause: Cause, actions: OnExit, max_restarts: Option<u32>) -> Verdict {
        let action = match cause {
            Cause::PowerOff => actions.poweroff,
            Cause::Reset => actions.reboot,
            Cause::Crash => actions.crash,
            Cause::Destroyed => OnExitAction::Destroy,
        };
        self.cause = Some(cause);
        let verdict = match action {
            OnExitAction::Destroy => Verdict::Destroy,
            OnExitAction::Restart if max_restarts.is_some_and(|most| self.restarts >= most) => Verdict::Limit,
            OnExitAction::Restart => Verdict::Restart,
        };
        self.restarting = verdict == Verdict::Restart;
        self.restarts = self.restarts.saturating_add(self.restarting.into());
        verdict
    }

    /// Its end is over.
    pub fn over(&mut self, outcome: Outcome) -> Next {
        self.lost |= outcome == Outcome::Lost;
        let restarting = core::mem::take(&mut self.restarting);
        if self.lost {
            Next::Gone(false)
        } else if restarting && !self.unwanted {
            Next::Restart(self.not_before)
        } else {
            let as_it_should = matches!(self.cause, Some(Cause::PowerOff | Cause::Destroyed));
            Next::Gone(self.unwanted || as_it_should)
        }
    }

    /// It is gone, and is to live again as if for the first time. Whether it may.
    #[must_use]
    pub fn begin_anew(&mut self) -> bool {
        if self.lost {
            return false;
        }
        self.restarts = 0;
        self.unwanted = false;
        self.unmade = false;
        true
    }

    /// How often it has been started again by itself.
    #[must_use]
    pub const fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether somebody has said that it is to be gone.
    #[must_use]
    pub const fn is_unwanted(&self) -> bool {
        self.unwanted
    }

    /// Whether it could not be made the last time.
    #[must_use]
    pub const fn is_unmade(&self) -> bool {
        self.unmade
    }

    /// Whether devices may still reach memory of its last life, which stays its: it does not come again, and is not forgotten.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.lost
    }
}
