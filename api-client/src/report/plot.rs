//! The plots of a report, as SVG that takes its colours from the page.
//!
//! plotters writes fixed colours; ours are stand-ins that are replaced by CSS
//! variables afterwards, so one drawing serves the light and the dark page.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::timeline::Timeline;

/// Series that have a colour of their own; the others share the last one.
pub const COLOURS: usize = 9;

/// A plot that could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("Cannot draw the plot: {0}")]
pub struct PlotError(String);

/// A series of a stacked plot: its name and one value a bucket.
pub type Series<'a> = (&'a str, Vec<f64>);

const SIZE: (u32, u32) = (960, 320);
const TEXT: RGBColor = RGBColor(254, 1, 254);
const GRID: RGBColor = RGBColor(254, 2, 254);
const BAND: RGBColor = RGBColor(254, 4, 254);

fn stand_in(index: usize) -> RGBColor {
    RGBColor(254, 3, index.min(COLOURS - 1) as u8)
}

/// What the variables are outside of our page: the colours of its light theme.
const LIGHT: [&str; COLOURS] = [
    "#3465a4", "#e08e0b", "#4e9a46", "#b4446c", "#6d4aa5", "#2b9aa0", "#8f6b32", "#d2603a",
    "#8d9096",
];

/// Replaces the stand-ins by the page's variables.
fn themed(svg: &str) -> String {
    let mut themed = svg
        .replace("#FE01FE", "var(--text, #22262b)")
        .replace("#FE02FE", "var(--grid, #d8d8d2)")
        .replace("#FE04FE", "var(--band, #e8e9e1)");
    for (index, light) in LIGHT.iter().enumerate() {
        themed = themed.replace(
            &format!("#FE03{index:02X}"),
            &format!("var(--c{index}, {light})"),
        );
    }
    // The page sets the width; the drawing keeps its shape.
    themed.replacen(
        &format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1),
        "role=\"img\"",
        1,
    )
}

/// Series stacked over time, the first one at the bottom; behind them bands from
/// one moment to another.
pub fn stacked(
    timeline: &Timeline,
    series: &[Series],
    unit: &str,
    bands: &[(f64, f64)],
) -> Result<String, PlotError> {
    let mut svg = String::new();
    draw_stacked(&mut svg, timeline, series, unit, bands)
        .map_err(|error| PlotError(error.to_string()))?;
    Ok(themed(&svg))
}

fn draw_stacked(
    svg: &mut String,
    timeline: &Timeline,
    series: &[Series],
    unit: &str,
    bands: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut top = vec![0.0; timeline.buckets];
    let mut layers = Vec::new();
    for (index, (_, values)) in series.iter().enumerate() {
        for (sum, value) in top.iter_mut().zip(values) {
            *sum += value;
        }
        layers.push((index, top.clone()));
    }
    let highest = top
        .iter()
        .copied()
        .fold(0.0, f64::max)
        .max(f64::MIN_POSITIVE);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let label = TextStyle::from(("sans-serif", 13)).color(&TEXT);
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..timeline.end(timeline.buckets - 1), 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .x_desc("seconds")
        .y_desc(unit)
        .label_style(label.clone())
        .axis_desc_style(label.pos(Pos::new(HPos::Center, VPos::Center)))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    chart.draw_series(bands.iter().map(|&(start, end)| {
        Rectangle::new([(start, 0.0), (end, highest * 1.05)], BAND.filled())
    }))?;
    // From the highest layer down, so that each covers the ones below it.
    for (index, tops) in layers.into_iter().rev() {
        let steps = tops.iter().enumerate().flat_map(|(bucket, &value)| {
            let end = timeline.end(bucket);
            [(end - timeline.bucket_seconds, value), (end, value)]
        });
        chart.draw_series(AreaSeries::new(steps, 0.0, stand_in(index)))?;
    }
    root.present()?;
    Ok(())
}

/// Adds the names of series below a drawing that stands alone, without a page
/// to hold its legend.
pub fn with_legend(svg: &str, names: &[&str]) -> String {
    const COLUMN: u32 = 230;
    let columns = SIZE.0 / COLUMN;
    let rows = (names.len() as u32).div_ceil(columns);
    let mut legend = String::new();
    for (index, name) in names.iter().enumerate() {
        let place = index as u32;
        let (x, y) = (
            70 + place % columns * COLUMN,
            SIZE.1 + 4 + place / columns * 20,
        );
        let colour = LIGHT[index.min(COLOURS - 1)];
        // Names are the table's symbols and words of ours: nothing to escape.
        legend.push_str(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#22262b\">{name}</text>\n",
            x + 18,
            y + 11
        ));
    }
    let height = SIZE.1 + 8 + rows * 20;
    svg.replacen(
        &format!("viewBox=\"0 0 {} {}\"", SIZE.0, SIZE.1),
        &format!(
            "width=\"{}\" height=\"{height}\" viewBox=\"0 0 {} {height}\" style=\"background:#fdfdfb\"",
            SIZE.0, SIZE.0
        ),
        1,
    )
    .replacen("</svg>", &format!("{legend}</svg>"), 1)
}

/// 1234567 as 1.2 M, for the ends of grid lines.
pub fn short(value: f64) -> String {
    for (factor, suffix) in [(1e9, " G"), (1e6, " M"), (1e3, " k")] {
        if value >= factor {
            return format!("{:.1}{suffix}", value / factor);
        }
    }
    match value {
        0.0 => "0".into(),
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.0}"),
    }
}

/// Horizontal bars, one a row, longest value at full width. Rows are
/// `(label, value, text behind the bar)`.
pub fn bars(rows: &[(String, f64, String)]) -> Result<String, PlotError> {
    let mut svg = String::new();
    let height = 26 * rows.len().max(1) as u32 + 8;
    draw_bars(&mut svg, rows, height).map_err(|error| PlotError(error.to_string()))?;
    let svg = svg.replacen(
        &format!("width=\"{}\" height=\"{height}\"", SIZE.0),
        "role=\"img\"",
        1,
    );
    Ok(themed(&svg))
}

fn draw_bars(
    svg: &mut String,
    rows: &[(String, f64, String)],
    height: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    const LABELS: i32 = 220;
    const BARS: f64 = 560.0;
    let highest = rows
        .iter()
        .map(|row| row.1)
        .fold(f64::MIN_POSITIVE, f64::max);
    let root = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
    let style = TextStyle::from(("sans-serif", 14)).color(&TEXT);
    for (index, (label, value, text)) in rows.iter().enumerate() {
        let y = 26 * index as i32 + 6;
        let width = (value / highest * BARS).ceil() as i32;
        root.draw(&Text::new(
            label.clone(),
            (LABELS - 8, y + 10),
            style.pos(Pos::new(HPos::Right, VPos::Center)),
        ))?;
        root.draw(&Rectangle::new(
            [(LABELS, y), (LABELS + width, y + 20)],
            stand_in(0).filled(),
        ))?;
        root.draw(&Text::new(
            text.clone(),
            (LABELS + width + 8, y + 10),
            style.pos(Pos::new(HPos::Left, VPos::Center)),
        ))?;
    }
    root.present()?;
    Ok(())
}
