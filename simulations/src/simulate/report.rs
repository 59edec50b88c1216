//! What is said of a run when it is over.

use std::fmt::Write;
use std::time::Duration;

use hedgerow_sim_model::plan::Incident;
use hedgerow_sim_model::results::{Summary, Violation};
use hedgerow_sim_model::span::Span;

use super::engine::{Done, Job};
use super::watch::whole;
use crate::terminal::{Style, grouped};

/// More violations than this say nothing more.
const VIOLATIONS_SHOWN: usize = 10;
/// Nor do more faults.
const INCIDENTS_SHOWN: usize = 40;

/// Which run it is.
pub(super) fn title(job: &Job) -> String {
    let layout = &job.layout;
    let mut text = format!(
        "{}, {} level, seed {}: {} entries, {} coordinators, {} workers",
        job.name,
        job.level,
        job.seed,
        layout.entries.len(),
        layout.coordinators.len(),
        layout.workers.len()
    );
    for (later, of_what) in
        [(layout.crowd.len(), "more that join in a crowd"), (layout.adversaries.len(), "adversaries")]
    {
        if later > 0 {
            let _ = write!(text, ", {later} {of_what}");
        }
    }
    text
}

/// A run as a person reads it, in lines.
pub(super) fn run(done: &Done, style: Style) -> Vec<String> {
    let Summary { virtual_s, cpu_s, peak_rss_mib, trace_hash, events, figures, violations, plan, .. } = &done.summary;
    let time = whole(Duration::from_secs_f64(virtual_s.max(0.0)));
    let speed = virtual_s / cpu_s.max(1e-3);
    let cost = format!(
        "{time} of virtual time with {}; {cpu_s:.1} s of CPU ({speed:.0} × real time), at most {peak_rss_mib:.0} MiB",
        match plan.incidents.len() {
            1 => "1 fault".to_owned(),
            faults => format!("{faults} faults"),
        }
    );
    let mut lines = match violations.is_empty() {
        true => vec![format!("{} nothing was wrong", style.green("●"))],
        false => vec![format!("{} {}", style.red("●"), style.bold(count(violations)))],
    };
    lines.extend(violation_lines(violations));
    lines.push(format!("  {cost}"));
    let width = figures.keys().map(String::len).max().unwrap_or(0);
    lines.extend(figures.iter().map(|(name, value)| format!("  {name:width$}  {}", figure(*value))));
    lines.push(style.dim(format!("  trace {trace_hash} ({} events)", grouped(*events as usize))));
    lines
}

/// What was wrong, one line each.
pub(super) fn violation_lines(violations: &[Violation]) -> Vec<String> {
    let mut lines: Vec<String> =
        violations.iter().take(VIOLATIONS_SHOWN).map(|violation| format!("  {violation}")).collect();
    if violations.len() > VIOLATIONS_SHOWN {
        lines.push(format!("  … and {} more", grouped(violations.len() - VIOLATIONS_SHOWN)));
    }
    lines
}

/// How many things were wrong.
pub(super) fn count(violations: &[Violation]) -> String {
    match violations.len() {
        1 => "1 violation".to_owned(),
        more => format!("{} violations", grouped(more)),
    }
}

/// A fault schedule, one line for each fault.
pub(super) fn schedule(incidents: &[Incident]) -> Vec<String> {
    if incidents.is_empty() {
        return vec!["  no fault is needed".into()];
    }
    let mut lines: Vec<String> = incidents.iter().take(INCIDENTS_SHOWN).map(incident).collect();
    if incidents.len() > INCIDENTS_SHOWN {
        lines.push(format!("  … and {} more", incidents.len() - INCIDENTS_SHOWN));
    }
    lines
}

/// `  1m 3s … 2m   crash node=4 silent=true`.
fn incident(incident: &Incident) -> String {
    // Nobody reads nanoseconds; the file has them.
    let at = |at: Span| Span::millis(u64::try_from(at.0.as_millis()).unwrap_or(u64::MAX));
    let begin = at(incident.at);
    let when = match incident.until.map(at) {
        Some(until) if until != begin => format!("{begin} … {until}"),
        Some(_) => begin.to_string(),
        None => format!("{begin} …"),
    };
    let mut text = String::new();
    if let Ok(serde_json::Value::Object(mut effect)) = serde_json::to_value(&incident.effect) {
        if let Some(kind) = effect.remove("kind").as_ref().and_then(serde_json::Value::as_str) {
            text.push_str(kind);
        }
        for (name, value) in effect.iter().filter(|(_, value)| **value != serde_json::Value::Bool(false)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(text, " {name}={value}");
        }
    }
    format!("  {when:32}  {text}")
}

/// With as many digits as say something.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => grouped_figure(value),
        some if some >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

fn grouped_figure(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", grouped(value.abs().round() as usize))
}

#[cfg(test)]
mod tests {
    use hedgerow_sim_model::plan::Effect;

    use super::*;

    #[test]
    fn a_schedule_reads_as_what_happens_to_whom_and_when() {
        let at = Span(Duration::from_nanos(63_000_000_789));
        let crash = Effect::Crash { node: 4, silent: true, wipe: false };
        let lines = schedule(&[
            Incident { at, until: Some(Span::seconds(120)), effect: crash },
            Incident { at, until: Some(at), effect: Effect::ClockJump { node: 2, by: Span::seconds(300) } },
            Incident { at, until: None, effect: Effect::Loss { rate: 0.25 } },
        ]);
        let squeezed: Vec<String> =
            lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            squeezed,
            ["1m 3s … 2m crash node=4 silent=true", "1m 3s clock-jump by=5m node=2", "1m 3s … loss rate=0.25"]
        );
        assert_eq!(schedule(&[]), ["  no fault is needed"]);
    }

    #[test]
    fn figures_have_the_digits_that_say_something() {
        assert_eq!([12_345.6, 12.34, 0.1234].map(figure), ["12,346", "12.3", "0.123"]);
    }
}
