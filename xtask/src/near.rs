//! Names that a person may have meant.

/// How many are offered.
const OFFERED: usize = 3;

/// Those of `names` that are nearest to `word`, the nearest first; none where nothing is near. A name counts by itself, and
/// by each of its parts (`a::b`, `a-b`, `a_b`) and what follows it.
#[must_use]
pub fn near<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = match word.chars().count() {
        0 => return Vec::new(),
        letters => (letters / 3).max(1),
    };
    let mut found: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let starts = name.match_indices([':', '-', '_', ' ']).map(|(at, mark)| at + mark.len());
            let best = std::iter::once(0)
                .chain(starts)
                .filter_map(|start| name.get(start..))
                .map(|part| beginning_distance(word, part))
                .min()?;
            (best <= limit).then_some((best, name))
        })
        .collect();
    found.sort_by_key(|&(distance, name)| (distance, name.len()));
    found.dedup_by_key(|&mut (_, name)| name);
    found.into_iter().map(|(_, name)| name).take(OFFERED).collect()
}

/// How many letters have to be changed, added or taken away to make `word` a beginning of `name`.
fn beginning_distance(word: &str, name: &str) -> usize {
    let word: Vec<char> = word.chars().collect();
    // Nothing beyond can belong to the nearest beginning.
    let name = name.chars().take(2 * word.len());
    let mut row: Vec<usize> = (0..=word.len()).collect();
    let mut best = word.len();
    for (column, letter) in name.enumerate() {
        let mut diagonal = column;
        let mut left = column + 1;
        for (index, &other) in word.iter().enumerate() {
            let above = row.get(index + 1).copied().unwrap_or_default();
            let here = (diagonal + usize::from(letter != other)).min(above + 1).min(left + 1);
            diagonal = above;
            if let Some(place) = row.get_mut(index) {
                *place = left;
            }
            left = here;
        }
        if let Some(place) = row.last_mut() {
            *place = left;
        }
        best = best.min(left);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "refusal-no-svm",
        "refusal-no-module",
        "linux",
        "two-guests",
        "linux-on-bochs",
        "bochs::tests::a_model_cannot_break_out_of_its_line",
    ];

    #[test]
    fn slips_of_the_pen_find_their_names() {
        assert_eq!(near("linix", NAMES), ["linux", "linux-on-bochs"]);
        assert_eq!(near("refusal-no-svn", NAMES)[0], "refusal-no-svm");
        assert_eq!(near("two_guests", NAMES), ["two-guests"]);
        assert_eq!(near("a_modle_cannot", NAMES), [NAMES[5]]);
        assert_eq!(near("modul", ["refusal-no-module"]), ["refusal-no-module"]);
    }

    #[test]
    fn what_is_far_is_not_offered() {
        for word in ["", "zzzzzz", "network-performance"] {
            assert_eq!(near(word, NAMES), [""; 0], "{word}");
        }
        assert_eq!(near("x", []), [""; 0]);
    }

    #[test]
    fn distances() {
        for (word, name, distance) in [
            ("abc", "abc", 0),
            ("abc", "abcdef", 0),
            ("abc", "axc", 1),
            ("abc", "bc", 1),
            ("abc", "xyz", 3),
            ("ab", "", 2),
        ] {
            assert_eq!(beginning_distance(word, name), distance, "{word} {name}");
        }
    }
}
