//! A histogram of the exponents of values. Below it, strips show which exponents each format can
//! represent.

use std::collections::BTreeMap;

use amp_core::Result;
use plotters::prelude::*;

use super::{axis::Axis, failed, svg};
use crate::{
    exponents::{Format, Histogram},
    report::color::{ChartColor, NORMAL, SUBNORMAL},
};

/// The height of the histogram, in SVG units.
const PLOT: u32 = 200;
/// The height of the strips with the formats' exponents, in SVG units.
const STRIPS: u32 = 140;
/// The range of exponents that the chart shows. Values with a smaller or larger exponent are drawn
/// at the edge.
const FURTHEST: (i32, i32) = (-80, 40);
/// The lower end of the y axis, as an exponent of ten. Smaller fractions are drawn at this end.
const LOWEST: f64 = -7.0;

/// The data of the chart.
pub(in crate::report) struct Shown<'a> {
    pub(in crate::report) histogram: &'a Histogram,
    /// The loss scale as an exponent of 2. `None` if training does not scale these values.
    pub(in crate::report) log2_scale: Option<i32>,
}

/// Computes for each exponent the fraction of the nonzero values that have this exponent after
/// multiplication by 2^`shift`.
fn shares(histogram: &Histogram, shift: i32) -> BTreeMap<i32, f64> {
    let all = histogram.nonzero().max(1) as f64;
    let mut shares = BTreeMap::new();
    for (exponent, bucket) in &histogram.buckets {
        let place = (exponent + shift).clamp(FURTHEST.0, FURTHEST.1);
        *shares.entry(place).or_insert(0.0) += bucket.count as f64 / all;
    }
    shares
}

/// Draws the histogram of the values as bars, and the histogram of the values times the loss scale
/// as a line. Below, on the same x axis, strips show the normal and the subnormal numbers of each
/// format.
pub(in crate::report) fn exponents(shown: &Shown<'_>) -> Result<String> {
    let own = shares(shown.histogram, 0);
    let scaled = shown.log2_scale.map(|shift| shares(shown.histogram, shift));
    let all = || own.iter().chain(scaled.iter().flatten());
    let f16 = Format::F16;
    let low = all().map(|(k, _)| *k).fold(f16.min_subnormal_exponent(), i32::min) - 1;
    let high = all().map(|(k, _)| *k).fold(f16.max_exponent(), i32::max) + 2;
    let range = f64::from(low)..f64::from(high);
    let least = all().map(|(_, share)| share.log10()).fold(0.0, f64::min);
    let least = least.floor().clamp(LOWEST, -1.0);
    let x = Axis::powers(2, range.clone(), 10.0, "magnitude");
    let y = Axis::powers(10, least..0.0, 8.0, "share of values");
    let formats: Vec<String> =
        Format::ALL.iter().rev().map(|format| short(*format).to_owned()).collect();
    let strips = Axis::names(formats);
    let room = y.room();
    svg(PLOT + STRIPS, |area| {
        let (upper, lower) = area.split_vertically(PLOT);
        let mut chart = x.unlabelled().plane_beside(&y, room, &upper)?;
        let bars = own.iter().map(|(exponent, share)| {
            let (x, y) = (f64::from(*exponent), share.log10().max(least));
            Rectangle::new([(x, least), (x + 1.0, y)], ChartColor::series(2).colour().filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        if let Some(scaled) = &scaled {
            let colour = ChartColor::series(1).colour().stroke_width(2);
            let outline = outline(scaled, least);
            chart.draw_series([PathElement::new(outline, colour)]).map_err(failed)?;
        }
        let mut chart = x.plane_beside(&strips, room, &lower)?;
        for (place, format) in Format::ALL.iter().rev().enumerate() {
            let y = place as f64;
            let edge = |exponent: i32| f64::from(exponent).clamp(range.start, range.end);
            let mut band = |from: i32, to: i32, color: ChartColor| {
                let corners = [(edge(from), y - 0.36), (edge(to), y + 0.36)];
                chart.draw_series([Rectangle::new(corners, color.colour().filled())]).map(drop)
            };
            // Adds 1, because numbers with the largest exponent reach up to the next power of two.
            let (normal, end) = (format.min_exponent(), format.max_exponent() + 1);
            band(format.min_subnormal_exponent(), normal, SUBNORMAL).map_err(failed)?;
            band(normal, end, NORMAL).map_err(failed)?;
        }
        Ok(())
    })
}

/// Returns the points of the line along the upper edges of the histogram's bars.
fn outline(shares: &BTreeMap<i32, f64>, floor: f64) -> Vec<(f64, f64)> {
    let (Some((first, _)), Some((last, _))) = (shares.first_key_value(), shares.last_key_value())
    else {
        return Vec::new();
    };
    let mut points = vec![(f64::from(*first), floor)];
    for exponent in *first..=*last {
        let y = shares.get(&exponent).map_or(floor, |share| share.log10().max(floor));
        let x = f64::from(exponent);
        points.extend([(x, y), (x + 1.0, y)]);
    }
    points.push((f64::from(*last) + 1.0, floor));
    points
}

/// Returns the short name of the format, for example `bf16`.
pub(in crate::report) fn short(format: Format) -> &'static str {
    match format {
        Format::F16 => "f16",
        Format::Bf16 => "bf16",
        Format::E4M3 => "E4M3",
        Format::E5M2 => "E5M2",
    }
}
