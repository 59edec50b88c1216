//! Of what kind the nodes are: within which bounds, and of which version.

use hedgerow_sim_model::results::{Sample, from_csv};

use crate::program;

/// Runs a small federation with this in its population and after it, which must end well: how things stood.
fn run(text: &str, seed: u64) -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.toml");
    let text = format!("about = 'x'\nlevels = ['full']\nduration = '4m'\nsettle = '2m'\n[population]\n{text}");
    std::fs::write(&path, text).unwrap();
    let summary = program::run_into(folder.path(), path.to_str().unwrap(), seed, |_| {});
    assert!(summary.is_good(), "seed {seed}: {:?}", summary.violations);
    let series = std::fs::read_to_string(folder.path().join("series.csv")).unwrap();
    from_csv(&series).unwrap()
}

#[test]
fn with_tiny_limits_a_crowd_finds_no_room_and_nobody_else_suffers() {
    let crowded = |entries: u32, limits: &str| {
        let text = format!(
            "entries = {entries}\ncoordinators = 4\nworkers = 6\nlimits = '{limits}'\n[load]\nrequests-per-second = 5.0\n\
             [[timeline]]\nat = '1m'\nlasts = '40s'\nfault = {{ kind = 'flash-crowd', workers = 12, within = '5s' }}\n"
        );
        run(&text, 1).iter().map(|sample| sample.records).max().unwrap()
    };
    // Each worker and its home's attachment, each coordinator and its lease.
    let all = 2 * (6 + 12 + 4);
    assert_eq!([0, 1].map(|entries| crowded(entries, "production")), [all, all]);
    // There is room for eight workers. An entry turns the others away; without one they have a home all the same, which says so.
    assert_eq!([0, 1].map(|entries| crowded(entries, "tiny")), [all - 10, all - 2 * 10]);
}

#[test]
fn what_later_versions_say_travels_to_all_and_comes_back_from_the_disk() {
    let text = |share: f64| {
        format!(
            "coordinators = 4\nworkers = 4\nelective = 0.5\nnewer-version = {share}\n[[timeline]]\nat = '1m'\nlasts = '20s'\n\
             fault = {{ kind = 'crash', who = {{ among = 'coordinators', count = 2 }} }}\n"
        )
    };
    for seed in 1..=2 {
        let at_the_end = |share: f64| run(&text(share), seed).last().unwrap().records;
        // That every coordinator holds what the others have said is checked at the end of each run.
        assert_eq!(at_the_end(1.0), at_the_end(0.0) + 4, "one record more of each coordinator");
    }
}
