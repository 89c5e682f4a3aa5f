//! The colors of charts. Charts are drawn with the colors for a white background. On the HTML page,
//! CSS variables replace these colors. In a dark color scheme, the variables have other values.

use amp_core::precision::Precision;
use plotters::style::RGBColor;

/// A color: the name of its CSS variable, and its values for the light and for the dark color
/// scheme.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChartColor {
    variable: &'static str,
    light: (u8, u8, u8),
    dark: (u8, u8, u8),
}

const fn color(variable: &'static str, light: (u8, u8, u8), dark: (u8, u8, u8)) -> ChartColor {
    ChartColor { variable, light, dark }
}

/// The color of a chart's background.
pub(super) const PAPER: ChartColor = color("paper", (255, 255, 255), (24, 26, 27));
/// The color of axes and text.
pub(super) const TEXT: ChartColor = color("text", (51, 51, 51), (220, 220, 220));
/// The color of grid lines.
pub(super) const GRID: ChartColor = color("grid", (225, 225, 225), (58, 61, 63));
/// The color of lines at limits and at zero.
pub(super) const LIMIT: ChartColor = color("limit", (130, 130, 130), (150, 150, 150));
/// The color of skipped steps, and of values that are not finite.
pub(super) const ALARM: ChartColor = color("alarm", (190, 20, 20), (255, 110, 110));
/// The color of the exponents of a format's normal numbers.
pub(super) const NORMAL: ChartColor = color("normal", (86, 140, 180), (60, 120, 165));
/// The color of the exponents of a format's subnormal numbers.
pub(super) const SUBNORMAL: ChartColor = color("subnormal", (196, 218, 234), (38, 68, 92));

/// The colors of the lines and bars of charts. They are based on the colors of Okabe and Ito, which
/// most color-blind readers can distinguish. Each color has a darker value for a white background,
/// and a lighter value for a dark background.
const SERIES: [ChartColor; 6] = [
    color("s0", (20, 20, 20), (240, 240, 240)),
    color("s1", (213, 94, 0), (255, 150, 60)),
    color("s2", (0, 114, 178), (90, 180, 240)),
    color("s3", (0, 158, 115), (70, 215, 165)),
    color("s4", (204, 121, 167), (235, 160, 205)),
    color("s5", (150, 120, 0), (235, 215, 90)),
];

impl ChartColor {
    /// Returns the color of a precision. A precision has the same color in every chart.
    pub(super) fn of(precision: Precision) -> Self {
        let place = Precision::ALL.iter().position(|known| *known == precision);
        Self::series(place.unwrap_or_default())
    }

    /// Returns the color of the series with index `place`.
    pub(super) fn series(place: usize) -> Self {
        SERIES[place % SERIES.len()]
    }

    /// Returns the color for a white background, in the type of the drawing library.
    pub(super) fn colour(self) -> RGBColor {
        let (red, green, blue) = self.light;
        RGBColor(red, green, blue)
    }

    /// Returns the CSS expression for the color, for example `var(--text)`.
    pub(super) fn variable(self) -> String {
        format!("var(--{})", self.variable)
    }
}

fn all() -> impl Iterator<Item = ChartColor> {
    [PAPER, TEXT, GRID, LIMIT, ALARM, NORMAL, SUBNORMAL].into_iter().chain(SERIES)
}

/// Replaces the colors in a chart's SVG by CSS variables.
pub(super) fn with_variables(svg: String) -> String {
    all().fold(svg, |svg, color| {
        let (red, green, blue) = color.light;
        let drawn = format!("\"#{red:02X}{green:02X}{blue:02X}\"");
        svg.replace(&drawn, &format!("\"{}\"", color.variable()))
    })
}

/// Returns CSS with the values of the variables for light and dark color schemes.
pub(super) fn style() -> String {
    let rules = |of: fn(ChartColor) -> (u8, u8, u8)| -> String {
        let rule = |color: ChartColor| {
            let (red, green, blue) = of(color);
            format!(" --{}: #{red:02x}{green:02x}{blue:02x};", color.variable)
        };
        all().map(rule).collect()
    };
    format!(
        ":root {{{} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{{} }} }}\n",
        rules(|color| color.light),
        rules(|color| color.dark)
    )
}
