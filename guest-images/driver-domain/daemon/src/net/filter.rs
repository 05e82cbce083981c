//! Whose frames a guest may send: its own.
//!
//! A frame is what its header makes of it: the kernel writes a checksum where the header says, and it may do that behind all
//! filters, when the frame leaves. So there has to be none in what the filter looks at.

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::{HEADER, Mac};

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

/// Where things are in the header before a frame (VIRTIO 1.2, section 5.1.6): its flags, from where on a checksum is computed,
/// and how far behind that it is written.
const FLAGS: usize = 0;
const CHECKSUM_START: usize = 6;
const CHECKSUM_OFFSET: usize = 8;

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

    /// Whether a frame that begins so may be sent: with its header and its first [`LOOKED_AT`] bytes, or all of it.
    pub(super) fn allows(&self, all: &[u8]) -> bool {
        let Some((header, frame)) = all.split_at_checked(HEADER) else { return false };
        leaves_alone(header) && self.allows_frame(frame)
    }

    fn allows_frame(&self, frame: &[u8]) -> bool {
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

/// Whether no checksum is to be written into what the filter looks at.
fn leaves_alone(header: &[u8]) -> bool {
    let word = |at: usize| match header.get(at..at + 2) {
        Some(&[low, high]) => usize::from(u16::from_le_bytes([low, high])),
        _ => 0,
    };
    let flags = header.get(FLAGS).copied().unwrap_or(0);
    let (start, offset) = (word(CHECKSUM_START), word(CHECKSUM_OFFSET));
    u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || (start >= LEAST && start + offset >= LOOKED_AT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn frame(source: Mac, tags: &[[u8; 4]], rest: &[u8]) -> Vec<u8> {
        [&[0; HEADER][..], &[0xff; 6], &source, &tags.concat(), rest].concat()
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
        assert_eq!(frame(MINE, &[tag], &arp(MINE)[..ARP_SENDER + 6]).len(), HEADER + LOOKED_AT);
    }

    #[test]
    fn a_checksum_does_not_change_whose_a_frame_is() {
        let allows = |flags: u8, start: u16, offset: u16| {
            let mut all = frame(MINE, &[], &[8, 0, 0x45]);
            all[FLAGS] = flags;
            all[CHECKSUM_START..][..2].copy_from_slice(&start.to_le_bytes());
            all[CHECKSUM_OFFSET..][..2].copy_from_slice(&offset.to_le_bytes());
            Filter::new(MINE, true, true).allows(&all)
        };
        // TCP and UDP over IPv4; the same behind a tag.
        assert!(allows(1, 34, 16) && allows(1, 34, 6) && allows(1, 38, 16) && allows(1, 14, 18));
        // Into the addresses, the type, the sender of an ARP packet; or beginning before what is the network's.
        for (start, offset) in [(0, 0), (0, 6), (0, 12), (14, 8), (14, 17), (31, 0), (0, 40), (13, 40)] {
            assert!(!allows(1, start, offset), "{start} {offset}");
            assert!(!allows(3, start, offset), "{start} {offset}");
            assert!(allows(0, start, offset) && allows(2, start, offset), "there is none to be written");
        }
        assert!(allows(1, u16::MAX, u16::MAX));
    }

    #[test]
    fn tags_are_the_bridges_where_it_gives_them() {
        let tagged = frame(MINE, &[[0x88, 0xa8, 0, 7]], &[8, 0]);
        assert!(!Filter::new(MINE, false, true).allows(&tagged));
        assert!(Filter::new(MINE, false, false).allows(&tagged));
        assert!(Filter::new(MINE, false, true).allows(&frame(OTHER, &[], &[8, 0])));
    }
}
