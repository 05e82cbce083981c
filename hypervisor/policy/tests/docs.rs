//! `docs/policy.md` ends with the tables that the example prints. To renew it:
//!
//! ```sh
//! cargo run -p caisson-policy --example tables > tables.md   # and put them behind the mark
//! ```

#[path = "../examples/tables.rs"]
mod example;

const PAGE: &str = include_str!("../../../docs/policy.md");
const MARK: &str = "<!-- generated from here on: cargo run -p caisson-policy --example tables -->\n\n";

#[test]
fn the_page_has_the_tables_of_the_code() {
    let page = PAGE.split_once(MARK).map(|(_, tables)| tables).unwrap_or_default();
    let expected = example::tables();
    for (number, (page, code)) in page.lines().zip(expected.lines()).enumerate() {
        assert_eq!(page, code, "line {} behind the mark", number + 1);
    }
    assert_eq!(page, expected, "some lines are missing or too many");
}
