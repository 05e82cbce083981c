//! Bar charts as small pictures: groups of bars that lie, one for each series, with their figures at their ends.

use std::fmt::Write as _;

/// Pixels: where bars begin, how long the longest is, and the whole picture's width.
const LEFT: usize = 220;
const LONGEST: usize = 500;
const WIDTH: usize = LEFT + LONGEST + 156;
/// Height of a bar, what is free below it, and below a group.
const BAR: usize = 14;
const GAP: usize = 2;
const APART: usize = 12;
/// How wide a character is, about.
const CHARACTER: usize = 7;

/// Series in turn: fills that can be told apart, on white and on black.
const FILLS: [&str; 4] = ["#8c959f", "#d4881c", "#a371f7", "#4f8ff7"];

const STYLE: &str = "<style>
    text { font-family: system-ui, \"Segoe UI\", Helvetica, Arial, sans-serif; fill: #1f2328; font-size: 12px; }
    .small { font-size: 11px; fill: #57606a; }
    .end { text-anchor: end; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .small { fill: #9aa4ae; }
    }
  </style>";

/// A bar: its series, its length, and the figure at its end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    /// Which of the chart's series it belongs to.
    pub(super) series: usize,
    /// Its length; below zero it has none.
    pub(super) value: f64,
    /// What stands at its end.
    pub(super) text: String,
}

/// Bars that belong together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// What they are about.
    pub(super) label: String,
    /// The bars, from above.
    pub(super) bars: Vec<Bar>,
}

/// What the longest bar is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scale {
    /// The longest of all.
    Common,
    /// The longest of its group: lengths of two groups do not compare.
    EachGroup,
}

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What it shows, for who cannot see it as well.
    pub(super) title: String,
    /// The names of the series, at most as many as there are fills. One alone needs no name.
    pub(super) series: Vec<String>,
    /// The groups, from above.
    pub(super) groups: Vec<Group>,
    /// What the longest bar is.
    pub(super) scale: Scale,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn longest(groups: &[Group]) -> f64 {
    groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value).fold(0.0, f64::max)
}

/// Pixels of a bar; whoever is there at all is seen.
fn length(value: f64, longest: f64) -> usize {
    if value <= 0.0 || longest <= 0.0 {
        return 1;
    }
    // At most LONGEST: the quotient is at most 1.
    ((value / longest * LONGEST as f64).round() as usize).clamp(1, LONGEST)
}

impl Chart {
    /// The picture.
    pub(super) fn draw(&self) -> String {
        let mut body = String::new();
        let mut y = 24;
        let mut text = |x: usize, y: usize, class: &str, text: &str| {
            // Writing into a string cannot fail.
            let _ = writeln!(body, "  <text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>", escaped(text));
        };
        text(12, y, "title", &self.title);
        y += 18;
        let common = longest(&self.groups);
        let mut rects = String::new();
        for group in &self.groups {
            let longest = match self.scale {
                Scale::Common => common,
                Scale::EachGroup => longest(std::slice::from_ref(group)),
            };
            let middle = y + group.bars.len() * (BAR + GAP) / 2 + 3;
            text(LEFT - 10, middle, "end", &group.label);
            for bar in &group.bars {
                let (width, fill) = (length(bar.value, longest), FILLS[bar.series % FILLS.len()]);
                let _ = writeln!(
                    rects,
                    "  <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"{BAR}\" fill=\"{fill}\"/>"
                );
                text(LEFT + width + 6, y + BAR - 3, "small", &bar.text);
                y += BAR + GAP;
            }
            y += APART;
        }
        if self.series.len() > 1 {
            let mut x = LEFT;
            for (index, name) in self.series.iter().enumerate() {
                let fill = FILLS[index % FILLS.len()];
                let _ = writeln!(
                    rects,
                    "  <rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{fill}\"/>"
                );
                text(x + 18, y + 10, "small", name);
                x += 18 + (name.chars().count() + 2) * CHARACTER;
            }
            y += 24;
        }
        let title = escaped(&self.title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" role=\"img\" aria-labelledby=\"title\">\n  <title id=\"title\">{title}</title>\n  {STYLE}\n{rects}{body}</svg>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale) -> Chart {
        let bar = |series, value: f64| Bar { series, value, text: format!("{value}") };
        let groups = vec![
            Group { label: "a & b".to_owned(), bars: vec![bar(0, 100.0), bar(1, 50.0)] },
            Group { label: "c".to_owned(), bars: vec![bar(0, 10.0), bar(1, 0.0)] },
        ];
        Chart { title: "x < y".to_owned(), series: vec!["one".to_owned(), "two".to_owned()], groups, scale }
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let common = chart(Scale::Common).draw();
        for width in ["width=\"500\" height=\"14\"", "width=\"250\"", "width=\"50\"", "width=\"1\""] {
            assert!(common.contains(width), "{width}: {common}");
        }
        let each = chart(Scale::EachGroup).draw();
        assert_eq!(each.matches("width=\"500\" height=\"14\"").count(), 2);
        assert!(each.contains(">x &lt; y<") && each.contains(">a &amp; b<") && each.contains(">two<"));
        assert!(each.starts_with("<svg ") && each.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_is_drawn_without_a_length() {
        assert_eq!([length(0.0, 0.0), length(-1.0, 5.0), length(f64::NAN, 1.0)], [1, 1, 1]);
        assert_eq!([length(5.0, 5.0), length(0.001, 5.0)], [LONGEST, 1]);
    }
}
