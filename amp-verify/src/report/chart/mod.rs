//! The charts of the report, in SVG.

mod axis;
mod columns;
mod exponents;
mod lines;
mod ratios;

pub(super) use axis::superscript;
pub(super) use columns::{Share, bars, shares};
pub(super) use exponents::{Shown, exponents, short};
pub(super) use lines::{lines, scale};
pub(super) use ratios::ratios;

use amp_core::{Error, Result};
use plotters::{coord::Shift, prelude::*};

use super::color::{self, PAPER};

/// The width of every chart in SVG units. The HTML page scales the charts to the width of its text.
const WIDTH: u32 = 520;
/// The height of the charts of lines and of columns, in SVG units.
const HEIGHT: u32 = 300;
/// The font of the texts in charts: its family, and its size in SVG units.
const FONT: (&str, i32) = ("sans-serif", 14);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(error: impl std::fmt::Display) -> Error {
    Error::config(format!("a chart could not be drawn: {error}"))
}

fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        area.fill(&PAPER.colour()).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(color::with_variables(text))
}
