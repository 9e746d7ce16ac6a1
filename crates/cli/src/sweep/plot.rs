//! `sweep --plot`: memory over the context as a stack with the devices' ends, and speed over the context for every number of
//! sequences, of the first combination of everything else.

use std::path::Path;

use plimsoll::math::device::Device;
use plimsoll::math::throughput::float;
use plimsoll::math::units::Bytes;
use plimsoll::planner::PlanError;
use plimsoll::planner::point::{Parts, Point};
use plimsoll::planner::sweep::{Line, Sweep, several};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Points of a curve.
const SAMPLES: u64 = 96;
/// Curves of one drawing.
const CURVES: u64 = 12;
const SIZE: (u32, u32) = (1100, 1000);
/// What is left of a row is for names.
const WIDTH_OF_CHART: u32 = 930;
const FONT: &str = "sans-serif";

/// A band of the stack: its name, its height, its colour.
type Band = (&'static str, fn(&Parts) -> Bytes, RGBColor);

/// The bands of the stack, from the bottom.
const BANDS: [Band; 7] = [
    ("weights", |parts| parts.weights, RGBColor(69, 117, 180)),
    ("KV cache", |parts| parts.kv_cache, RGBColor(90, 174, 97)),
    ("recurrent state", |parts| parts.recurrent_state, RGBColor(64, 182, 196)),
    ("compute", |parts| parts.compute, RGBColor(253, 174, 97)),
    ("output", |parts| parts.output, RGBColor(194, 120, 188)),
    ("driver context", |parts| parts.driver_context, RGBColor(170, 170, 170)),
    ("other", |parts| parts.other, RGBColor(210, 210, 210)),
];

/// Colours that stay apart for people who see fewer of them.
const CURVE_COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 0),
];

fn colour(index: usize) -> RGBColor {
    CURVE_COLOURS.get(index % CURVE_COLOURS.len()).copied().unwrap_or(BLACK)
}

fn gib(bytes: Bytes) -> f64 {
    float(bytes.get()) / 1_073_741_824.0
}

/// A context as people write it.
fn tokens(value: &f64) -> String {
    if *value < 1.0 {
        "0".to_owned()
    } else if *value >= 1_048_576.0 {
        format!("{:.3}m", value / 1_048_576.0).replace(".000", "")
    } else {
        format!("{:.1}k", value / 1024.0).replace(".0k", "k")
    }
}

/// Steps of the axis that are whole thousands of tokens.
fn ticks(most: u64) -> f64 {
    let mut step = 1024_u64;
    while most / step > 10 {
        step = step.saturating_mul(2);
    }
    float(step)
}

/// What is drawn.
struct Picture {
    title: String,
    /// Tokens and what they take; nothing where the engine refuses.
    stack: Vec<(u64, Point)>,
    /// Ends of devices.
    devices: Vec<(String, f64)>,
    /// Name, and tokens per second over tokens.
    curves: Vec<(String, Vec<(f64, f64)>)>,
}

fn failed(path: &Path, error: impl ToString) -> PlanError {
    PlanError::request("plot", format!("{}: {}", path.display(), error.to_string()), "a file that can be written")
}

/// Contexts between the smallest and the largest of the sweep.
fn samples(sweep: &Sweep<'_>) -> Vec<u64> {
    let all = || (0..sweep.width()).map(|column| sweep.context(column));
    let most = all().max().unwrap_or(0);
    let least = all().min().filter(|least| *least < most).unwrap_or(256.min(most));
    let mut out: Vec<u64> = (0..=SAMPLES).map(|step| least + (most - least) / SAMPLES * step).collect();
    out.push(most);
    out.dedup();
    out
}

fn picture(sweep: &Sweep<'_>) -> Result<Picture, PlanError> {
    let contexts = samples(sweep);
    let first = sweep.line(0)?;
    let label = first.label().clone();
    let mut stack = Vec::new();
    for context in &contexts {
        if let Some(point) = first.figures(*context)? {
            stack.push((*context, point));
        }
    }
    let end = |set: &Vec<_>| (several(set), set.iter().map(|device: &Device| gib(device.usable.bytes)).sum());
    let devices = sweep.devices()?.iter().map(end).collect();
    let mut curves = Vec::new();
    for index in 0..sweep.sequences().min(CURVES) {
        let line: Line<'_> = sweep.line(index)?;
        let mut curve = Vec::new();
        for context in &contexts {
            let row = line.row(*context)?;
            if let (Some(rate), true) = (row.aggregate_decode_tokens_per_s, row.headroom.is_some_and(|bytes| bytes >= 0)) {
                curve.push((float(*context), rate.get()));
            }
        }
        let count = line.label().sequences;
        curves.push((if count == 1 { "1 sequence".to_owned() } else { format!("{count} sequences") }, curve));
    }
    Ok(Picture {
        title: format!(
            "{} · {} · cache {} · {} {}",
            sweep.model_name(),
            label.quant,
            label.kv_type,
            label.engine,
            label.engine_version
        ),
        stack,
        devices,
        curves,
    })
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Names with their colours beside a chart, from the top.
fn legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>, names: &[(String, RGBColor)]) -> Drawn<B> {
    for (index, (name, colour)) in (0_i32..).zip(names) {
        let y = 56 + index * 24;
        area.draw(&Rectangle::new([(4, y), (20, y + 12)], colour.filled()))?;
        area.draw(&Text::new(name.as_str(), (28, y), (FONT, 16)))?;
    }
    Ok(())
}

/// The axis of tokens: from nothing, where the first point is near it.
fn tokens_axis(least: u64, most: u64) -> std::ops::Range<f64> {
    let start = if least <= most / 4 { 0.0 } else { float(least) };
    start..float(most).max(start + 1.0)
}

fn memory<B: DrawingBackend>(area: &DrawingArea<B, Shift>, picture: &Picture) -> Drawn<B> {
    let (Some((least, _)), Some((most, _))) = (picture.stack.first(), picture.stack.last()) else { return Ok(()) };
    let (area, beside) = area.split_horizontally(WIDTH_OF_CHART);
    let sum = |point: &Point, bands: usize| -> f64 { BANDS.iter().take(bands).map(|(_, of, _)| gib(of(&point.parts))).sum() };
    let used = picture.stack.iter().map(|(_, point)| sum(point, BANDS.len())).fold(0.0, f64::max);
    // A device far beyond what is used would press everything else to the bottom.
    let mut shown: Vec<&(String, f64)> = picture.devices.iter().filter(|(_, end)| *end < used * 3.0).collect();
    shown.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    let top = (shown.iter().map(|(_, end)| *end).fold(used, f64::max) * 1.12).max(0.1);
    let axis = tokens_axis(*least, *most);
    let start = axis.start;
    let mut chart = ChartBuilder::on(&area)
        .caption("memory, GiB", (FONT, 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(axis.step(ticks(*most)), 0.0..top)?;
    chart
        .configure_mesh()
        .x_labels(12)
        .x_desc("tokens per sequence")
        .x_label_formatter(&tokens)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 15))
        .light_line_style(WHITE)
        .draw()?;
    let mut names = Vec::new();
    // The highest band first: each is covered by those below it.
    for bands in (1..=BANDS.len()).rev() {
        let Some((name, of, colour)) = BANDS.get(bands - 1) else { continue };
        if picture.stack.iter().all(|(_, point)| of(&point.parts).get() == 0) {
            continue;
        }
        let edge = picture.stack.iter().map(|(context, point)| (float(*context), sum(point, bands)));
        chart.draw_series(AreaSeries::new(edge, 0.0, colour.filled()))?;
        names.push(((*name).to_owned(), *colour));
    }
    let on_devices = picture.stack.iter().map(|(context, point)| (float(*context), gib(point.devices)));
    chart.draw_series(LineSeries::new(on_devices, BLACK.stroke_width(2)))?;
    names.push(("all on devices".to_owned(), BLACK));
    let mut written: Option<f64> = None;
    let mut text = String::new();
    for (index, (name, end)) in shown.iter().enumerate() {
        chart.draw_series(DashedLineSeries::new([(start, *end), (float(*most), *end)], 8, 5, RED.stroke_width(2)))?;
        // Names of lines that lie close together share one place.
        let height = *written.get_or_insert(*end);
        if !text.is_empty() {
            text.push_str(" · ");
        }
        text.push_str(&format!("{name}: {end:.1} GiB"));
        let last = shown.get(index + 1).is_none_or(|(_, next)| next - height > top * 0.06);
        if last {
            let at = (start + (float(*most) - start) * 0.01, end + top * 0.04);
            chart.draw_series([Text::new(std::mem::take(&mut text), at, (FONT, 15).into_font().color(&RED))])?;
            written = None;
        }
    }
    legend(&beside, &names)
}

fn speed<B: DrawingBackend>(area: &DrawingArea<B, Shift>, picture: &Picture) -> Drawn<B> {
    let rates = || picture.curves.iter().flat_map(|(_, curve)| curve).map(|(_, rate)| *rate);
    let (Some((least, _)), Some((most, _))) = (picture.stack.first(), picture.stack.last()) else { return Ok(()) };
    let (area, beside) = area.split_horizontally(WIDTH_OF_CHART);
    let bottom = (rates().fold(f64::INFINITY, f64::min) * 0.8).max(1e-3);
    let top = (rates().fold(0.0, f64::max) * 1.3).max(bottom * 2.0);
    let mut chart = ChartBuilder::on(&area)
        .caption("decoding, tokens per second of all sequences half way through their contexts", (FONT, 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(tokens_axis(*least, *most).step(ticks(*most)), (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(12)
        .x_desc("tokens per sequence; curves end where they no longer fit")
        .x_label_formatter(&tokens)
        .y_label_formatter(&|value| if *value >= 10.0 { format!("{value:.0}") } else { format!("{value:.1}") })
        .label_style((FONT, 15))
        .light_line_style(WHITE)
        .draw()?;
    let mut names = Vec::new();
    for (index, (name, curve)) in picture.curves.iter().enumerate() {
        names.push((name.clone(), colour(index)));
        chart.draw_series(LineSeries::new(curve.iter().copied(), colour(index).stroke_width(3)))?;
    }
    legend(&beside, &names)
}

fn page<B: DrawingBackend>(root: &DrawingArea<B, Shift>, picture: &Picture) -> Drawn<B> {
    root.fill(&WHITE)?;
    let rest = root.margin(10, 0, 0, 0).titled(&picture.title, (FONT, 24))?;
    let modelled = picture.curves.iter().any(|(_, curve)| !curve.is_empty());
    if modelled {
        let (above, below) = rest.split_vertically((58).percent_height());
        memory(&above, picture)?;
        speed(&below, picture)?;
    } else {
        memory(&rest, picture)?;
    }
    root.present()
}

/// Draws into a file whose name says how.
pub(super) fn draw(sweep: &Sweep<'_>, path: &Path) -> Result<(), PlanError> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !matches!(ending.as_str(), "svg" | "png") {
        return Err(PlanError::request("plot", format!("{:?}", path.display().to_string()), "a file that ends in .svg or .png"));
    }
    plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| failed(path, "the font cannot be read"))?;
    let picture = picture(sweep)?;
    if picture.stack.is_empty() {
        return Err(PlanError::request("plot", "a first combination that the engine refuses", "one with figures to draw"));
    }
    // The backends write when they are told to, and would panic where they cannot: asked before.
    std::fs::File::create(path).map_err(|error| failed(path, error))?;
    if ending == "svg" {
        page(&SVGBackend::new(path, SIZE).into_drawing_area(), &picture).map_err(|error| failed(path, error))
    } else {
        page(&BitMapBackend::new(path, SIZE).into_drawing_area(), &picture).map_err(|error| failed(path, error))
    }
}
