//! Charts as SVG, each for light and for dark surroundings.

use std::ops::Range;

use amp_core::{Error, Result, precision::Precision};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// Colours of the surroundings and of the precisions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    background: RGBColor,
    ink: RGBColor,
    grid: RGBColor,
    alarm: RGBColor,
    series: [RGBColor; 6],
}

/// Okabe and Ito's colours, told apart by most colour-blind readers.
pub(super) const LIGHT: Palette = Palette {
    background: RGBColor(255, 255, 255),
    ink: RGBColor(51, 51, 51),
    grid: RGBColor(225, 225, 225),
    alarm: RGBColor(190, 20, 20),
    series: [
        RGBColor(20, 20, 20),
        RGBColor(213, 94, 0),
        RGBColor(0, 114, 178),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(150, 120, 0),
    ],
};

/// The same on black, lighter.
pub(super) const DARK: Palette = Palette {
    background: RGBColor(24, 26, 27),
    ink: RGBColor(220, 220, 220),
    grid: RGBColor(58, 61, 63),
    alarm: RGBColor(255, 110, 110),
    series: [
        RGBColor(240, 240, 240),
        RGBColor(255, 150, 60),
        RGBColor(90, 180, 240),
        RGBColor(70, 215, 165),
        RGBColor(235, 160, 205),
        RGBColor(235, 215, 90),
    ],
};

impl Palette {
    fn of(&self, precision: Precision) -> RGBColor {
        let place = Precision::ALL.iter().position(|known| *known == precision);
        self.series[place.unwrap_or_default()]
    }
}

const SIZE: (u32, u32) = (720, 320);
const FONT: &str = "sans-serif";

/// A share with its interval.
pub(super) struct Share {
    pub(super) precision: Precision,
    pub(super) value: f64,
    pub(super) interval: (f64, f64),
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::config(format!("a chart could not be drawn: {error}"))
}

fn svg(
    palette: &Palette,
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<()>,
) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&palette.background).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn whole(value: &f64) -> String {
    format!("{value:.0}")
}

/// Some room on both sides, and never an empty range.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if !(low.is_finite() && high.is_finite()) {
        return 0.0..1.0;
    }
    let room = ((high - low) * 0.06).max(high.abs().max(1e-6) * 1e-3);
    low - room..high + room
}

/// Lines over optimizer steps, labelled in a legend.
pub(super) fn lines(
    palette: &Palette,
    lines: &[(Precision, Vec<(f64, f64)>)],
    y_label: &str,
) -> Result<String> {
    svg(palette, |area| {
        let points = || lines.iter().flat_map(|(_, points)| points);
        let last = points().map(|(x, _)| *x).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..last, padded(points().map(|(_, y)| *y)))
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("optimizer steps")
            .x_label_formatter(&whole)
            .y_desc(y_label)
            .axis_style(palette.ink)
            .bold_line_style(palette.grid)
            .light_line_style(palette.background)
            .label_style((FONT, 13).into_font().color(&palette.ink))
            .draw()
            .map_err(failed)?;
        for (precision, points) in lines {
            let colour = palette.of(*precision);
            let drawn = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(drawn).map_err(failed)?.label(precision.name()).legend(
                move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)),
            );
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(palette.background.mix(0.85))
            .border_style(palette.grid)
            .label_font((FONT, 13).into_font().color(&palette.ink))
            .draw()
            .map_err(failed)
    })
}

/// The loss scale as steps, on a scale of powers of two, with crosses where steps were skipped.
pub(super) fn scale(
    palette: &Palette,
    precision: Precision,
    scale: &[(f64, f64)],
    skips: &[(f64, f64)],
) -> Result<String> {
    let exponent = |(x, y): &(f64, f64)| (*x, y.max(f64::MIN_POSITIVE).log2());
    let skips: Vec<(f64, f64)> = skips.iter().map(exponent).collect();
    let mut stairs: Vec<(f64, f64)> = Vec::new();
    for (x, y) in scale.iter().map(exponent) {
        // The scale holds until it changes.
        stairs.extend(stairs.last().map(|(_, before)| (x, *before)));
        stairs.push((x, y));
    }
    svg(palette, |area| {
        let all = || stairs.iter().chain(&skips);
        let last = all().map(|(x, _)| *x).fold(1.0, f64::max);
        let heights = padded(all().map(|(_, y)| *y));
        let heights = heights.start.floor() - 1.0..heights.end.ceil() + 1.0;
        // Whole exponents alone.
        let labels = ((heights.end - heights.start) as usize + 1).min(12);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..last, heights)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("attempted steps")
            .x_label_formatter(&whole)
            .y_desc("loss scale")
            .y_labels(labels)
            .y_label_formatter(&|exponent| format!("2^{exponent:.0}"))
            .axis_style(palette.ink)
            .bold_line_style(palette.grid)
            .light_line_style(palette.background)
            .label_style((FONT, 13).into_font().color(&palette.ink))
            .draw()
            .map_err(failed)?;
        let colour = palette.of(precision);
        chart
            .draw_series(LineSeries::new(stairs.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?;
        let crosses = skips.iter().map(|at| Cross::new(*at, 5, palette.alarm.stroke_width(2)));
        chart.draw_series(crosses).map_err(failed)?;
        Ok(())
    })
}

/// Points with their intervals, one column for each precision.
pub(super) fn shares(palette: &Palette, shares: &[Share]) -> Result<String> {
    let percent = |share: f64| 100.0 * share;
    svg(palette, |area| {
        let ends = shares.iter().flat_map(|share| [share.interval.0, share.interval.1]);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(-0.5..shares.len() as f64 - 0.5, padded(ends.map(percent)))
            .map_err(failed)?;
        mesh_without_x(&mut chart, palette, "validation metric, %")?;
        for (place, share) in shares.iter().enumerate() {
            let (x, colour) = (place as f64, palette.of(share.precision));
            let (low, high) = (percent(share.interval.0), percent(share.interval.1));
            let bar = PathElement::new([(x, low), (x, high)], colour.stroke_width(2));
            chart.draw_series([bar]).map_err(failed)?;
            for end in [low, high] {
                let cap = [(x - 0.06, end), (x + 0.06, end)];
                let cap = PathElement::new(cap, colour.stroke_width(2));
                chart.draw_series([cap]).map_err(failed)?;
            }
            let point = Circle::new((x, percent(share.value)), 5, colour.filled());
            chart.draw_series([point]).map_err(failed)?;
        }
        columns(&chart, area, palette, shares.iter().map(|share| share.precision))
    })
}

/// One bar for each precision.
pub(super) fn bars(palette: &Palette, bars: &[(Precision, f64)], y_label: &str) -> Result<String> {
    svg(palette, |area| {
        let most = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(-0.5..bars.len() as f64 - 0.5, 0.0..(most * 1.1).max(1e-9))
            .map_err(failed)?;
        mesh_without_x(&mut chart, palette, y_label)?;
        let rectangles = bars.iter().enumerate().map(|(place, (precision, value))| {
            let x = place as f64;
            Rectangle::new([(x - 0.3, 0.0), (x + 0.3, *value)], palette.of(*precision).filled())
        });
        chart.draw_series(rectangles).map_err(failed)?;
        columns(&chart, area, palette, bars.iter().map(|(precision, _)| *precision))
    })
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn mesh_without_x(chart: &mut Chart<'_, '_>, palette: &Palette, y_label: &str) -> Result<()> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(y_label)
        .axis_style(palette.ink)
        .bold_line_style(palette.grid)
        .light_line_style(palette.background)
        .label_style((FONT, 13).into_font().color(&palette.ink))
        .draw()
        .map_err(failed)
}

/// Writes the precisions' names below their columns.
fn columns(
    chart: &Chart<'_, '_>,
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    palette: &Palette,
    names: impl Iterator<Item = Precision>,
) -> Result<()> {
    let style = (FONT, 13).into_font().color(&palette.ink).pos(Pos::new(HPos::Center, VPos::Top));
    let bottom = chart.plotting_area().get_pixel_range().1.end;
    for (place, precision) in names.enumerate() {
        let (x, _) = chart.backend_coord(&(place as f64, 0.0));
        area.draw_text(precision.name(), &style, (x, bottom + 8)).map_err(failed)?;
    }
    Ok(())
}
