//! Charts of values over optimizer steps: losses and the loss scale.

use amp_core::{Result, precision::Precision};
use plotters::prelude::*;

use super::{
    HEIGHT,
    axis::{Axis, padded},
    failed, svg,
};
use crate::report::color::{ALARM, ChartColor, LIMIT};

/// Draws one line for each precision. The x axis is the number of applied optimizer steps.
pub(in crate::report) fn lines(
    lines: &[(Precision, Vec<(f64, f64)>)],
    y_label: &str,
) -> Result<String> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let last = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let x = Axis::linear(0.0..last, "optimizer steps applied");
    let y = Axis::linear(padded(points().map(|(_, y)| *y)), y_label);
    svg(HEIGHT, |area| {
        let mut chart = x.plane(&y, area)?;
        if y.range.contains(&0.0) && y.range.start < 0.0 {
            let zero = PathElement::new([(0.0, 0.0), (last, 0.0)], LIMIT.colour());
            chart.draw_series([zero]).map_err(failed)?;
        }
        for (precision, points) in lines {
            let colour = ChartColor::of(*precision).colour();
            let drawn = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(drawn).map_err(failed)?;
            let ends = points.iter().map(|point| Circle::new(*point, 2, colour.filled()));
            chart.draw_series(ends).map_err(failed)?;
        }
        Ok(())
    })
}

/// Draws the loss scale as a step function on an axis of powers of two. Crosses mark skipped steps.
pub(in crate::report) fn scale(
    precision: Precision,
    scale: &[(f64, f64)],
    skips: &[(f64, f64)],
) -> Result<String> {
    let exponent = |(x, y): &(f64, f64)| (*x, y.max(f64::MIN_POSITIVE).log2());
    let skips: Vec<(f64, f64)> = skips.iter().map(exponent).collect();
    let mut stairs: Vec<(f64, f64)> = Vec::new();
    for (x, y) in scale.iter().map(exponent) {
        // The loss scale is constant until it changes, so this draws a horizontal line, then a
        // vertical one.
        stairs.extend(stairs.last().map(|(_, before)| (x, *before)));
        stairs.push((x, y));
    }
    let all = || stairs.iter().chain(&skips);
    let last = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let low = all().map(|(_, y)| *y).fold(f64::INFINITY, f64::min).floor() - 1.0;
    let high = all().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max).ceil() + 1.0;
    let x = Axis::linear(0.0..last, "optimizer steps attempted");
    let y = Axis::powers(2, low..high, 8.0, "loss scale");
    svg(HEIGHT, |area| {
        let mut chart = x.plane(&y, area)?;
        let colour = ChartColor::of(precision).colour();
        chart
            .draw_series(LineSeries::new(stairs.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?;
        let crosses = skips.iter().map(|at| Cross::new(*at, 5, ALARM.colour().stroke_width(2)));
        chart.draw_series(crosses).map_err(failed)?;
        Ok(())
    })
}
