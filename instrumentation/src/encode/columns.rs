//! Columns of text: figures to the right, words to the left, two spaces between.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Rows of cells, the first of them a heading.
pub(super) struct Columns<const N: usize> {
    rows: Vec<[String; N]>,
    words: Range<usize>,
}

impl<const N: usize> Columns<N> {
    /// A heading; the columns in `words` hold words, the others figures.
    pub(super) fn new(header: [&str; N], words: Range<usize>) -> Columns<N> {
        Columns {
            rows: vec![header.map(String::from)],
            words,
        }
    }

    pub(super) fn add_row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// The text, as wide as it needs to be. No line ends in spaces.
    pub(super) fn text(&self) -> String {
        let width = |cell: &String| cell.chars().count();
        let widths: [usize; N] = core::array::from_fn(|column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(width).max().unwrap_or(0)
        });
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, wide)) in row.iter().zip(widths).enumerate() {
                let fill = " ".repeat(wide - width(cell));
                if self.words.contains(&column) {
                    line.extend([cell.as_str(), &fill, "  "]);
                } else {
                    line.extend([fill.as_str(), cell, "  "]);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// 1234567 as 1,234,567.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        whole => alloc::format!("{:.2}", part as f64 * 100.0 / whole as f64),
    }
}

pub(super) fn average(sum: u64, count: u64) -> String {
    sum.checked_div(count).map_or("-".into(), grouped)
}
