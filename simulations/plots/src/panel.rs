//! Axes, and what is drawn between them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::RGBColor;

use crate::figure::{Area, Drawn, FONT, GREY, INK, SHADE};

const LABEL_PX: u32 = 15;
const NAME_PX: u32 = 16;

/// One pair of axes.
pub(crate) struct Panel {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// From where to where on the x axis faults held.
    pub(crate) shades: Vec<(f64, f64)>,
    pub(crate) lines: Vec<Line>,
}

/// What is drawn between the axes.
pub(crate) struct Line {
    pub(crate) colour: RGBColor,
    /// Where nothing is known, a line has a gap: one piece ends and another begins.
    pub(crate) pieces: Vec<Vec<(f64, f64)>>,
    pub(crate) dots: Vec<(f64, f64)>,
}

/// Whether equal distances are equal differences or equal ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Log,
}

/// One axis. Ends and ticks are where it goes linearly: logarithms, if its scale is one of ratios.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// With its unit.
    pub(crate) name: String,
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
    label: fn(f64) -> String,
}

impl Axis {
    /// From 0 (or below) to the greatest value and a little more; at least `least` high.
    pub(crate) fn linear(name: &str, least: f64, values: impl Iterator<Item = f64>, label: fn(f64) -> String) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(least, f64::max);
        let step = nice(most / 5.0);
        let to = most * 1.04;
        let ticks = (0..).map(|n| f64::from(n) * step).take_while(|tick| *tick <= to).collect();
        Self { name: name.into(), scale: Scale::Linear, from: 0.0, to, ticks, label }
    }

    /// Exactly from 0 to `to`, for time.
    pub(crate) fn time(to: f64) -> Self {
        let step = if to > 600.0 { nice(to / 60.0 / 8.0).max(1.0) * 60.0 } else { nice(to / 8.0) };
        let to = to.max(1e-3);
        let ticks = (0..).map(|n| f64::from(n) * step).take_while(|tick| *tick <= to).collect();
        Self { name: "virtual time (min:s)".into(), scale: Scale::Linear, from: 0.0, to, ticks, label: clock }
    }

    /// In equal ratios, round all values; those that are not above 0 cannot be on it.
    pub(crate) fn log(name: &str, values: impl Iterator<Item = f64>, label: fn(f64) -> String) -> Self {
        let values = values.filter(|value| value.is_finite() && *value > 0.0).map(f64::log10);
        let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
        let (min, max) = if min <= max { (min, max) } else { (0.0, 1.0) };
        // A decade at least, so that a small difference does not look like a great one.
        let spare = ((1.0 - (max - min)) / 2.0).max(0.08);
        let (from, to) = (min - spare, max + spare);
        let each = if to - from > 3.0 { &[1.0][..] } else { &[1.0, 2.0, 5.0][..] };
        let ticks = (from.floor() as i32..=to.ceil() as i32)
            .flat_map(|decade| each.iter().map(move |digit| f64::from(decade) + f64::log10(*digit)))
            .filter(|tick| (from..=to).contains(tick))
            .collect();
        Self { name: name.into(), scale: Scale::Log, from, to, ticks, label }
    }

    fn at(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
        }
    }

    fn back(&self, at: f64) -> f64 {
        match self.scale {
            Scale::Linear => at,
            Scale::Log => 10_f64.powf(at),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (self.at(*value) - self.from) / (self.to - self.from);
        low + (share.clamp(-1.0, 2.0) * f64::from(high - low)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        self.ticks.iter().map(|tick| self.back(*tick)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.back(self.from)..self.back(self.to)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// The next of 1, 2, 5, 10, 20, … that is not below.
fn nice(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let decade = 10_f64.powf(value.log10().floor());
    let digit = value / decade;
    decade
        * if digit <= 1.0 {
            1.0
        } else if digit <= 2.0 {
            2.0
        } else if digit <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// `3:05`, `61:00`.
pub(crate) fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    format!("{}:{:02}", whole / 60, whole % 60)
}

/// `7`, `0.25`, `1.5 k`, `20 M`.
pub(crate) fn figure(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, " G"),
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    // Two digits are what the ticks have; a longer tail is what binary fractions leave.
    let text = format!("{scaled:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `75 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", figure(share * 100.0))
}

/// Every measure is multiplied by `by`.
pub(crate) fn draw<B: DrawingBackend>(panel: &Panel, area: &Area<B>, by: u32) -> Drawn<B> {
    let Panel { x, y, .. } = panel;
    let mut chart = ChartBuilder::on(area)
        .margin_left(12 * by)
        .margin_right(32 * by)
        .margin_top(10 * by)
        .margin_bottom(6 * by)
        .x_label_area_size(54 * by)
        .y_label_area_size(86 * by)
        .build_cartesian_2d(x.clone(), y.clone())?;
    let (end, (low, high)) = (x.range().end, (y.range().start, y.range().end));
    let shades = panel.shades.iter().map(|(from, to)| {
        // A fault shorter than a pixel is a fault too.
        let to = to.max(from + end / 1000.0).min(end);
        Rectangle::new([(*from, low), (to, high)], SHADE.filled())
    });
    chart.draw_series(shades)?;
    let labels = (FONT, LABEL_PX * by).into_font().color(&INK);
    chart
        .configure_mesh()
        .x_desc(x.name.as_str())
        .y_desc(y.name.as_str())
        .label_style(labels)
        .axis_desc_style((FONT, NAME_PX * by).into_font().color(&INK))
        // Away from the lowest label of the other axis.
        .set_tick_mark_size(LabelAreaPosition::Bottom, 9 * by)
        .axis_style(GREY.stroke_width(by))
        .bold_line_style(BLACK.mix(0.12).stroke_width(by))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for line in &panel.lines {
        for piece in &line.pieces {
            chart.draw_series(LineSeries::new(piece.iter().copied(), line.colour.stroke_width(2 * by)))?;
        }
        let style = line.colour.mix(0.8).filled();
        let dots = line.dots.iter().map(|dot| Circle::new(*dot, 5 * by as i32, style));
        chart.draw_series(dots)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear("x", 0.0, [3.0, 7.3].into_iter(), figure);
        assert_eq!(axis.ticks, [0.0, 2.0, 4.0, 6.0]);
        let axis = Axis::log("x", [20.0, 900.0, 0.0].into_iter(), figure);
        let labels: Vec<_> = axis.ticks.iter().map(|tick| axis.format_ext(&axis.back(*tick))).collect();
        assert_eq!(labels, ["20", "50", "100", "200", "500", "1 k"]);
        for axis in [Axis::time(0.0), Axis::log("x", std::iter::empty(), figure), Axis::time(86_400.0)] {
            assert!(axis.to > axis.from && axis.ticks.len() < 40, "{:?}", axis.ticks);
        }
    }

    #[test]
    fn figures_are_short() {
        let all = [(0.0, "0"), (0.25, "0.25"), (1500.0, "1.5 k"), (2e7, "20 M"), (0.1 + 0.2, "0.3")];
        for (value, text) in all {
            assert_eq!(figure(value), text);
        }
        assert_eq!((percent(0.25), clock(185.0), clock(3660.0)), ("25 %".into(), "3:05".into(), "61:00".into()));
    }
}
