//! What a run of the bench says, on a terminal and as a page.

use std::fmt::Write;

use super::number;

/// Sections of tables, and which goals were met.
#[derive(Debug, Default)]
pub struct Verdict {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Heading(String),
    Table(Vec<Vec<String>>),
    Note(String),
    Goal { line: String, holds: bool },
}

impl Verdict {
    /// A heading.
    pub fn heading(&mut self, title: &str) {
        self.parts.push(Part::Heading(title.to_owned()));
    }

    /// A table; its first row is the head.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        self.parts.push(Part::Table(rows.to_vec()));
    }

    /// A paragraph of its own.
    pub fn note(&mut self, text: &str) {
        self.parts.push(Part::Note(text.to_owned()));
    }

    /// A goal: `value` is at most `limit`.
    pub fn at_most(&mut self, what: &str, value: f64, limit: f64) {
        self.parts.push(Part::Goal {
            line: format!(
                "{what}: {}, at most {} wanted",
                number(value),
                number(limit)
            ),
            holds: value <= limit,
        });
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        self.written(|part| match part {
            Part::Heading(title) => format!("== {title} ==\n"),
            Part::Table(rows) => columns(rows),
            Part::Note(note) => format!("{note}\n"),
            Part::Goal { line, holds: true } => format!("goal met: {line}\n"),
            Part::Goal { line, holds: false } => format!("goal MISSED: {line}\n"),
        })
    }

    /// For the documents, below a title.
    pub fn markdown(&self) -> String {
        self.written(|part| match part {
            Part::Heading(title) => format!("## {title}\n"),
            Part::Table(rows) => markdown_table(rows),
            Part::Note(note) => format!("{note}\n"),
            Part::Goal { line, holds: true } => format!("- met: {line}\n"),
            Part::Goal { line, holds: false } => format!("- **missed**: {line}\n"),
        })
    }

    /// An empty line before each part, but not between goals.
    fn written(&self, write: impl Fn(&Part) -> String) -> String {
        let mut text = String::new();
        let mut in_list = false;
        for part in &self.parts {
            let is_goal = matches!(part, Part::Goal { .. });
            if !(in_list && is_goal) {
                text.push('\n');
            }
            in_list = is_goal;
            text.push_str(&write(part));
        }
        text
    }

    /// The goals that were missed.
    pub fn missed(&self) -> Vec<&str> {
        self.parts
            .iter()
            .filter_map(|part| match part {
                Part::Goal { line, holds: false } => Some(line.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// Names to the left, figures to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for column in 0..count {
            let cell = row.get(column).map_or("", String::as_str);
            let pad = " ".repeat(width(column) - cell.chars().count());
            let _ = if column == 0 {
                write!(line, "{cell}{pad}")
            } else {
                write!(line, "  {pad}{cell}")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn markdown_table(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = (0..count)
            .map(|column| row.get(column).map_or("", String::as_str))
            .collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "| --- |{}", " ---: |".repeat(count.saturating_sub(1)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut verdict = Verdict::default();
        verdict.heading("Boot");
        verdict.table(&[row(["", "exits"]), row(["ours", "2,220"])]);
        verdict.at_most("a", 25.0, 25.0);
        verdict.at_most("b", 25.1, 25.0);
        verdict
    }

    #[test]
    fn goal_is_missed_only_above_its_limit() {
        assert_eq!(verdict().missed(), ["b: 25.10, at most 25 wanted"]);
    }

    #[test]
    fn terminal_has_columns() {
        assert_eq!(
            verdict().text(),
            "\n== Boot ==\n\n      exits\nours  2,220\n\n\
             goal met: a: 25, at most 25 wanted\n\
             goal MISSED: b: 25.10, at most 25 wanted\n"
        );
    }

    #[test]
    fn page_has_tables_and_lists() {
        assert_eq!(
            verdict().markdown(),
            "\n## Boot\n\n|  | exits |\n| --- | ---: |\n| ours | 2,220 |\n\n\
             - met: a: 25, at most 25 wanted\n\
             - **missed**: b: 25.10, at most 25 wanted\n"
        );
    }
}
