//! Whose frames a guest may send: its own, in which it speaks for nobody else.
//!
//! Nothing says which IP addresses a guest has, so they are not looked at. Ethernet addresses are, wherever neighbours learn them
//! from: in the frame itself, in ARP, and in IPv6 neighbour discovery (`neighbours.rs`).
//!
//! A frame is what its header makes of it: the kernel writes a checksum where the header says, and it may do that behind all
//! filters, when the frame leaves. So there has to be none in what the filter looks at.

use virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM;

use super::{HEADER, Mac, neighbours};

/// Where things are in a frame (IEEE 802.3, 802.1Q; RFC 826).
const SOURCE: usize = 6;
const TYPE: usize = 12;
const TAG_BYTES: usize = 4;
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Behind the type: hardware, protocol, their lengths, the operation; then the sender's hardware address.
const ARP_SENDER: usize = 2 + 8;
const ARP_LOOKED_AT: usize = ARP_SENDER + 6;

/// As many bytes of a frame as the filter looks at, with one tag, unless it [reads on](Filter::reads_on).
pub(super) const LOOKED_AT: usize = TYPE + TAG_BYTES + ARP_LOOKED_AT;
/// As many as it looks at then: a whole frame of the usual size.
pub(super) const LONGEST: usize = TYPE + TAG_BYTES + 2 + 1500;
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
    /// Frames have to come from `mac`, and what they tell neighbours as well.
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

    /// Whether the first [`LOOKED_AT`] bytes of a frame are too few to tell, and the first [`LONGEST`] are needed: by its header
    /// and those first.
    pub(super) fn reads_on(&self, all: &[u8]) -> bool {
        let frame = all.get(HEADER..).unwrap_or_default();
        let (kind, _) = kind(frame);
        self.anti_spoofing && pair(frame, kind) == IPV6 && neighbours::reads_on(behind(frame, kind))
    }

    /// Whether a frame that begins so may be sent: with its header and as many bytes as are looked at, or all of it.
    pub(super) fn allows(&self, all: &[u8]) -> bool {
        let Some((header, frame)) = all.split_at_checked(HEADER) else { return false };
        self.judge(frame).is_some_and(|judged| leaves_alone(header, judged))
    }

    /// How many of its bytes matter, if the frame may be sent.
    fn judge(&self, frame: &[u8]) -> Option<usize> {
        let (kind, tagged) = kind(frame);
        if self.untagged && tagged {
            return None;
        }
        if !self.anti_spoofing {
            return Some(LOOKED_AT);
        }
        let what = pair(frame, kind);
        // What hides behind a second tag is not looked for, and not let through.
        if frame.get(SOURCE..SOURCE + 6)? != self.mac || tagged && TAGS.contains(&what) {
            return None;
        }
        match what {
            ARP => {
                let sender = frame.get(kind + ARP_SENDER..kind + ARP_LOOKED_AT)?;
                (sender == self.mac).then_some(LOOKED_AT)
            }
            IPV6 => Some(kind + 2 + neighbours::judge(self.mac, behind(frame, kind))?),
            _ => Some(LOOKED_AT),
        }
    }
}

/// Where the type is of what the frame carries, and whether that is behind a tag.
fn kind(frame: &[u8]) -> (usize, bool) {
    let tagged = TAGS.contains(&pair(frame, TYPE));
    (if tagged { TYPE + TAG_BYTES } else { TYPE }, tagged)
}

/// Two bytes; zeros where there are none.
fn pair(bytes: &[u8], at: usize) -> [u8; 2] {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

/// What is behind the type.
fn behind(frame: &[u8], kind: usize) -> &[u8] {
    frame.get(kind + 2..).unwrap_or_default()
}

/// Whether no checksum is to be written into the first `judged` bytes of the frame.
fn leaves_alone(header: &[u8], judged: usize) -> bool {
    let word = |at: usize| usize::from(u16::from_le_bytes(pair(header, at)));
    let flags = header.get(FLAGS).copied().unwrap_or(0);
    let (start, offset) = (word(CHECKSUM_START), word(CHECKSUM_OFFSET));
    u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || (start >= LEAST && start + offset >= judged)
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

    /// What a neighbour would learn from a solicitation with this address as its sender's.
    fn solicitation(sender: Mac) -> Vec<u8> {
        let message = [&[135, 0, 0, 0][..], &[0; 20], &[1, 1], &sender].concat();
        [&IPV6[..], &[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255], &[0; 32], &message].concat()
    }

    #[test]
    fn neighbours_are_told_the_truth() {
        let filter = Filter::new(MINE, true, false);
        for tags in [&[][..], &[[0x81, 0, 0, 7]]] {
            let (good, bad) =
                (frame(MINE, tags, &solicitation(MINE)), frame(MINE, tags, &solicitation(OTHER)));
            let start = &good[..HEADER + LOOKED_AT];
            assert!(filter.reads_on(start) && !filter.allows(start), "what was not seen");
            assert!(filter.allows(&good));
            assert!(!filter.allows(&bad));
            assert!(Filter::new(MINE, false, false).allows(&bad));
            assert!(!Filter::new(MINE, false, false).reads_on(&bad));
        }
        let udp = [&IPV6[..], &[0x60, 0, 0, 0, 0, 8, 17, 64], &[0; 40]].concat();
        let udp = frame(MINE, &[], &udp);
        let start = &udp[..HEADER + LOOKED_AT];
        assert!(!filter.reads_on(start) && filter.allows(start));
        assert!(!filter.allows(&udp[..HEADER + 18]));
        assert!(!filter.reads_on(&frame(MINE, &[], &arp(MINE))) && !filter.reads_on(&[]));
    }

    #[test]
    fn a_checksum_changes_nothing_that_neighbours_learn() {
        let least = |mut all: Vec<u8>| {
            all[FLAGS] = 1;
            all[CHECKSUM_START] = LEAST as u8;
            (0..200).find(|&offset| {
                all[CHECKSUM_OFFSET] = offset;
                Filter::new(MINE, true, false).allows(&all)
            })
        };
        let neighbour = frame(MINE, &[], &solicitation(MINE));
        assert_eq!(least(neighbour.clone()).map(usize::from), Some(neighbour.len() - HEADER - LEAST));
        // Not the next header of anything else, either.
        let udp = [&IPV6[..], &[0x60, 0, 0, 0, 0, 8, 17, 64], &[0; 40]].concat();
        assert_eq!(least(frame(MINE, &[], &udp)), Some(40));
    }
}
