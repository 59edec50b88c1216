//! Who can be reached, and what becomes of requests, over time.

use hedgerow_sim_model::results::Sample;

use crate::figure::{BLUE, Body, GREEN, GREY, Key, Picture};
use crate::load::Run;
use crate::panel::{Axis, Line, Panel, figure, percent};
use crate::windows::{POINTS_MAX, faults, windows};

/// So many windows, in which requests are counted together: a window of one sample has too few of them.
const WINDOWS: usize = 120;

pub(crate) fn picture(run: &Run) -> Picture {
    let end = run.series.last().map_or(0.0, |sample| sample.t_s);
    let count = |of: fn(&Sample) -> u32| -> Vec<(f64, f64)> {
        let first = windows(&run.series, POINTS_MAX).filter_map(<[Sample]>::first);
        first.map(|sample| (sample.t_s, f64::from(of(sample)))).collect()
    };
    let (up, routable) = (count(|sample| sample.workers_up), count(|sample| sample.routable));
    let highest = up.iter().chain(&routable).map(|(_, count)| *count).collect::<Vec<_>>();
    let shades = faults(&run.series);
    let mut legend = vec![Key::line("workers that run", GREY), Key::line("workers that the entry reaches", BLUE)];
    let mut panels = vec![Panel {
        x: Axis::time(end),
        y: Axis::linear("workers (number)", 1.0, highest.into_iter(), figure),
        shades: shades.clone(),
        lines: vec![
            Line { colour: GREY, pieces: vec![up], dots: Vec::new() },
            Line { colour: BLUE, pieces: vec![routable], dots: Vec::new() },
        ],
    }];
    let answered = answered(&run.series);
    if !answered.is_empty() {
        legend.push(Key::line("requests answered, of those that ended in a window", GREEN));
        panels.push(Panel {
            x: Axis::time(end),
            y: Axis::linear("share answered", 1.0, std::iter::empty(), percent),
            shades,
            lines: vec![Line { colour: GREEN, pieces: answered, dots: Vec::new() }],
        });
    }
    legend.push(Key::faults());
    Picture { title: "Availability".into(), subtitle: run.subtitle(), legend, body: Body::Panels(panels) }
}

/// The share of the requests of each window that were answered; a gap where none ended.
fn answered(series: &[Sample]) -> Vec<Vec<(f64, f64)>> {
    let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut gap = true;
    let mut before = Sample::default();
    for last in windows(series, WINDOWS).filter_map(<[Sample]>::last) {
        let answered = last.answered.saturating_sub(before.answered);
        let ended = answered + last.failed.saturating_sub(before.failed);
        let middle = f64::midpoint(before.t_s, last.t_s);
        before = *last;
        if ended == 0 {
            gap = true;
            continue;
        }
        let point = (middle, answered as f64 / ended as f64);
        match pieces.last_mut() {
            Some(piece) if !gap => piece.push(point),
            _ => pieces.push(vec![point]),
        }
        gap = false;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_without_requests_is_a_gap_and_not_a_failure() {
        let sample = |t_s: u32, answered, failed| Sample { t_s: t_s.into(), answered, failed, ..Sample::default() };
        let series = [sample(1, 8, 2), sample(2, 8, 2), sample(3, 8, 2), sample(4, 9, 5)];
        assert_eq!(answered(&series), [vec![(0.5, 0.8)], vec![(3.5, 0.25)]]);
        assert!(answered(&[Sample::default()]).is_empty());
    }
}
