//! Pieces of a guest's RAM, and what of them is its own alone.

use crate::{Gpa, Hpa};

/// A piece of a guest's RAM that is contiguous in both address spaces, both of which it lies in whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where it is.
    pub hpa: Hpa,
    /// Bytes.
    pub bytes: u64,
}

impl Extent {
    /// What of it lies below the guest-physical address `limit`; `None` for nothing.
    #[must_use]
    pub fn below(self, limit: Gpa) -> Option<Self> {
        let bytes = limit.as_u64().checked_sub(self.gpa.as_u64())?.min(self.bytes);
        (bytes != 0).then_some(Self { bytes, ..self })
    }

    /// The rest of it: what lies from `limit` on.
    #[must_use]
    pub fn from(self, limit: Gpa) -> Option<Self> {
        let below = self.below(limit).map_or(0, |below| below.bytes);
        let (gpa, hpa) = (Gpa::new(self.gpa.as_u64() + below), Hpa::new(self.hpa.as_u64() + below));
        (below != self.bytes).then_some(Self { gpa, hpa, bytes: self.bytes - below })
    }
}

/// What domains that serve a guest may have of its memory, in the same order: all of it that lies below the guest-physical address
/// `private_from`.
pub fn granted(extents: &[Extent], private_from: Gpa) -> impl Iterator<Item = Extent> + Clone + '_ {
    extents.iter().filter_map(move |extent| extent.below(private_from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(gpa: u64, hpa: u64, bytes: u64) -> Extent {
        Extent { gpa: Gpa::new(gpa), hpa: Hpa::new(hpa), bytes }
    }

    #[test]
    fn a_piece_is_cut_where_the_limit_is() {
        let piece = extent(0x20_0000, 0x1_0000_0000, 0x40_0000);
        for (limit, bytes) in
            [(0x20_1000, 0x1000), (0x40_0000, 0x20_0000), (0x60_0000, 0x40_0000), (u64::MAX, 0x40_0000)]
        {
            assert_eq!(piece.below(Gpa::new(limit)), Some(Extent { bytes, ..piece }), "{limit:#x}");
        }
        for limit in [0, 0x1f_f000, 0x20_0000] {
            assert_eq!(piece.below(Gpa::new(limit)), None, "{limit:#x}");
        }
    }

    /// A page is left exactly if its guest-physical address is below the limit, and then it is where it was.
    #[test]
    fn no_page_above_the_limit_is_left() {
        let at = |of: Extent, page: u64| {
            let offset = (page << 12).checked_sub(of.gpa.as_u64()).filter(|&offset| offset < of.bytes)?;
            Some(of.hpa.as_u64() + offset)
        };
        for (first, pages, limit) in
            (0..6).flat_map(|a| (1..6).flat_map(move |b| (0..14).map(move |c| (a, b, c))))
        {
            let whole = extent(first << 12, 0x7000_0000, pages << 12);
            let (cut, rest) = (whole.below(Gpa::new(limit << 12)), whole.from(Gpa::new(limit << 12)));
            for page in 0..14 {
                let expected = at(whole, page).filter(|_| page < limit);
                assert_eq!(
                    cut.and_then(|cut| at(cut, page)),
                    expected,
                    "page {page} of {whole:?} below {limit}"
                );
                // And the rest is what is not left.
                let expected = at(whole, page).filter(|_| page >= limit);
                assert_eq!(
                    rest.and_then(|rest| at(rest, page)),
                    expected,
                    "page {page} of {whole:?} from {limit}"
                );
            }
        }
    }
}
