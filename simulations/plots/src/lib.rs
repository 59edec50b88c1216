//! Pictures of what simulations left behind: each as SVG and as PNG, the same picture twice.
//!
//! ```text
//! load    ─ a summary and the time series beside it, or what is wrong with them
//! figure  ─ the frame of every picture (title, legend), and the two files that it becomes
//! panel   ─ axes, lines and shades
//! windows ─ a long series made short enough to draw
//! layout  ─ where the nodes of a mesh stand
//! convergence, availability, mesh ─ one picture of each run
//! cost    ─ one picture of all runs together
//! ```
//!
//! Drawn by plotters, the most used plotting library that draws both formats, with its default features off: text comes from a
//! font that is built in (`font/`), so that a machine without fonts and without fontconfig draws the same as any other.

use std::path::{Path, PathBuf};

mod availability;
mod convergence;
mod cost;
mod error;
mod figure;
mod layout;
mod load;
mod mesh;
mod panel;
#[cfg(test)]
mod tests;
mod windows;

pub use error::PlotError;

/// Draws all that can be drawn of these runs into `out`, which is made if it is missing. A result is the path of a summary; its time
/// series lies beside it. Returns the files that were written.
pub fn plot(results: &[PathBuf], out: &Path) -> Result<Vec<PathBuf>, PlotError> {
    let runs = load::load(results)?;
    figure::register_font()?;
    std::fs::create_dir_all(out)
        .map_err(|reason| PlotError::Write { path: out.to_owned(), reason: reason.to_string() })?;
    let mut written = Vec::new();
    for run in &runs {
        written.extend(figure::save(&convergence::picture(run), out, &format!("{}-convergence", run.stem))?);
        written.extend(figure::save(&availability::picture(run), out, &format!("{}-availability", run.stem))?);
        written.extend(figure::save(&mesh::picture(run), out, &format!("{}-mesh", run.stem))?);
    }
    written.extend(figure::save(&cost::picture(&runs), out, "cost")?);
    Ok(written)
}
