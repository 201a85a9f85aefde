//! Draws the live view.

use instrumentation::encode::{TimeUnit, notes};
use instrumentation::snapshot::{DeviceExits, ExitSnapshot, Totals};
use instrumentation::table::{ExitReason, Isa};
use instrumentation::user_exit::UserExitKind;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState, Wrap};

use super::model::{Model, Row};

/// Whether the view may use colours.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    colours: bool,
}

impl Palette {
    /// Colours unless `NO_COLOR` is set and not empty, as no-color.org asks.
    pub fn from_environment() -> Palette {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Palette { colours: !unwanted }
    }

    /// A palette of one colour.
    pub fn monochrome() -> Palette {
        Palette { colours: false }
    }

    fn foreground(self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const SPARKLINE: usize = 24;

/// Draws the whole screen.
pub fn draw(frame: &mut Frame, model: &Model, palette: Palette) {
    let detail = if model.opened { 10 } else { 0 };
    let [title, split, table, opened, status] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Min(3),
        Constraint::Length(detail),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title_line(model, title.width), title);
    frame.render_widget(split_lines(model, split.width), split);
    let rows = model.rows();
    draw_table(frame, table, model, &rows, palette);
    if let (true, Some(row), Some(latest)) =
        (model.opened, rows.get(model.selected), model.latest())
    {
        frame.render_widget(detail_lines(row, latest, opened.width), opened);
    }
    frame.render_widget(status_line(model, palette, status.width), status);
}

fn title_line(model: &Model, width: u16) -> Paragraph<'_> {
    let mut parts = Vec::new();
    // What is not current says so first, where it is never left out.
    parts.extend(model.not_current().map(String::from));
    match model.latest() {
        None => parts.push("waiting for figures".into()),
        Some(latest) => {
            let isa = latest.isa.map_or("KVM", |isa| match isa {
                Isa::Vmx => "VMX",
                Isa::Svm => "SVM",
            });
            if let Some((totals, seconds)) = model.interval()
                && seconds > 0.0
            {
                parts.push(format!("{}/s", number(totals.exits as f64 / seconds)));
            }
            parts.push(format!("exits: {}", latest.totals.exits));
            parts.push(format!("{isa}, vCPUs: {}", latest.vcpus.len()));
        }
    }
    parts.push(model.vm.clone());
    Paragraph::new(joined(&parts, "  ", width)).style(Style::new().add_modifier(Modifier::BOLD))
}

/// As many whole parts as fit, from the first one on; a mark for the rest.
fn joined(parts: &[String], between: &str, width: u16) -> String {
    let width = usize::from(width);
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let between = if index == 0 { "" } else { between };
        let rest = if index + 1 < parts.len() { 2 } else { 0 };
        let length = text.chars().count() + between.len() + part.chars().count();
        if length + rest > width {
            if text.chars().count() + 2 <= width {
                text.push_str(" …");
            }
            break;
        }
        text.push_str(between);
        text.push_str(part);
    }
    text
}

fn split_lines(model: &Model, width: u16) -> Paragraph<'static> {
    let mut lines = Vec::new();
    let latest = model.latest();
    if let Some(why) = latest.and_then(|latest| latest.unavailable.as_ref()) {
        lines.push(format!("No exits by reason: {why}"));
    } else {
        if let Some((totals, _)) = model.interval() {
            lines.push(joined(&time_split(&totals), "  ", width));
        }
        lines.extend(latest.into_iter().flat_map(notes));
        lines.extend(model.broken.map(|what| format!("Rates begin anew: {what}")));
    }
    let lines: Vec<Line> = lines.into_iter().map(Line::from).collect();
    Paragraph::new(lines).wrap(Wrap { trim: true })
}

fn time_split(totals: &Totals) -> Vec<String> {
    let parts = [
        ("guest", totals.guest_cycles),
        ("KVM", totals.cycles),
        ("user space", totals.userspace_cycles),
        ("asleep", totals.blocked_cycles),
        ("preempted", totals.preempted_cycles),
    ];
    let sum: u64 = parts.iter().filter_map(|(_, ticks)| *ticks).sum();
    let mut texts = vec!["Time:".to_owned()];
    texts.extend(parts.iter().map(|(name, ticks)| {
        let share = ticks.unwrap_or(0) as f64 * 100.0 / sum.max(1) as f64;
        format!("{name} {share:.1} %")
    }));
    texts
}

/// A column of the table; `rank` says which goes first where there is no room: the
/// highest.
struct Column {
    heading: String,
    cells: Vec<String>,
    rank: u8,
    right: bool,
}

impl Column {
    fn numbers(heading: impl Into<String>, rank: u8, cells: Vec<String>) -> Column {
        Column {
            heading: heading.into(),
            cells,
            rank,
            right: true,
        }
    }

    fn words(heading: &str, rank: u8, cells: Vec<String>) -> Column {
        Column {
            heading: heading.into(),
            cells,
            rank,
            right: false,
        }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().chain([&self.heading]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// Leaves out whole columns until the others fit: a number is never cut.
fn fitting(mut columns: Vec<Column>, width: u16) -> Vec<Column> {
    let needed = |columns: &[Column]| {
        columns.iter().map(Column::width).sum::<usize>() + columns.len().saturating_sub(1)
    };
    while columns.len() > 1 && needed(&columns) > usize::from(width) {
        let last = (0..columns.len()).max_by_key(|&index| columns[index].rank);
        columns.remove(last.unwrap_or(0));
    }
    columns
}

fn draw_table(frame: &mut Frame, area: Rect, model: &Model, rows: &[Row], palette: Palette) {
    let columns = fitting(reason_columns(model, rows), area.width);
    let header = TableRow::new(columns.iter().map(|column| cell(column, &column.heading)))
        .style(palette.foreground(Color::Cyan).add_modifier(Modifier::BOLD));
    let lines = (0..rows.len()).map(|index| {
        TableRow::new(columns.iter().map(|column| {
            let cell = cell(column, &column.cells[index]);
            match column.heading.as_str() {
                HISTORY => cell.style(palette.foreground(Color::Green)),
                _ => cell,
            }
        }))
    });
    let widths = columns
        .iter()
        .map(|column| Constraint::Length(u16::try_from(column.width()).unwrap_or(u16::MAX)));
    let table = Table::new(lines, widths)
        .header(header)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(model.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

const HISTORY: &str = "History";

fn reason_columns(model: &Model, rows: &[Row]) -> Vec<Column> {
    let latest = model.latest();
    let isa = latest.and_then(|latest| latest.isa);
    let tsc_khz = latest.map_or(0, |latest| latest.tsc_khz);
    let exits = latest.map_or(0, |latest| latest.totals.exits).max(1) as f64;
    let cycles = latest
        .and_then(|latest| latest.totals.cycles)
        .unwrap_or(0)
        .max(1) as f64;
    let average = |row: &Row| {
        let counters = &row.reason.counters;
        counters.cycles.checked_div(counters.exits).unwrap_or(0)
    };
    let unit = TimeUnit::for_column(rows.iter().map(average).max().unwrap_or(0), tsc_khz, false);
    let cells = |cell: &dyn Fn(&Row) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let percent = |part: u64, whole: f64| format!("{:.1}", part as f64 * 100.0 / whole);
    vec![
        Column::numbers("#", 5, cells(&|row| row.reason.label(isa))),
        Column::words("Reason", 0, cells(&|row| row.reason.symbol.to_string())),
        Column::numbers("Exits/s", 1, cells(&|row| number(row.rate))),
        Column::numbers(
            "Exits",
            2,
            cells(&|row| row.reason.counters.exits.to_string()),
        ),
        Column::numbers(
            "Exits%",
            6,
            cells(&|row| percent(row.reason.counters.exits, exits)),
        ),
        Column::numbers(
            "Kernel%",
            3,
            cells(&|row| percent(row.reason.counters.cycles, cycles)),
        ),
        Column::numbers(
            unit.heading("Avg"),
            4,
            cells(&|row| unit.cell(average(row))),
        ),
        Column::words(HISTORY, 7, cells(&|row| sparkline(&row.history))),
    ]
}

fn cell(column: &Column, text: &str) -> Cell<'static> {
    let line = Line::from(text.to_string());
    Cell::new(if column.right {
        line.right_aligned()
    } else {
        line
    })
}

/// Devices that an opened reason shows.
const DEVICES: usize = 6;

/// The devices behind a reason and its share on each vCPU.
fn detail_lines(row: &Row, latest: &ExitSnapshot, width: u16) -> Paragraph<'static> {
    let mut lines = vec![Line::styled(
        format!("{}: devices in user space", row.reason.name),
        Style::new().add_modifier(Modifier::BOLD),
    )];
    let mut devices = devices_behind(row.reason.number, latest);
    devices.sort_by_key(|(_, device)| std::cmp::Reverse(device.exits));
    if devices.is_empty() {
        lines.push(Line::from("  none: KVM serves this reason itself"));
    } else {
        lines.extend(device_lines(&devices, width));
    }
    let mut vcpus = vec!["  by vCPU".to_owned()];
    vcpus.extend(latest.vcpus.iter().filter_map(|vcpu| {
        let reasons = vcpu.reasons.as_ref()?;
        let own = reasons.iter().find(|own| own.number == row.reason.number)?;
        Some(format!("{}: {}", vcpu.id, own.counters.exits))
    }));
    lines.push(Line::from(joined(&vcpus, "  ", width)));
    Paragraph::new(lines)
}

fn device_lines(devices: &[(UserExitKind, &DeviceExits)], width: u16) -> Vec<Line<'static>> {
    let shown = &devices[..devices.len().min(DEVICES)];
    let most = shown.iter().map(|(_, device)| device.nanoseconds).max();
    // A clock of a GHz ticks in nanoseconds.
    let unit = TimeUnit::for_column(most.unwrap_or(0), 1_000_000, false);
    let cells = |cell: &dyn Fn(UserExitKind, &DeviceExits) -> String| {
        shown
            .iter()
            .map(|(kind, device)| cell(*kind, device))
            .collect::<Vec<_>>()
    };
    let columns = vec![
        Column::words("", 0, cells(&|_, device| format!("  {}", device.id))),
        Column::words(
            "",
            2,
            cells(&|_, device| device.address.clone().unwrap_or_default()),
        ),
        Column::words("", 3, cells(&|kind, _| kind.as_str().to_owned())),
        Column::numbers("", 5, cells(&|_, device| format!("{} B", device.size))),
        Column::numbers("", 1, cells(&|_, device| format!("{} exits", device.exits))),
        Column::numbers(
            "",
            4,
            cells(&|_, device| unit.with_name(device.nanoseconds)),
        ),
    ];
    let columns = fitting(columns, width);
    let mut lines: Vec<Line> = (0..shown.len())
        .map(|index| {
            let mut text = String::new();
            for column in &columns {
                let (cell, width) = (&column.cells[index], column.width());
                match column.right {
                    true => text.push_str(&format!("{cell:>width$} ")),
                    false => text.push_str(&format!("{cell:<width$} ")),
                }
            }
            Line::from(text.trim_end().to_owned())
        })
        .collect();
    if devices.len() > shown.len() {
        lines.push(Line::from(format!(
            "  {} more",
            devices.len() - shown.len()
        )));
    }
    lines
}

/// Accesses that reach user space through a reason.
fn devices_behind(number: Option<u32>, latest: &ExitSnapshot) -> Vec<(UserExitKind, &DeviceExits)> {
    let kinds = match (latest.isa, number) {
        (Some(isa), Some(number)) => UserExitKind::behind(isa, ExitReason(number)),
        _ => &[],
    };
    latest
        .vmm
        .exits
        .iter()
        .filter(|row| kinds.contains(&row.kind))
        .flat_map(|row| row.devices.iter().map(|device| (row.kind, device)))
        .collect()
}

fn status_line(model: &Model, palette: Palette, width: u16) -> Paragraph<'_> {
    if let Some(error) = &model.error {
        return Paragraph::new(error.as_str()).style(palette.foreground(Color::Red));
    }
    let filter = match (&model.filter, model.typing) {
        (Some(filter), true) => format!("filter: {filter}_"),
        (Some(filter), false) => format!("/ filter: {filter}"),
        (None, _) => "/ filter".into(),
    };
    let parts = [
        "q quit".to_owned(),
        format!("s sort: {}", model.sort.label()),
        filter,
        if model.frozen { "f resume" } else { "f freeze" }.into(),
        if model.opened {
            "enter close"
        } else {
            "enter open"
        }
        .into(),
    ];
    Paragraph::new(joined(&parts, "  ", width)).style(Style::new().add_modifier(Modifier::DIM))
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e7 => format!("{:.1} M", value / 1e6),
        value if value >= 1e5 => format!("{:.1} k", value / 1e3),
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

/// The newest points, scaled to their highest.
fn sparkline(history: &[u64]) -> String {
    let shown = &history[history.len().saturating_sub(SPARKLINE)..];
    let highest = shown.iter().copied().max().unwrap_or(0).max(1);
    shown
        .iter()
        .map(|&value| match value {
            0 => ' ',
            value => BARS[((value * 8).div_ceil(highest) as usize).clamp(1, 8) - 1],
        })
        .collect()
}
