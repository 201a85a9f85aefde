//! Columns of text: numbers to the right, words to the left, two spaces between.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A column's heading and how its cells stand.
pub(super) enum Column {
    /// Numbers, which end at the same place.
    Numbers(String),
    /// Words, which begin at the same place.
    Words(String),
}

/// A column of numbers.
pub(super) fn numbers(heading: &str) -> Column {
    Column::Numbers(heading.into())
}

/// A column of words.
pub(super) fn words(heading: &str) -> Column {
    Column::Words(heading.into())
}

/// Rows of cells under their headings.
pub(super) struct Columns {
    rows: Vec<Vec<String>>,
    words: Vec<bool>,
}

impl Columns {
    pub(super) fn new(columns: Vec<Column>) -> Columns {
        let words = columns
            .iter()
            .map(|column| matches!(column, Column::Words(_)))
            .collect();
        let headings = columns
            .into_iter()
            .map(|column| match column {
                Column::Numbers(heading) | Column::Words(heading) => heading,
            })
            .collect();
        Columns {
            rows: alloc::vec![headings],
            words,
        }
    }

    pub(super) fn add_row(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// The text, as wide as it needs to be. No line ends in spaces.
    pub(super) fn text(&self) -> String {
        let width = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.words.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(width).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, wide), words) in row.iter().zip(&widths).zip(&self.words) {
                let fill = " ".repeat(wide - width(cell));
                if *words {
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

/// Events a second.
pub(super) fn rate(count: u64, microseconds: u64) -> String {
    match microseconds {
        0 => "-".into(),
        us => {
            let tenths = u128::from(count) * 10_000_000 / u128::from(us);
            let whole = u64::try_from(tenths / 10).unwrap_or(u64::MAX);
            match whole {
                0..10 => alloc::format!("{whole}.{}", tenths % 10),
                _ => grouped(whole),
            }
        }
    }
}
