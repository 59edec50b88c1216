//! How far the coordinators agree, over time.

use crate::figure::{BLUE, Body, Key, Picture, VERMILION};
use crate::load::Run;
use crate::panel::{Axis, Line, Panel, figure, percent};
use crate::windows::{POINTS_MAX, faults, windows};

/// Of many samples in one point, the worst is shown: a disagreement must not vanish in a mean.
pub(crate) fn picture(run: &Run) -> Picture {
    let end = run.series.last().map_or(0.0, |sample| sample.t_s);
    let pieces = || windows(&run.series, POINTS_MAX);
    let at = |piece: &[hedgerow_sim_model::results::Sample]| piece.first().map_or(0.0, |sample| sample.t_s);
    let agreeing: Vec<_> =
        pieces().map(|piece| (at(piece), piece.iter().map(|s| s.agreeing).fold(1.0, f64::min))).collect();
    let digests: Vec<_> =
        pieces().map(|piece| (at(piece), f64::from(piece.iter().map(|s| s.digests).max().unwrap_or(0)))).collect();
    let shades = faults(&run.series);
    Picture {
        title: "Convergence of the registry".into(),
        subtitle: run.subtitle(),
        legend: vec![
            Key::line("coordinators with the most common digest", BLUE),
            Key::line("different digests", VERMILION),
            Key::faults(),
        ],
        body: Body::Panels(vec![
            Panel {
                x: Axis::time(end),
                y: Axis::linear("share that agrees", 1.0, std::iter::empty(), percent),
                shades: shades.clone(),
                lines: vec![Line { colour: BLUE, pieces: vec![agreeing], dots: Vec::new() }],
            },
            Panel {
                x: Axis::time(end),
                y: Axis::linear("digests (number)", 4.0, digests.iter().map(|(_, digests)| *digests), figure),
                shades,
                lines: vec![Line { colour: VERMILION, pieces: vec![digests], dots: Vec::new() }],
            },
        ]),
    }
}
