//! The list in docs/locking.md is the enum's.

use caisson_locks::Rank;

const PAGE: &str = include_str!("../../../docs/locking.md");

#[test]
fn the_page_lists_the_ranks_in_order() {
    let rows: Vec<Vec<&str>> = PAGE
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let expected: Vec<Vec<String>> = Rank::ALL
        .iter()
        .map(|rank| {
            let why = rank.why().iter().map(|line| line.trim().to_owned());
            [format!("`{rank:?}`")].into_iter().chain(why).collect()
        })
        .collect();
    assert_eq!(rows, expected);
}
