//! Access rights of a segment as the VMCS packs them (SDM vol. 3, table 25-2).

use crate::Attributes;

/// Bits 7:0 as in a descriptor, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// The segment is unusable: a null selector was loaded, or none.
    pub const UNUSABLE: u32 = 1 << 16;

    /// The segment cannot be used.
    #[must_use]
    pub const fn unusable(self) -> bool {
        self.0 & Self::UNUSABLE != 0
    }

    /// Descriptor privilege level; of SS, the guest's current privilege level, usable or not.
    #[inline]
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// With another privilege level.
    #[must_use]
    pub const fn with_dpl(self, dpl: u8) -> Self {
        Self(self.0 & !(3 << 5) | (dpl as u32 & 3) << 5)
    }
}

impl From<Attributes> for AccessRights {
    /// A segment that is not present is unusable; its other bits stay, because SS keeps the privilege level there.
    #[inline]
    fn from(attributes: Attributes) -> Self {
        let word = u32::from(attributes.0);
        let rights = word & 0xff | (word & 0xf00) << 4;
        Self(if attributes.present() { rights } else { rights | Self::UNUSABLE })
    }
}

impl From<AccessRights> for Attributes {
    #[inline]
    fn from(rights: AccessRights) -> Self {
        let word = (rights.0 & 0xff | rights.0 >> 4 & 0xf00) as u16;
        Self(if rights.unusable() { word & !(1 << 7) } else { word })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_rights_are_the_same_bits_elsewhere() {
        assert_eq!(AccessRights::from(Attributes::CODE64).0, 0xa09b);
        assert_eq!(AccessRights::from(Attributes::DATA32).0, 0xc093);
        assert_eq!(AccessRights::from(Attributes(0)).0, 1 << 16);
        for word in 0..0x1000 {
            let attributes = Attributes(word);
            assert_eq!(Attributes::from(AccessRights::from(attributes)), attributes);
        }
    }

    #[test]
    fn an_unusable_stack_segment_keeps_its_privilege() {
        let rights = AccessRights(0x1_0060 | 0x93);
        assert_eq!(rights.dpl(), 3);
        assert!(!Attributes::from(rights).present() && Attributes::from(rights).dpl() == 3);
        assert_eq!(rights.with_dpl(1).dpl(), 1);
    }
}
