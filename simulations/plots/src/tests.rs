//! From files to files.

use std::path::{Path, PathBuf};

use hedgerow_sim_model::plan::Plan;
use hedgerow_sim_model::results::{FORMAT, Sample, Summary, to_csv};
use hedgerow_sim_model::scenario::Level;

use super::{PlotError, plot};

fn summary(coordinators: u32) -> Summary {
    let ring = (0..coordinators).map(|n| (1 + n, 1 + (n + 1) % coordinators.max(1)));
    Summary {
        format: FORMAT,
        scenario: "churn".into(),
        level: Level::Core,
        seed: 7,
        commit: "0123abc".into(),
        coordinators,
        workers: 20,
        entries: 1,
        virtual_s: 600.0,
        cpu_s: 1.0,
        peak_rss_mib: 30.0,
        trace_hash: "00".into(),
        events: 1,
        violations: Vec::new(),
        figures: std::collections::BTreeMap::new(),
        plan: Plan::default(),
        neighbours: ring.collect(),
    }
}

fn series(seconds: u32) -> Vec<Sample> {
    let sample = |t: u32| Sample {
        t_s: t.into(),
        nodes_up: 25,
        digests: 1 + t % 3,
        agreeing: 1.0 / f64::from(1 + t % 3),
        messages: 100 * u64::from(t),
        bytes: 20_000 * u64::from(t),
        requests: u64::from(t) * 10,
        answered: u64::from(t) * 9,
        failed: u64::from(t),
        routable: 19,
        workers_up: 20,
        faults: u32::from(t % 100 > 60),
        ..Sample::default()
    };
    (0..seconds).map(sample).collect()
}

fn write(directory: &Path, name: &str, summary: &Summary, series: &[Sample]) -> PathBuf {
    let path = directory.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec(summary).unwrap()).unwrap();
    std::fs::write(path.with_extension("csv"), to_csv(series)).unwrap();
    path
}

#[test]
fn every_picture_is_written_as_svg_and_as_png_and_is_the_same_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let results = [("a", 5), ("b", 50)]
        .map(|(name, coordinators)| write(directory.path(), name, &summary(coordinators), &series(2000)));
    let out = directory.path().join("out/deep");
    let written = plot(&results, &out).unwrap();
    assert_eq!(written.len(), 2 * (2 * 3 + 1));
    let bytes: Vec<_> = written.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, bytes) in written.iter().zip(&bytes) {
        match path.extension().unwrap().to_str().unwrap() {
            "png" => {
                let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
                let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
                reader.next_frame(&mut pixels).unwrap();
                let ink = pixels.iter().filter(|byte| **byte < 128).count();
                assert!(ink > 3000, "{} is nearly white: {ink}", path.display());
            }
            _ => assert!(String::from_utf8_lossy(bytes).contains("<svg")),
        }
    }
    assert_eq!(plot(&results, &out).unwrap(), written);
    for (path, before) in written.iter().zip(&bytes) {
        assert!(std::fs::read(path).unwrap() == *before, "{} differs", path.display());
    }
}

#[test]
fn runs_in_which_little_happened_can_be_drawn_too() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Summary { neighbours: Vec::new(), coordinators: 0, workers: 0, ..summary(1) };
    let results = [
        write(directory.path(), "still", &nobody, &[Sample::default()]),
        write(directory.path(), "alone", &summary(1), &series(2)),
    ];
    assert!(plot(&results, directory.path()).is_ok());
}

#[test]
fn what_cannot_be_drawn_is_told_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("text.json"), "not JSON").unwrap();
    std::fs::write(path("other.json"), "{\"a\": 1}").unwrap();
    std::fs::write(path("later.json"), "{\"format\": 99}").unwrap();
    std::fs::write(path("less.json"), format!("{{\"format\": {FORMAT}}}")).unwrap();
    write(directory.path(), "bare", &summary(3), &[]);
    std::fs::remove_file(path("bare.csv")).unwrap();
    write(directory.path(), "empty", &summary(3), &[]);
    write(directory.path(), "broken", &summary(3), &series(3));
    std::fs::write(path("broken.csv"), "a,b\n").unwrap();
    let one = write(directory.path(), "same", &summary(3), &series(3));
    std::fs::create_dir(path("elsewhere")).unwrap();
    let other = write(&path("elsewhere"), "same", &summary(3), &series(3));
    let all: [(&[PathBuf], &str); 9] = [
        (&[], "--out DIR"),
        (&[path("missing.json")], "--out DIR"),
        (&[path("text.json")], "is not the summary"),
        (&[path("other.json")], "is not the summary"),
        (&[path("later.json")], "format 99"),
        (&[path("less.json")], "missing field"),
        (&[path("bare.json")], "in one folder"),
        (&[path("empty.json")], "--for"),
        (&[path("broken.json")], "Run the simulation again"),
    ];
    for (results, says) in all {
        let error = plot(results, &path("out")).unwrap_err().to_string();
        assert!(error.contains(says), "{results:?}: {error}");
    }
    assert!(matches!(plot(&[one, other], &path("out")), Err(PlotError::SameName { .. })));
    assert!(!path("out").exists(), "nothing is made before it is known that there is something to draw");
}
