//! The frame of every picture, and the two files that it becomes.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, RGBColor, register_font as register};

use crate::error::PlotError;
use crate::mesh::{self, Graph};
use crate::panel::{self, Panel};

/// Colours that people tell apart who do not see all colours (Okabe and Ito, "Color universal design", 2008).
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub(crate) const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub(crate) const SKY: RGBColor = RGBColor(86, 180, 233);
pub(crate) const INK: RGBColor = RGBColor(30, 30, 30);
pub(crate) const GREY: RGBColor = RGBColor(110, 110, 110);
pub(crate) const SHADE: RGBColor = RGBColor(244, 224, 216);
/// For several lines of one kind.
pub(crate) const PALETTE: [RGBColor; 6] = [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY];

pub(crate) const FONT: &str = "sans-serif";
const SIZE: (u32, u32) = (1280, 800);
/// What a file is drawn at before it is made smaller: plotters draws strokes without smoothing their edges.
const OVERSAMPLED: u32 = 2;
const TITLE_PX: u32 = 26;
const SMALL_PX: u32 = 16;
/// Title, the line below it, and the legend's first row.
const HEAD_PX: u32 = 112;
/// Each further row of the legend.
const ROW_PX: u32 = 26;
const MARGIN_PX: i32 = 24;
/// The middle of a text's line is above the middle of its small letters.
const TEXT_LOWERED_PX: i32 = 3;

/// What a backend's drawing comes to.
pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;
/// Where it is drawn.
pub(crate) type Area<B> = DrawingArea<B, Shift>;

/// One picture.
pub(crate) struct Picture {
    pub(crate) title: String,
    /// Which run, or which runs.
    pub(crate) subtitle: String,
    pub(crate) legend: Vec<Key>,
    pub(crate) body: Body,
}

/// What is below its head.
pub(crate) enum Body {
    /// One below the other.
    Panels(Vec<Panel>),
    Graph(Graph),
}

/// What one sign means.
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) colour: RGBColor,
    pub(crate) sign: Sign,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Line,
    Dot,
    Box,
}

impl Key {
    pub(crate) fn line(name: impl Into<String>, colour: RGBColor) -> Self {
        Self { name: name.into(), colour, sign: Sign::Line }
    }
    pub(crate) fn dot(name: impl Into<String>, colour: RGBColor) -> Self {
        Self { name: name.into(), colour, sign: Sign::Dot }
    }
    pub(crate) fn faults() -> Self {
        Self { name: "faults hold".into(), colour: SHADE, sign: Sign::Box }
    }
}

/// `1 run`, `2 runs`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Makes the font known that is built in.
pub(crate) fn register_font() -> Result<(), PlotError> {
    register(FONT, FontStyle::Normal, include_bytes!("../font/DejaVuSans-latin.ttf"))
        .map_err(|_| PlotError::Draw { figure: "text".into(), reason: "the font that is built in is broken".into() })
}

/// Writes `NAME.svg` and `NAME.png` into `out`.
pub(crate) fn save(picture: &Picture, out: &Path, name: &str) -> Result<[PathBuf; 2], PlotError> {
    let broken = |reason: String| PlotError::Draw { figure: name.to_owned(), reason };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(picture, &area, 1).map_err(|error| broken(error.to_string()))?;
        area.present().map_err(|error| broken(error.to_string()))?;
    }
    let (width, height) = (SIZE.0 * OVERSAMPLED, SIZE.1 * OVERSAMPLED);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(picture, &area, OVERSAMPLED).map_err(|error| broken(error.to_string()))?;
        area.present().map_err(|error| broken(error.to_string()))?;
    }
    let png = encode(&smaller(&pixels)).map_err(|error| broken(error.to_string()))?;
    let write = |ending: &str, bytes: &[u8]| {
        let path = out.join(format!("{name}.{ending}"));
        match std::fs::write(&path, bytes) {
            Ok(()) => Ok(path),
            Err(error) => Err(PlotError::Write { path, reason: error.to_string() }),
        }
    };
    Ok([write("svg", svg.as_bytes())?, write("png", &png)?])
}

/// Each pixel the mean of those that it was drawn as.
fn smaller(pixels: &[u8]) -> Vec<u8> {
    let (width, height) = (SIZE.0 as usize, SIZE.1 as usize);
    let by = OVERSAMPLED as usize;
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let of = |dx: usize, dy: usize| pixels[((y * by + dy) * width * by + x * by + dx) * 3 + channel];
                let sum: usize = (0..by * by).map(|n| usize::from(of(n % by, n / by))).sum();
                small.push((sum / (by * by)) as u8);
            }
        }
    }
    small
}

fn encode(pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// Every measure is multiplied by `by`.
fn draw<B: DrawingBackend>(picture: &Picture, area: &Area<B>, by: u32) -> Drawn<B> {
    area.fill(&WHITE)?;
    let scale = by as i32;
    let text = |size: u32, colour: RGBColor| {
        (FONT, size * by).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Center))
    };
    let style = text(SMALL_PX, INK);
    let (mut places, mut x, mut row) = (Vec::new(), MARGIN_PX * scale, 0);
    for key in &picture.legend {
        let width = 36 * scale + area.estimate_text_size(&key.name, &style)?.0 as i32;
        if x + width > area.dim_in_pixel().0 as i32 && x > MARGIN_PX * scale {
            (x, row) = (MARGIN_PX * scale, row + 1);
        }
        places.push((x, (90 + row * ROW_PX as i32) * scale));
        x += width + 28 * scale;
    }
    let (head, body) = area.split_vertically((HEAD_PX + row as u32 * ROW_PX) * by);
    head.draw_text(&picture.title, &text(TITLE_PX, INK), (MARGIN_PX * scale, 28 * scale))?;
    head.draw_text(&picture.subtitle, &text(SMALL_PX, GREY), (MARGIN_PX * scale, 58 * scale))?;
    for (key, (x, y)) in picture.legend.iter().zip(places) {
        key.draw(&head, (x, y), scale)?;
        head.draw_text(&key.name, &style, (x + 36 * scale, y + TEXT_LOWERED_PX * scale))?;
    }
    match &picture.body {
        Body::Panels(panels) => {
            for (panel, part) in panels.iter().zip(body.split_evenly((panels.len().max(1), 1))) {
                panel::draw(panel, &part, by)?;
            }
            Ok(())
        }
        Body::Graph(graph) => mesh::draw(graph, &body, scale),
    }
}

impl Key {
    fn draw<B: DrawingBackend>(&self, area: &Area<B>, (x, y): (i32, i32), scale: i32) -> Drawn<B> {
        match self.sign {
            Sign::Line => {
                let style = self.colour.stroke_width(3 * scale as u32);
                area.draw(&PathElement::new(vec![(x, y), (x + 26 * scale, y)], style))
            }
            Sign::Dot => area.draw(&Circle::new((x + 13 * scale, y), 6 * scale, self.colour.filled())),
            Sign::Box => {
                let corners = [(x, y - 8 * scale), (x + 26 * scale, y + 8 * scale)];
                area.draw(&Rectangle::new(corners, self.colour.filled()))
            }
        }
    }
}
