//! Draws the live view.

use instrumentation::snapshot::{DeviceExits, ExitSnapshot};
use instrumentation::table::{ExitReason, Isa};
use instrumentation::user_exit::UserExitKind;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};

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
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(detail),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title_line(model), title);
    frame.render_widget(split_line(model), split);
    let rows = model.rows();
    draw_table(frame, table, model, &rows, palette);
    if let (true, Some(row), Some(latest)) =
        (model.opened, rows.get(model.selected), model.latest())
    {
        frame.render_widget(detail_lines(row, latest), opened);
    }
    frame.render_widget(status_line(model, palette), status);
}

fn title_line(model: &Model) -> Paragraph<'_> {
    let text = match model.latest() {
        None => format!("{}  waiting for figures", model.vm),
        Some(latest) => {
            let isa = latest.isa.map_or("KVM", |isa| match isa {
                Isa::Vmx => "VMX",
                Isa::Svm => "SVM",
            });
            let rate = match model.interval() {
                Some((totals, seconds)) if seconds > 0.0 => {
                    format!("  {}/s", figure(totals.exits as f64 / seconds))
                }
                _ => String::new(),
            };
            format!(
                "{}  {isa}, vCPUs: {}  exits: {}{rate}",
                model.vm,
                latest.vcpus.len(),
                latest.totals.exits
            )
        }
    };
    Paragraph::new(text).style(Style::new().add_modifier(Modifier::BOLD))
}

fn split_line(model: &Model) -> Paragraph<'_> {
    let unavailable = model
        .latest()
        .and_then(|latest| latest.unavailable.as_ref());
    if let Some(why) = unavailable {
        return Paragraph::new(format!("No figures by reason: {why}"));
    }
    let Some((totals, _)) = model.interval() else {
        return Paragraph::new("");
    };
    let parts = [
        ("guest", totals.guest_cycles),
        ("KVM", totals.cycles),
        ("user space", totals.userspace_cycles),
        ("asleep", totals.blocked_cycles),
        ("preempted", totals.preempted_cycles),
    ];
    let sum: u64 = parts.iter().filter_map(|(_, ticks)| *ticks).sum();
    let texts: Vec<String> = parts
        .iter()
        .map(|(name, ticks)| {
            let share = ticks.unwrap_or(0) as f64 * 100.0 / sum.max(1) as f64;
            format!("{name} {share:.1} %")
        })
        .collect();
    Paragraph::new(format!("Time: {}", texts.join("  ")))
}

fn draw_table(frame: &mut Frame, area: Rect, model: &Model, rows: &[Row], palette: Palette) {
    let latest = model.latest();
    let exits = latest.map_or(0, |latest| latest.totals.exits).max(1) as f64;
    let cycles = latest
        .and_then(|latest| latest.totals.cycles)
        .unwrap_or(0)
        .max(1) as f64;
    let header = TableRow::new([
        right("#"),
        Cell::new("Reason"),
        right("Rate/s"),
        right("Exits"),
        right("Exits%"),
        right("Time%"),
        right("Avg"),
        Cell::new("History"),
    ])
    .style(palette.foreground(Color::Cyan).add_modifier(Modifier::BOLD));
    let lines = rows.iter().map(|row| {
        let counters = &row.reason.counters;
        let average = counters.cycles.checked_div(counters.exits).unwrap_or(0);
        TableRow::new([
            right(&row.reason.label(latest.and_then(|latest| latest.isa))),
            Cell::new(row.reason.symbol.to_string()),
            right(&figure(row.rate)),
            right(&counters.exits.to_string()),
            right(&format!("{:.1}", counters.exits as f64 * 100.0 / exits)),
            right(&format!("{:.1}", counters.cycles as f64 * 100.0 / cycles)),
            right(&average.to_string()),
            Cell::new(sparkline(&row.history)).style(palette.foreground(Color::Green)),
        ])
    });
    let widths = [
        Constraint::Length(5),
        Constraint::Length(22),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(SPARKLINE as u16),
    ];
    let table = Table::new(lines, widths)
        .header(header)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(model.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The devices behind a reason and its share on each vCPU.
fn detail_lines(row: &Row, latest: &ExitSnapshot) -> Paragraph<'static> {
    let mut lines = vec![Line::styled(
        format!("{}: devices in user space", row.reason.name),
        Style::new().add_modifier(Modifier::BOLD),
    )];
    let mut devices = devices_behind(row.reason.number, latest);
    devices.sort_by_key(|(_, device)| std::cmp::Reverse(device.exits));
    if devices.is_empty() {
        lines.push(Line::from("  none: KVM serves this reason itself"));
    }
    for (kind, device) in devices.into_iter().take(6) {
        let microseconds = device.nanoseconds / 1000;
        lines.push(Line::from(format!(
            "  {:<16} {:<12} {:<10} {} B  {:>10} exits  {:>10} us",
            device.id,
            device.address.as_deref().unwrap_or(""),
            kind.as_str(),
            device.size,
            device.exits,
            microseconds
        )));
    }
    let vcpus: Vec<String> = latest
        .vcpus
        .iter()
        .filter_map(|vcpu| {
            let reasons = vcpu.reasons.as_ref()?;
            let own = reasons.iter().find(|own| own.number == row.reason.number)?;
            Some(format!("{}: {}", vcpu.id, own.counters.exits))
        })
        .collect();
    lines.push(Line::from(format!("  by vCPU  {}", vcpus.join("  "))));
    Paragraph::new(lines)
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

fn status_line(model: &Model, palette: Palette) -> Paragraph<'_> {
    if let Some(error) = &model.error {
        return Paragraph::new(error.as_str()).style(palette.foreground(Color::Red));
    }
    let filter = match (&model.filter, model.typing) {
        (Some(filter), true) => format!("filter: {filter}_"),
        (Some(filter), false) => format!("/ filter: {filter}"),
        (None, _) => "/ filter".into(),
    };
    let freeze = if model.frozen { "f go on" } else { "f freeze" };
    let open = if model.opened {
        "enter close"
    } else {
        "enter open"
    };
    Paragraph::new(Line::from(vec![Span::raw(format!(
        "q quit  s sort: {}  {filter}  {freeze}  {open}",
        model.sort.label()
    ))]))
    .style(Style::new().add_modifier(Modifier::DIM))
}

fn right(text: &str) -> Cell<'static> {
    Cell::new(Line::from(text.to_string()).right_aligned())
}

fn figure(value: f64) -> String {
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
