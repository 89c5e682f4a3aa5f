//! A chart of the error of each layer (its difference from a 64-true step), divided by the error of
//! the same layer under 32-true.

use amp_core::Result;
use plotters::prelude::*;

use super::{axis::Axis, failed, svg};
use crate::{
    layers::{Kind, Report},
    report::color::{ALARM, ChartColor, LIMIT},
};

/// The largest number of letters of a layer's path that are shown. Only the end of a longer path is
/// shown.
const LETTERS: usize = 24;

/// Draws one row for each layer, with the first layer at the top. On a logarithmic axis, marks show
/// the errors of the output, the input gradient and the weight gradient, each divided by the same
/// error under 32-true. One vertical line is at 1, and another at `unit`, the unit roundoff of the
/// precision's dtype divided by that of f32.
pub(in crate::report) fn ratios(report: &Report, unit: f64) -> Result<String> {
    let layers = || report.layers.iter().rev();
    let flows = || layers().flat_map(|layer| Kind::ALL.iter().filter_map(|kind| layer.flow(*kind)));
    let ratios = || flows().filter_map(|flow| flow.ratio).filter(|ratio| *ratio > 0.0);
    let logs = || ratios().map(f64::log10).chain([0.0, unit.log10()]);
    let low = logs().fold(f64::INFINITY, f64::min).floor();
    let high = logs().fold(f64::NEG_INFINITY, f64::max).ceil() + 0.5;
    let x = Axis::powers(10, low..high, 9.0, "error, divided by 32-true's");
    let y = Axis::names(layers().map(|layer| shortened(&layer.path)).collect());
    let height = 60 + 26 * report.layers.len().max(2) as u32;
    svg(height, |area| {
        let mut chart = x.plane(&y, area)?;
        for at in [0.0, unit.log10()] {
            let line = [(at, y.range.start), (at, y.range.end)];
            let line = PathElement::new(line, LIMIT.colour().stroke_width(2));
            chart.draw_series([line]).map_err(failed)?;
        }
        for (row, layer) in layers().enumerate() {
            for (place, kind) in Kind::ALL.into_iter().enumerate() {
                let Some(flow) = layer.flow(kind) else { continue };
                let y = row as f64 + 0.22 * (1.0 - place as f64);
                match (flow.ratio, flow.error) {
                    (Some(ratio), _) if ratio > 0.0 => {
                        let (at, colour) =
                            ((ratio.log10(), y), ChartColor::series(place + 1).colour());
                        let style = colour.filled();
                        match place {
                            0 => chart.draw_series([Circle::new(at, 5, style)]).map(drop),
                            1 => chart.draw_series([TriangleMarker::new(at, 6, style)]).map(drop),
                            _ => {
                                let square = EmptyElement::at(at)
                                    + Rectangle::new([(-4, -4), (4, 4)], style);
                                chart.draw_series([square]).map(drop)
                            }
                        }
                        .map_err(failed)?;
                    }
                    // An error that is not finite is drawn as a cross at the end of the axis.
                    (None, None) => {
                        let cross = ALARM.colour().stroke_width(2);
                        let at = (x.range.end - 0.1, y);
                        chart.draw_series([Cross::new(at, 5, cross)]).map_err(failed)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    })
}

fn shortened(path: &str) -> String {
    let letters = path.chars().count();
    match letters > LETTERS {
        true => format!("…{}", path.chars().skip(letters - LETTERS + 1).collect::<String>()),
        false => path.to_owned(),
    }
}
