//! Charts with one column for each precision.

use amp_core::{Result, precision::Precision};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    FONT, HEIGHT,
    axis::{Axis, padded},
    failed, svg,
};
use crate::report::color::{ChartColor, LIMIT, TEXT};

/// The metric under one precision, with its confidence interval.
pub(in crate::report) struct Share {
    pub(in crate::report) precision: Precision,
    pub(in crate::report) value: f64,
    pub(in crate::report) interval: (f64, f64),
    /// The metric of each seed. Empty if there is only one seed.
    pub(in crate::report) each: Vec<f64>,
}

fn names(precisions: impl Iterator<Item = Precision>) -> Axis {
    Axis::names(precisions.map(|precision| precision.name().to_owned()).collect())
}

/// Draws for each precision a point with its confidence interval. Beside the point, draws the
/// metric of each seed.
pub(in crate::report) fn shares(shares: &[Share], y_label: &str) -> Result<String> {
    let ends = shares.iter().flat_map(|share| {
        [share.interval.0, share.interval.1].into_iter().chain(share.each.iter().copied())
    });
    let x = names(shares.iter().map(|share| share.precision));
    let y = Axis::linear(padded(ends), y_label);
    svg(HEIGHT, |area| {
        let mut chart = x.plane(&y, area)?;
        if y.range.contains(&0.0) {
            let zero = [(x.range.start, 0.0), (x.range.end, 0.0)];
            let zero = PathElement::new(zero, LIMIT.colour().stroke_width(2));
            chart.draw_series([zero]).map_err(failed)?;
        }
        for (place, share) in shares.iter().enumerate() {
            let (x, colour) = (place as f64, ChartColor::of(share.precision).colour());
            let (low, high) = share.interval;
            let bar = PathElement::new([(x, low), (x, high)], colour.stroke_width(2));
            chart.draw_series([bar]).map_err(failed)?;
            for end in [low, high] {
                let cap = [(x - 0.07, end), (x + 0.07, end)];
                let cap = PathElement::new(cap, colour.stroke_width(2));
                chart.draw_series([cap]).map_err(failed)?;
            }
            let point = Circle::new((x, share.value), 5, colour.filled());
            chart.draw_series([point]).map_err(failed)?;
            let dots = share.each.iter().map(|each| Circle::new((x + 0.2, *each), 3, colour));
            chart.draw_series(dots).map_err(failed)?;
        }
        Ok(())
    })
}

/// Draws one bar for each precision. Writes the value above the bar.
pub(in crate::report) fn bars(bars: &[(Precision, f64)], y_label: &str) -> Result<String> {
    let most = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let x = names(bars.iter().map(|(precision, _)| *precision));
    let y = Axis::linear(0.0..(most * 1.12).max(1e-9), y_label);
    svg(HEIGHT, |area| {
        let mut chart = x.plane(&y, area)?;
        let rectangles = bars.iter().enumerate().map(|(place, (precision, value))| {
            let x = place as f64;
            let corners = [(x - 0.3, 0.0), (x + 0.3, *value)];
            Rectangle::new(corners, ChartColor::of(*precision).colour().filled())
        });
        chart.draw_series(rectangles).map_err(failed)?;
        let style =
            FONT.into_font().color(&TEXT.colour()).pos(Pos::new(HPos::Center, VPos::Bottom));
        let heights = bars.iter().enumerate().map(|(place, (_, value))| {
            let at = (place as f64, *value + most * 0.01);
            Text::new(format!("{value:.2}"), at, style.clone())
        });
        chart.draw_series(heights).map_err(failed)?;
        Ok(())
    })
}
