//! Where the nodes of a picture of the mesh stand: the same for the same mesh, without any randomness.

use std::f64::consts::TAU;

/// A place; the picture goes from −1 to 1 both ways.
pub(crate) type Point = (f64, f64);

/// The springs look at every pair in every step: above this many nodes they would take seconds, and a ring shows as much.
const SPRINGS_NODES_MAX: usize = 400;
/// After so many steps nothing moves any more that one could see.
const STEPS: u32 = 400;

/// One place for each of `nodes`; `edges` are pairs of their indices.
pub(crate) fn place(nodes: usize, edges: &[(usize, usize)]) -> Vec<Point> {
    let places = ring(nodes);
    if !(3..=SPRINGS_NODES_MAX).contains(&nodes) {
        return places;
    }
    fit(springs(places, edges))
}

fn ring(nodes: usize) -> Vec<Point> {
    let angle = |n: usize| TAU * n as f64 / nodes.max(1) as f64 - TAU / 4.0;
    (0..nodes).map(|n| (angle(n).cos(), angle(n).sin())).collect()
}

/// Fruchterman and Reingold, "Graph drawing by force-directed placement", 1991: all push each other away, edges pull together, and
/// each step is shorter than the one before.
fn springs(mut places: Vec<Point>, edges: &[(usize, usize)]) -> Vec<Point> {
    let nodes = places.len();
    let ideal = (4.0 / nodes as f64).sqrt();
    for step in 0..STEPS {
        let longest = 0.2 * (1.0 - f64::from(step) / f64::from(STEPS));
        // A pull to the middle keeps parts that have no edge between them in the picture.
        let mut forces: Vec<Point> = places.iter().map(|(x, y)| (-x * ideal, -y * ideal)).collect();
        for one in 0..nodes {
            for other in 0..one {
                let (dx, dy, distance) = apart(places[one], places[other]);
                let push = ideal * ideal / distance;
                shove(&mut forces, one, other, (dx / distance * push, dy / distance * push));
            }
        }
        for (one, other) in edges {
            let (dx, dy, distance) = apart(places[*one], places[*other]);
            let pull = -distance * distance / ideal;
            shove(&mut forces, *one, *other, (dx / distance * pull, dy / distance * pull));
        }
        for (place, (fx, fy)) in places.iter_mut().zip(forces) {
            let force = fx.hypot(fy).max(1e-9);
            let by = force.min(longest);
            *place = (place.0 + fx / force * by, place.1 + fy / force * by);
        }
    }
    places
}

fn apart(one: Point, other: Point) -> (f64, f64, f64) {
    let (dx, dy) = (one.0 - other.0, one.1 - other.1);
    (dx, dy, dx.hypot(dy).max(1e-6))
}

fn shove(forces: &mut [Point], one: usize, other: usize, (fx, fy): Point) {
    forces[one].0 += fx;
    forces[one].1 += fy;
    forces[other].0 -= fx;
    forces[other].1 -= fy;
}

/// Moved and scaled, so that it fills the picture.
fn fit(places: Vec<Point>) -> Vec<Point> {
    let range = |of: fn(&Point) -> f64| {
        let all = places.iter().map(of);
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)))
    };
    let ((left, right), (low, high)) = (range(|place| place.0), range(|place| place.1));
    let half = ((right - left).max(high - low) / 2.0).max(1e-9);
    let middle = ((left + right) / 2.0, (low + high) / 2.0);
    places.into_iter().map(|(x, y)| ((x - middle.0) / half, (y - middle.1) / half)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_mesh_stands_the_same_and_inside_the_picture() {
        let edges: Vec<_> = (0..30).flat_map(|n| [(n, (n + 1) % 30), (n, (n * 7 + 3) % 30)]).collect();
        let places = place(30, &edges);
        assert_eq!(places, place(30, &edges));
        assert!(places.iter().all(|(x, y)| x.abs() <= 1.0 + 1e-9 && y.abs() <= 1.0 + 1e-9));
    }

    #[test]
    fn who_is_connected_stands_nearer_than_who_is_not() {
        // Two groups of five, each connected all to all.
        let within = |base: usize| (0..5).flat_map(move |a| (0..a).map(move |b| (base + a, base + b)));
        let edges: Vec<_> = within(0).chain(within(5)).collect();
        let places = place(10, &edges);
        let distance = |a: usize, b: usize| apart(places[a], places[b]).2;
        assert!(distance(0, 1) < distance(0, 7) / 2.0, "{places:?}");
    }

    #[test]
    fn nobody_one_and_a_crowd_have_places_too() {
        for nodes in [0, 1, 2, 3, 5000] {
            let places = place(nodes, &[]);
            assert!(places.len() == nodes && places.iter().all(|(x, y)| x.is_finite() && y.is_finite()));
        }
    }
}
