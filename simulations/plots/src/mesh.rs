//! Who was connected to whom among the coordinators at the end.

use std::collections::{BTreeMap, BTreeSet};

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figure::{Area, BLUE, Body, Drawn, FONT, Key, Picture, VERMILION, counted};
use crate::layout::{Point, place};
use crate::load::Run;

/// With more nodes, their numbers would lie on each other.
const NUMBERED_MAX: usize = 80;

/// Nodes with their places, and who is connected.
pub(crate) struct Graph {
    nodes: Vec<Node>,
    edges: Vec<(usize, usize)>,
}

struct Node {
    index: u32,
    place: Point,
    neighbours: usize,
}

impl Graph {
    /// The coordinators of the beginning, and whoever else is connected (clones, those that were elected).
    fn of(run: &Run) -> Self {
        let summary = &run.summary;
        let first = summary.entries;
        let pairs: BTreeSet<(u32, u32)> =
            summary.neighbours.iter().filter(|(a, b)| a != b).map(|(a, b)| (*a.min(b), *a.max(b))).collect();
        let named = pairs.iter().flat_map(|(a, b)| [*a, *b]);
        let indices: BTreeSet<u32> = (first..first.saturating_add(summary.coordinators)).chain(named).collect();
        let at: BTreeMap<u32, usize> = indices.iter().enumerate().map(|(n, index)| (*index, n)).collect();
        let edges: Vec<(usize, usize)> = pairs.iter().map(|(a, b)| (at[a], at[b])).collect();
        let places = place(indices.len(), &edges);
        let mut nodes: Vec<Node> =
            indices.into_iter().zip(places).map(|(index, place)| Node { index, place, neighbours: 0 }).collect();
        for (a, b) in &edges {
            nodes[*a].neighbours += 1;
            nodes[*b].neighbours += 1;
        }
        Self { nodes, edges }
    }

    /// How many parts there are that have no connection between them.
    fn parts(&self) -> usize {
        let mut part: Vec<usize> = (0..self.nodes.len()).collect();
        fn root(part: &mut [usize], mut of: usize) -> usize {
            while part[of] != of {
                part[of] = part[part[of]];
                of = part[of];
            }
            of
        }
        for (a, b) in &self.edges {
            let (a, b) = (root(&mut part, *a), root(&mut part, *b));
            part[a] = b;
        }
        (0..part.len()).filter(|n| part[*n] == *n).count()
    }

    fn says(&self) -> String {
        let counts = || self.nodes.iter().map(|node| node.neighbours);
        let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
        let neighbours = if least == most { format!("{most}") } else { format!("{least} to {most}") };
        format!(
            "{}, {neighbours} neighbours each, in {}",
            counted(self.edges.len(), "connection"),
            counted(self.parts(), "piece")
        )
    }
}

pub(crate) fn picture(run: &Run) -> Picture {
    let graph = Graph::of(run);
    Picture {
        title: format!("The mesh of coordinators at the end: {}", graph.says()),
        subtitle: run.subtitle(),
        legend: vec![
            Key::dot(
                match graph.nodes.len() <= NUMBERED_MAX {
                    true => "a coordinator, by its number; larger with more neighbours",
                    false => "a coordinator; larger with more neighbours",
                },
                BLUE,
            ),
            Key::dot("without a neighbour", VERMILION),
        ],
        body: Body::Graph(graph),
    }
}

/// Every measure is multiplied by `scale`.
pub(crate) fn draw<B: DrawingBackend>(graph: &Graph, area: &Area<B>, scale: i32) -> Drawn<B> {
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width as i32, height as i32);
    let half = f64::from(width.min(height) / 2 - 34 * scale);
    let at = |(x, y): Point| (width / 2 + (x * half) as i32, height / 2 + (y * half) as i32);
    // The more edges, the lighter each.
    let shade = (6.0 / (graph.edges.len().max(1) as f64).sqrt()).clamp(0.08, 0.6);
    for (a, b) in &graph.edges {
        let ends = vec![at(graph.nodes[*a].place), at(graph.nodes[*b].place)];
        area.draw(&PathElement::new(ends, BLACK.mix(shade).stroke_width(scale as u32)))?;
    }
    let numbered = graph.nodes.len() <= NUMBERED_MAX;
    let most = graph.nodes.iter().map(|node| node.neighbours).max().unwrap_or(0).max(1) as f64;
    for node in &graph.nodes {
        let (centre, colour) = (at(node.place), if node.neighbours == 0 { VERMILION } else { BLUE });
        let least = if numbered { 11.0 } else { 3.0 };
        let radius = (least * (1.0 + 0.6 * node.neighbours as f64 / most)) as i32 * scale;
        area.draw(&Circle::new(centre, radius + scale, WHITE.filled()))?;
        area.draw(&Circle::new(centre, radius, colour.filled()))?;
        if numbered {
            let style = (FONT, 12 * scale).into_font().color(&WHITE).pos(Pos::new(HPos::Center, VPos::Center));
            area.draw_text(&node.index.to_string(), &style, (centre.0, centre.1 + scale))?;
        }
    }
    Ok(())
}
