//! Line plots as SVG, for [`crate::page`].

use std::{error::Error, ops::Range};

use plotters::{
    coord::{combinators::IntoLogRange as _, ranged1d::ValueFormatter, types::RangedCoordf64},
    prelude::{
        Cartesian2d, ChartBuilder, ChartContext, Circle, Color as _, IntoDrawingArea as _,
        IntoFont as _, LineSeries, PathElement, RGBColor, Ranged, SVGBackend,
    },
};

/// Width and height in the units of the SVG; the page scales it.
const SIZE: (u32, u32) = (860, 280);

/// Text and lines of the axes.
const INK: RGBColor = RGBColor(0x44, 0x4b, 0x55);
const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

/// Colours of lines, which people who see fewer colours can tell apart too.
pub(crate) const COLORS: [(u8, u8, u8); 6] = [
    (0x1b, 0x6c, 0xb5),
    (0xd9, 0x6b, 0x0b),
    (0x2a, 0x8c, 0x5a),
    (0xb0, 0x2e, 0x5c),
    (0x6b, 0x57, 0xb8),
    (0x7a, 0x6a, 0x2c),
];

/// The colour of line number `index` as CSS takes it.
pub(crate) fn css_color(index: usize) -> String {
    let (red, green, blue) = color(index);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn color(index: usize) -> (u8, u8, u8) {
    COLORS
        .get(index % COLORS.len())
        .copied()
        .unwrap_or_default()
}

/// A plot of some lines over one axis.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// What the horizontal axis has.
    pub(crate) x: &'static str,
    /// Where it ends; it begins at 0.
    pub(crate) x_max: f64,
    /// What the vertical axis has.
    pub(crate) y: &'static str,
    /// Whether the vertical axis is logarithmic; values of 0 and below are left out then.
    pub(crate) logarithmic: bool,
    /// Whether each point is marked too.
    pub(crate) marked: bool,
    /// A vertical line, if any.
    pub(crate) line_at: Option<f64>,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Its name in the legend, which is not part of the plot.
    pub(crate) name: String,
    /// Its points, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    /// Draws it; an `svg` element.
    ///
    /// # Errors
    /// If the library cannot.
    pub(crate) fn svg(&self) -> Result<String, Box<dyn Error>> {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut builder = ChartBuilder::on(&root);
            builder
                .margin(10)
                .margin_right(18)
                .x_label_area_size(38)
                .y_label_area_size(66);
            let (x, y) = (0.0..above_zero(self.x_max), self.y_range());
            if self.logarithmic {
                self.draw(builder.build_cartesian_2d(x, y.log_scale())?)?;
            } else {
                self.draw(builder.build_cartesian_2d(x, y)?)?;
            }
            root.present()?;
        }
        Ok(svg)
    }

    fn draw<Y>(
        &self,
        mut chart: ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, Y>>,
    ) -> Result<(), Box<dyn Error>>
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(GRID.mix(if self.logarithmic { 0.6 } else { 0.0 }))
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_labels(11)
            .y_labels(if self.logarithmic { 12 } else { 6 })
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        if let Some(x) = self.line_at {
            let y = self.y_range();
            let line = PathElement::new(vec![(x, y.start), (x, y.end)], INK.stroke_width(1));
            chart.draw_series([line])?;
        }
        for (index, line) in self.lines.iter().enumerate() {
            let (red, green, blue) = color(index);
            let color = RGBColor(red, green, blue);
            let points = || self.shown(line);
            chart.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
            if self.marked {
                let marks = points().map(|point| Circle::new(point, 3, color.filled()));
                chart.draw_series(marks)?;
            }
        }
        Ok(())
    }

    /// The points of a line that can be drawn.
    fn shown<'a>(&'a self, line: &'a Line) -> impl Iterator<Item = (f64, f64)> + 'a {
        let points = line.points.iter().copied();
        points.filter(|(x, y)| x.is_finite() && y.is_finite() && (!self.logarithmic || *y > 0.0))
    }

    fn all(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.lines.iter().flat_map(|line| self.shown(line))
    }

    fn y_range(&self) -> Range<f64> {
        let most = self.all().map(|(_, y)| y).fold(0.0, f64::max);
        if self.logarithmic {
            let least = self.all().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
            let least = if least.is_finite() { least } else { 0.1 };
            // Whole decades, so that there are lines to read the values from.
            let decade = |value: f64| 10_f64.powf(value);
            let top = above_zero(most)
                .log10()
                .ceil()
                .max(least.log10().floor() + 1.0);
            decade(least.log10().floor())..decade(top)
        } else {
            0.0..above_zero(most * 1.1)
        }
    }
}

/// A range needs an end above its start.
fn above_zero(end: f64) -> f64 {
    if end > 0.0 { end } else { 1.0 }
}

/// A number for an axis.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 10.0 || v == 0.0 => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.1 => 2,
        v if v >= 0.01 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    // Trailing zeros of a fraction say nothing.
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(logarithmic: bool, points: &[(f64, f64)]) -> Plot {
        Plot {
            x: "seconds",
            x_max: 2.0,
            y: "ms",
            logarithmic,
            marked: true,
            line_at: Some(1.0),
            lines: vec![Line {
                name: "p50".to_owned(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn lines_and_axes_are_drawn() {
        for logarithmic in [false, true] {
            let svg = plot(logarithmic, &[(0.5, 0.2), (1.5, 30.0)]).svg().unwrap();
            assert!(svg.starts_with("<svg"), "{svg}");
            assert!(svg.contains("polyline") && svg.contains("seconds"), "{svg}");
        }
    }

    #[test]
    fn strange_figures_are_no_obstacle() {
        let strange = [
            (0.0, 0.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 1.0),
            (2.0, -1.0),
        ];
        for logarithmic in [false, true] {
            assert!(plot(logarithmic, &strange).svg().is_ok());
            assert!(plot(logarithmic, &[]).svg().is_ok());
            assert!(plot(logarithmic, &[(1.0, 1e300)]).svg().is_ok());
        }
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let shown = [0.0, 1.0, 1.5, 0.25, 0.001, 12_000.0].map(short);
        assert_eq!(shown, ["0", "1", "1.5", "0.25", "0.001", "12000"]);
    }
}
