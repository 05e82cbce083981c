//! Who owns a frame, and how many frames each owner has.

use core::fmt;

use caisson_types::DomainId;

/// How many domains can own frames at the same time.
pub const MAX_DOMAINS: usize = 256;

/// Who owns a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// Nobody: the frame can be allocated, and reads as zero.
    Free,
    /// Caisson itself: its tables, heap and per-CPU data.
    Hypervisor,
    /// A domain: its memory and what Caisson keeps on its behalf.
    Domain(DomainId),
    /// Nobody may have it: firmware, boot modules, broken memory.
    Reserved,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("nobody"),
            Self::Hypervisor => f.write_str("the hypervisor"),
            Self::Domain(id) => write!(f, "domain {id}"),
            Self::Reserved => f.write_str("the firmware"),
        }
    }
}

/// One domain's count; vacant when it is 0.
#[derive(Clone, Copy)]
struct DomainFrames {
    domain: DomainId,
    frames: u32,
}

/// How many frames each owner has.
///
/// Domain ids are handed out in order, so a domain's slot is nearly always the one at its id modulo
/// [`MAX_DOMAINS`] and a count is found at once.
pub(crate) struct Accounts {
    hypervisor: u64,
    reserved: u64,
    domains: [DomainFrames; MAX_DOMAINS],
}

impl Accounts {
    pub(crate) const fn new() -> Self {
        let vacant = DomainFrames { domain: DomainId(0), frames: 0 };
        Self { hypervisor: 0, reserved: 0, domains: [vacant; MAX_DOMAINS] }
    }

    fn slot(&self, domain: DomainId, wanted: impl Fn(&DomainFrames) -> bool) -> Option<usize> {
        let first = usize::from(domain.0) % MAX_DOMAINS;
        (first..MAX_DOMAINS).chain(0..first).find(|&at| wanted(&self.domains[at]))
    }

    fn find(&self, domain: DomainId) -> Option<usize> {
        self.slot(domain, |slot| slot.frames != 0 && slot.domain == domain)
    }

    /// Frames of `owner`, who is not [`Owner::Free`].
    pub(crate) fn frames(&self, owner: Owner) -> u64 {
        match owner {
            Owner::Free => 0,
            Owner::Hypervisor => self.hypervisor,
            Owner::Reserved => self.reserved,
            Owner::Domain(id) => self.find(id).map_or(0, |at| self.domains[at].frames.into()),
        }
    }

    /// Whether `owner` may be charged: not the owner of free frames, and not one domain too many.
    pub(crate) fn can_charge(&self, owner: Owner) -> bool {
        match owner {
            Owner::Free => false,
            Owner::Hypervisor | Owner::Reserved => true,
            Owner::Domain(id) => self.find(id).is_some() || self.slot(id, |slot| slot.frames == 0).is_some(),
        }
    }

    /// Adds `frames` (at least 1) to `owner`, who [can be charged](Self::can_charge).
    pub(crate) fn charge(&mut self, owner: Owner, frames: u64) {
        match owner {
            Owner::Free => {}
            Owner::Hypervisor => self.hypervisor += frames,
            Owner::Reserved => self.reserved += frames,
            Owner::Domain(domain) => {
                let at = self.find(domain).or_else(|| self.slot(domain, |slot| slot.frames == 0));
                if let Some(slot) = at.and_then(|at| self.domains.get_mut(at)) {
                    slot.domain = domain;
                    slot.frames += frames as u32;
                }
            }
        }
    }

    /// Takes `frames` from `owner`, who has them.
    pub(crate) fn discharge(&mut self, owner: Owner, frames: u64) {
        match owner {
            Owner::Free => {}
            Owner::Hypervisor => self.hypervisor -= frames,
            Owner::Reserved => self.reserved -= frames,
            Owner::Domain(domain) => {
                if let Some(at) = self.find(domain) {
                    self.domains[at].frames -= frames as u32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_whose_ids_collide_have_counts_of_their_own() {
        let mut accounts = Accounts::new();
        let (a, b) = (Owner::Domain(DomainId(3)), Owner::Domain(DomainId(3 + MAX_DOMAINS as u16)));
        accounts.charge(a, 1);
        accounts.charge(b, 2);
        assert_eq!((accounts.frames(a), accounts.frames(b)), (1, 2));
        accounts.discharge(a, 1);
        assert_eq!((accounts.frames(a), accounts.frames(b)), (0, 2));
        accounts.charge(b, 1);
        assert_eq!(accounts.frames(b), 3);
    }

    #[test]
    fn one_domain_too_many_cannot_be_charged() {
        let mut accounts = Accounts::new();
        for id in 0..MAX_DOMAINS as u16 {
            accounts.charge(Owner::Domain(DomainId(id)), 1);
        }
        assert!(!accounts.can_charge(Owner::Domain(DomainId(999))));
        assert!(accounts.can_charge(Owner::Domain(DomainId(7))));
        accounts.discharge(Owner::Domain(DomainId(7)), 1);
        assert!(accounts.can_charge(Owner::Domain(DomainId(999))));
        assert!(!accounts.can_charge(Owner::Free));
    }
}
