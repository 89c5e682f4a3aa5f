//! Axes whose ticks are at round numbers, and the chart area between an x axis and a y axis (the
//! "plane").

use std::ops::Range;

use amp_core::Result;
use plotters::{
    coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    prelude::*,
};

use super::{Area, FONT, failed};
use crate::report::color::{GRID, PAPER, TEXT};

/// One axis of a chart: its range, ticks, labels and title.
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    ticks: Vec<f64>,
    label: Box<dyn Fn(f64) -> String>,
    title: String,
    room: u32,
}

/// The area of a chart between its axes, which are already drawn.
pub(super) type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Ticked, Ticked>>;

/// A range of numbers together with the ticks to draw, in the form that the drawing library needs.
pub(super) struct Ticked {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The average width of a digit or letter in pixels.
const LETTER: f64 = 7.1;

impl Axis {
    fn new(
        range: Range<f64>,
        ticks: Vec<f64>,
        title: &str,
        label: impl Fn(f64) -> String + 'static,
    ) -> Self {
        let longest = ticks.iter().map(|tick| label(*tick).chars().count()).max().unwrap_or(0);
        let room = LETTER.mul_add(longest as f64, 32.0) as u32;
        Self { range, ticks, label: Box::new(label), title: title.to_owned(), room }
    }

    /// Returns an axis with ticks at round numbers. The labels have as many decimals as the
    /// distance between the ticks requires.
    pub(super) fn linear(range: Range<f64>, title: &str) -> Self {
        let rough = (range.end - range.start) / 5.0;
        let power = 10.0_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = multiples(&range, step);
        Self::new(range, ticks, title, move |tick| {
            // A tick at zero is never labelled "−0".
            minus(&format!("{:.decimals$}", if tick.abs() < step / 2.0 { 0.0 } else { tick }))
        })
    }

    /// Returns a logarithmic axis. `range` is a range of exponents of `base`. The exponents of two
    /// neighbouring ticks differ by the smallest power of 2 (1, 2, 4, …) with which the axis has
    /// about `most` ticks or fewer.
    pub(super) fn powers(base: u32, range: Range<f64>, most: f64, title: &str) -> Self {
        let steps = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
        let wide = |step: &f64| (range.end - range.start) / step <= most;
        let step = steps.into_iter().find(wide).unwrap_or(64.0);
        let ticks = multiples(&range, step);
        Self::new(range, ticks, title, move |tick| format!("{base}{}", superscript(tick)))
    }

    /// Returns this axis without labels and title, for a chart that is above another chart with the
    /// same x axis.
    pub(super) fn unlabelled(&self) -> Self {
        let (range, ticks) = (self.range.clone(), self.ticks.clone());
        Self { range, ticks, label: Box::new(|_| String::new()), title: String::new(), room: 0 }
    }

    /// Returns an axis with one position for each name: 0, 1, …
    pub(super) fn names(names: Vec<String>) -> Self {
        let ticks: Vec<f64> = (0..names.len()).map(|place| place as f64).collect();
        let range = -0.5..names.len() as f64 - 0.5;
        Self::new(range, ticks, "", move |tick| {
            names.get(tick.round() as usize).cloned().unwrap_or_default()
        })
    }

    /// Draws the chart area with this axis as the x axis, and `y` as the y axis.
    pub(super) fn plane<'a, 'b>(&self, y: &Self, area: &'a Area<'b>) -> Result<Plane<'a, 'b>> {
        self.plane_beside(y, y.room, area)
    }

    /// Draws the chart area as `plane` does, but leaves `room` pixels to its left for the labels of
    /// `y`. Charts above one another have the same left edge if they get the same `room`.
    pub(super) fn plane_beside<'a, 'b>(
        &self,
        y: &Self,
        room: u32,
        area: &'a Area<'b>,
    ) -> Result<Plane<'a, 'b>> {
        let coordinate =
            |axis: &Self| Ticked { range: axis.range.clone(), ticks: axis.ticks.clone() };
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(if self.title.is_empty() { self.room.min(26) } else { 44 })
            .y_label_area_size(room)
            .build_cartesian_2d(coordinate(self), coordinate(y))
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(&self.title)
            .x_label_formatter(&|tick| (self.label)(*tick))
            .y_desc(&y.title)
            .y_label_formatter(&|tick| (y.label)(*tick))
            .axis_style(TEXT.colour())
            .bold_line_style(GRID.colour())
            .light_line_style(PAPER.colour())
            .label_style(FONT.into_font().color(&TEXT.colour()))
            .draw()
            .map_err(failed)?;
        Ok(chart)
    }

    /// Returns how many pixels the labels and the title of this axis need beside the chart area.
    pub(super) fn room(&self) -> u32 {
        self.room
    }
}

fn multiples(range: &Range<f64>, step: f64) -> Vec<f64> {
    // Because of the tolerance 1e-9, a tick at an end of the range is not lost if the division
    // rounds.
    let first = (range.start / step - 1e-9).ceil() as i64;
    let last = (range.end / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Returns the range of the values, extended by some space at its two ends. The range is not empty
/// even if all values are equal.
pub(super) fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if !(low.is_finite() && high.is_finite()) {
        return 0.0..1.0;
    }
    let room = ((high - low) * 0.06).max(high.abs().max(1e-6) * 1e-3);
    low - room..high + room
}

fn minus(number: &str) -> String {
    number.replace('-', "−")
}

/// Formats a whole number in superscript digits.
pub(in crate::report) fn superscript(number: f64) -> String {
    let letter = |letter: char| match letter {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => digit.to_digit(10).and_then(|d| char::from_u32(0x2070 + d)).unwrap_or(digit),
    };
    format!("{number:.0}").chars().map(letter).collect()
}
