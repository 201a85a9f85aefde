//! The HTML around the plots.

use std::fmt::Write;

use instrumentation::encode::grouped;

use super::plot::Series;
use super::timeline::Timeline;

/// Puts the text of the box above a button on the clipboard; without a
/// clipboard the box is selected, ready for the keyboard.
const SCRIPT: &str = "document.addEventListener('click',e=>{if(!e.target.matches('button'))return;\
const t=e.target.previousElementSibling;t.select();navigator.clipboard?.writeText(t.value)\
.then(()=>{e.target.textContent='Copied';setTimeout(()=>{e.target.textContent='Copy'},2000)},()=>{})})";

/// A field as people read it: whole numbers in groups of three digits.
fn shown(field: &str) -> String {
    let (whole, rest) = field.split_at(field.find('.').unwrap_or(field.len()));
    match whole.parse() {
        Ok(number) if whole.len() > 3 => grouped(number) + rest,
        _ => field.to_owned(),
    }
}

/// A page in the making. Whatever text goes in is escaped; SVG goes in as it is.
#[derive(Debug)]
pub struct Page {
    html: String,
}

/// Text that stands for itself in HTML, in attributes too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

impl Page {
    /// A page with a title.
    pub fn new(title: &str) -> Page {
        let title = escape(title);
        Page {
            html: format!(
                "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width\">\n\
                 <meta name=\"color-scheme\" content=\"light dark\">\n\
                 <link rel=\"icon\" href=\"data:,\">\n\
                 <title>{title}</title>\n<style>\n{}</style>\n<h1>{title}</h1>\n",
                include_str!("page.css")
            ),
        }
    }

    // Writing to a String cannot fail, here and below.
    fn line(&mut self, line: std::fmt::Arguments) {
        let _ = self.html.write_fmt(line);
        self.html.push('\n');
    }

    /// A section's heading.
    pub fn heading(&mut self, text: &str) {
        self.line(format_args!("<h2>{}</h2>", escape(text)));
    }

    /// A paragraph of text.
    pub fn paragraph(&mut self, text: &str) {
        self.line(format_args!("<p>{}</p>", escape(text)));
    }

    /// Names with their values, side by side.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        self.line(format_args!("<dl>"));
        for (name, value) in facts {
            let (name, value) = (escape(name), escape(value));
            self.line(format_args!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
        }
        self.line(format_args!("</dl>"));
    }

    /// A drawing, and what it shows for those who cannot see it.
    pub fn svg(&mut self, svg: &str, what: &str) {
        let what = escape(what);
        let svg = svg.replacen("<svg ", &format!("<svg aria-label=\"{what}\" "), 1);
        self.line(format_args!("<div class=\"plot\">{svg}</div>"));
    }

    /// Names of series in the order of their colours.
    pub fn legend(&mut self, names: &[&str]) {
        self.line(format_args!("<ul class=\"legend\">"));
        for (index, name) in names.iter().enumerate() {
            let name = escape(name);
            self.line(format_args!(
                "<li><span style=\"background:var(--c{index})\"></span>{name}</li>"
            ));
        }
        self.line(format_args!("</ul>"));
    }

    /// The values behind a plot over time, to copy.
    pub fn data(&mut self, unit: &str, timeline: &Timeline, series: &[Series]) {
        let mut csv = String::from(unit);
        for (name, _) in series {
            let _ = write!(csv, ",{name}");
        }
        csv.push('\n');
        for bucket in 0..timeline.buckets {
            let _ = write!(csv, "{:.3}", timeline.end(bucket));
            for (_, values) in series {
                let _ = write!(csv, ",{}", values[bucket]);
            }
            csv.push('\n');
        }
        self.copyable(&csv);
    }

    /// The values behind a plot of bars, to copy.
    pub fn values(&mut self, header: &str, bars: &[(String, f64, String)]) {
        let mut csv = format!("{header}\n");
        for (name, value, _) in bars {
            let _ = writeln!(csv, "{name},{value}");
        }
        self.copyable(&csv);
    }

    fn copyable(&mut self, csv: &str) {
        let csv = escape(csv);
        self.line(format_args!(
            "<details><summary>Data</summary><textarea readonly aria-label=\"Data as CSV\">{csv}</textarea>\
             <button type=\"button\">Copy</button></details>"
        ));
    }

    /// A table; columns of figures go to the right.
    pub fn table(&mut self, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let rows: Vec<_> = rows.collect();
        let figures: Vec<bool> = (0..header.len())
            .map(|column| {
                rows.iter().all(|row| {
                    row[column] == "-" || row[column].starts_with(|c: char| c.is_ascii_digit())
                })
            })
            .collect();
        let class = |column: usize| if figures[column] { " class=\"n\"" } else { "" };
        self.line(format_args!("<div class=\"scroll\"><table><tr>"));
        for (column, name) in header.iter().enumerate() {
            self.line(format_args!("<th{}>{}</th>", class(column), escape(name)));
        }
        for row in &rows {
            self.html.push_str("<tr>");
            for (column, value) in row.iter().enumerate() {
                let shown = escape(&shown(value));
                let _ = write!(self.html, "<td{}>{shown}</td>", class(column));
            }
            self.html.push('\n');
        }
        self.line(format_args!("</table></div>"));
    }

    /// A table, and the same as CSV to copy.
    pub fn table_to_copy(&mut self, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let rows: Vec<_> = rows.collect();
        let mut csv = header.join(",") + "\n";
        for row in &rows {
            let quoted: Vec<String> = row
                .iter()
                .map(|field| {
                    if field.contains([',', '"']) {
                        format!("\"{}\"", field.replace('"', "\"\""))
                    } else {
                        field.clone()
                    }
                })
                .collect();
            csv.push_str(&(quoted.join(",") + "\n"));
        }
        self.table(header, rows.into_iter());
        self.copyable(&csv);
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        self.line(format_args!(
            "<footer>Drawn by ch-remote exit-stats report {}</footer>\n<script>{SCRIPT}</script>",
            env!("CARGO_PKG_VERSION")
        ));
        self.html
    }
}
