//! Whose frames a guest may send: its own.

use super::Mac;

/// Where things are in a frame (IEEE 802.3, 802.1Q; RFC 826).
const SOURCE: usize = 6;
const TYPE: usize = 12;
const TAG_BYTES: usize = 4;
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const ARP: [u8; 2] = [0x08, 0x06];
/// Behind the type: hardware, protocol, their lengths, the operation; then the sender's hardware address.
const ARP_SENDER: usize = 2 + 8;

/// As many bytes of a frame as the filter looks at, with one tag.
pub(super) const LOOKED_AT: usize = TYPE + TAG_BYTES + ARP_SENDER + 6;
/// The least that a frame has.
pub(super) const LEAST: usize = TYPE + 2;

/// The rules.
pub(super) struct Filter {
    mac: Mac,
    /// Frames have to come from `mac`, and ARP packets in them as well.
    anti_spoofing: bool,
    /// The guest's frames get a tag on their way; they may have none of their own.
    untagged: bool,
}

impl Filter {
    pub(super) const fn new(mac: Mac, anti_spoofing: bool, untagged: bool) -> Self {
        Self { mac, anti_spoofing, untagged }
    }

    pub(super) const fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether a frame that begins so may be sent: with its first [`LOOKED_AT`] bytes, or all of it.
    pub(super) fn allows(&self, frame: &[u8]) -> bool {
        let at = |place: usize, bytes: usize| frame.get(place..place + bytes).unwrap_or_default();
        let tagged = TAGS.iter().any(|tag| at(TYPE, 2) == tag);
        if self.untagged && tagged {
            return false;
        }
        if !self.anti_spoofing {
            return true;
        }
        let kind = TYPE + if tagged { TAG_BYTES } else { 0 };
        // What hides behind a second tag is not looked for, and not let through.
        if tagged && TAGS.iter().any(|tag| at(kind, 2) == tag) {
            return false;
        }
        at(SOURCE, 6) == self.mac && (at(kind, 2) != ARP || at(kind + ARP_SENDER, 6) == self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn frame(source: Mac, tags: &[[u8; 4]], rest: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &source, &tags.concat(), rest].concat()
    }

    fn arp(sender: Mac) -> Vec<u8> {
        [&ARP[..], &[0, 1, 8, 0, 6, 4, 0, 1], &sender, &[10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]].concat()
    }

    #[test]
    fn only_its_own() {
        let filter = Filter::new(MINE, true, false);
        assert!(filter.allows(&frame(MINE, &[], &[8, 0, 0x45])));
        assert!(!filter.allows(&frame(OTHER, &[], &[8, 0, 0x45])));
        assert!(!filter.allows(&frame([0xff; 6], &[], &[8, 0])));
        assert!(filter.allows(&frame(MINE, &[], &arp(MINE))));
        assert!(!filter.allows(&frame(MINE, &[], &arp(OTHER))));
        let tag = [0x81, 0, 0, 7];
        assert!(filter.allows(&frame(MINE, &[tag], &arp(MINE))));
        assert!(!filter.allows(&frame(MINE, &[tag], &arp(OTHER))));
        assert!(!filter.allows(&frame(MINE, &[tag, tag], &[8, 0])));
        // One that is cut is not its own.
        assert!(!filter.allows(&frame(MINE, &[], &arp(MINE)[..12])));
        assert!(!filter.allows(&[]));
        assert_eq!(frame(MINE, &[tag], &arp(MINE)[..ARP_SENDER + 6]).len(), LOOKED_AT);
    }

    #[test]
    fn tags_are_the_bridges_where_it_gives_them() {
        let tagged = frame(MINE, &[[0x88, 0xa8, 0, 7]], &[8, 0]);
        assert!(!Filter::new(MINE, false, true).allows(&tagged));
        assert!(Filter::new(MINE, false, false).allows(&tagged));
        assert!(Filter::new(MINE, false, true).allows(&frame(OTHER, &[], &[8, 0])));
    }
}
