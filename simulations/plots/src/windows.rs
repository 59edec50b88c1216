//! A long series made short enough to draw, and the times at which faults held.

use hedgerow_sim_model::results::Sample;

/// More points than this nobody sees in a picture of this width.
pub(crate) const POINTS_MAX: usize = 600;

/// The series in at most `most` pieces of about the same length, none of them empty.
pub(crate) fn windows(series: &[Sample], most: usize) -> impl Iterator<Item = &[Sample]> {
    series.chunks(series.len().div_ceil(most.max(1)).max(1))
}

/// When faults held, from when to when.
pub(crate) fn faults(series: &[Sample]) -> Vec<(f64, f64)> {
    let mut spans: Vec<(f64, f64)> = Vec::new();
    let mut last_at: Option<f64> = None;
    for (n, sample) in series.iter().enumerate() {
        if sample.faults == 0 {
            last_at = None;
            continue;
        }
        // A sample stands for the time until the next one.
        let until = series.get(n + 1).map_or(sample.t_s, |next| next.t_s);
        match (last_at, spans.last_mut()) {
            (Some(_), Some(span)) => span.1 = until,
            _ => spans.push((sample.t_s, until)),
        }
        last_at = Some(sample.t_s);
    }
    spans
}

/// How long the nodes ran, all together, in seconds.
pub(crate) fn node_seconds(series: &[Sample]) -> f64 {
    series.windows(2).map(|pair| f64::from(pair[0].nodes_up) * (pair[1].t_s - pair[0].t_s)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(faults: &[u32]) -> Vec<Sample> {
        let samples = faults.iter().enumerate();
        samples.map(|(n, faults)| Sample { t_s: n as f64, faults: *faults, nodes_up: 3, ..Sample::default() }).collect()
    }

    #[test]
    fn no_sample_is_left_out_and_no_window_is_empty() {
        for (samples, most) in [(1, 600), (599, 600), (600, 600), (601, 600), (10_000, 600), (5, 0)] {
            let series = series(&vec![0; samples]);
            let pieces: Vec<_> = windows(&series, most).collect();
            assert!(pieces.len() <= most.max(1) && pieces.iter().all(|piece| !piece.is_empty()));
            assert_eq!(pieces.concat(), series);
        }
    }

    #[test]
    fn faults_that_follow_each_other_are_one_span() {
        assert_eq!(faults(&series(&[0, 1, 2, 0, 0, 1, 0])), [(1.0, 3.0), (5.0, 6.0)]);
        assert_eq!(faults(&series(&[1, 1])), [(0.0, 1.0)]);
        assert_eq!(faults(&series(&[0, 0])), []);
    }

    #[test]
    fn nodes_count_for_as_long_as_they_run() {
        assert_eq!(node_seconds(&series(&[0; 11])), 30.0);
        assert_eq!(node_seconds(&series(&[0])), 0.0);
    }
}
