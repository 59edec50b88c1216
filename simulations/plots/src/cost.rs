//! What a node sends, by how many there are: all runs together.

use std::collections::{BTreeMap, BTreeSet};

use crate::figure::{Body, GREEN, Key, ORANGE, PALETTE, Picture, counted};
use crate::load::Run;
use crate::panel::{Axis, Line, Panel, figure};
use crate::windows::node_seconds;

/// One run's point: nodes, and something of each of them a second.
type Point = (f64, f64);

struct Costs {
    nodes: f64,
    messages: f64,
    bytes: f64,
    gossip: f64,
    sync: f64,
}

/// Of the whole run, joining included, for each second that a node ran.
fn costs(run: &Run) -> Option<Costs> {
    let last = run.series.last()?;
    let seconds = node_seconds(&run.series);
    let each = |count: u64| count as f64 / seconds;
    (seconds > 0.0).then(|| Costs {
        nodes: f64::from(run.summary.coordinators + run.summary.workers),
        messages: each(last.messages),
        bytes: each(last.bytes),
        gossip: each(last.gossip_bytes),
        sync: each(last.sync_bytes),
    })
}

pub(crate) fn picture(runs: &[Run]) -> Picture {
    let mut groups: BTreeMap<String, Vec<Costs>> = BTreeMap::new();
    for run in runs {
        if let Some(costs) = costs(run) {
            groups.entry(format!("{} ({})", run.summary.scenario, run.summary.level)).or_default().push(costs);
        }
    }
    let seeds: BTreeSet<u64> = runs.iter().map(|run| run.summary.seed).collect();
    let commits: BTreeSet<&str> = runs.iter().map(|run| run.summary.commit.as_str()).collect();
    let commits = commits.into_iter().collect::<Vec<_>>().join(", ");
    let subtitle = format!(
        "{}, {} · means of whole runs, joining included · {commits}",
        counted(runs.len(), "run"),
        counted(seeds.len(), "seed")
    );
    let mut legend = Vec::new();
    let (mut messages, mut bytes) = (Vec::new(), Vec::new());
    let alone = groups.len() == 1;
    for (n, (name, costs)) in groups.iter().enumerate() {
        let colour = PALETTE[n % PALETTE.len()];
        let points = |of: fn(&Costs) -> f64| costs.iter().map(|costs| (costs.nodes, of(costs))).collect::<Vec<_>>();
        legend.push(Key::dot(name.clone(), colour));
        messages.push(line(colour, points(|costs| costs.messages)));
        bytes.push(line(colour, points(|costs| costs.bytes)));
        // One group has the palette's first colour, and these two the next ones. There is room for what the bytes were for where there is one scenario.
        if alone {
            legend.push(Key::dot("of these bytes, gossip", ORANGE));
            legend.push(Key::dot("of these bytes, synchronisation", GREEN));
            bytes.push(line(ORANGE, points(|costs| costs.gossip)));
            bytes.push(line(GREEN, points(|costs| costs.sync)));
        }
    }
    let panel = |name: &str, lines: Vec<Line>| {
        let all: Vec<Point> = lines.iter().flat_map(|line| line.dots.iter().copied()).collect();
        Panel {
            x: Axis::log("coordinators and workers (number)", all.iter().map(|point| point.0), figure),
            y: Axis::log(name, all.iter().map(|point| point.1), figure),
            shades: Vec::new(),
            lines,
        }
    };
    Picture {
        title: "Messages and bytes by size of the federation".into(),
        subtitle,
        legend,
        body: Body::Panels(vec![panel("messages / node / s", messages), panel("bytes / node / s", bytes)]),
    }
}

/// A dot for each run, and a line through the means of those of one size. What is 0 has no place on an axis of ratios.
fn line(colour: plotters::style::RGBColor, points: Vec<Point>) -> Line {
    let points: Vec<Point> = points.into_iter().filter(|point| point.1 > 0.0).collect();
    let mut sizes: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (nodes, value) in &points {
        sizes.entry(*nodes as u64).or_default().push(*value);
    }
    let mean = |(nodes, values): (u64, Vec<f64>)| (nodes as f64, values.iter().sum::<f64>() / values.len() as f64);
    let means: Vec<Point> = sizes.into_iter().map(mean).collect();
    Line { colour, pieces: vec![means], dots: points }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::BLUE;

    #[test]
    fn the_line_goes_through_the_means_in_order_of_size() {
        let line = line(BLUE, vec![(100.0, 4.0), (10.0, 1.0), (10.0, 3.0), (50.0, 0.0)]);
        assert_eq!(line.pieces, [vec![(10.0, 2.0), (100.0, 4.0)]]);
        assert_eq!(line.dots.len(), 3);
    }
}
