//! `hedgerow-sim lab`: the real binaries on a small network of their own: namespaces, behind routers that Linux makes, over lines that are
//! as long and as bad as the scenario wants, with faults that happen at their time.
//!
//! ```text
//! scenario, fault, router ─ what is wanted, as values       shipped ─ those that come with Hedgerow (simulations/lab)
//! netns, tap ─ namespaces and devices                       segment, traffic ─ the lines, as a state machine; wire ─ its thread
//! world ─ all of it together                                people ─ the processes in it
//! course, changes, strike ─ what happens when               verdict ─ what must hold, with figures
//! doors ─ what coordinators know                            needs ─ whether this machine can do that
//! same ─ a scenario of the simulation, as the lab plays it
//! ```
//!
//! Nothing stays behind: what is dropped removes its namespaces and ends its processes; the kernel ends the processes of a lab that is
//! killed; and the next lab removes the namespaces of those that are dead.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hedgerow_process::exit::Failure;
use hedgerow_process::shutdown::{Shutdown, Stage};
use hedgerow_sim_model::nat::can_punch;
use hedgerow_sim_model::scenario::Scenario as Simulation;

use crate::binaries::Binaries;
use crate::terminal::{Style, human, say};

mod changes;
mod course;
mod doors;
mod fault;
mod lans;
mod needs;
mod netns;
mod paths;
mod people;
mod router;
mod same;
mod scenario;
mod segment;
pub mod shipped;
mod strike;
mod tap;
mod traffic;
mod verdict;
mod wire;
mod world;

pub use needs::missing;
pub(crate) use netns::enter;
use people::People;
use scenario::Scenario;
use verdict::{Began, Figure};
use world::World;

/// In the place of a scenario: removes what labs have left that were killed.
const CLEAN: &str = "clean";
/// Of each process's log, when the scenario could not be played to its end.
const LOG_LINES: usize = 12;
/// The losses of the lines. (Nothing else is drawn, and real processes are not the same twice.)
const SEED: u64 = 1;

/// Arguments of `hedgerow-sim lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Scenarios that come with it, or paths of files. Without one: what there is. `clean` removes what a lab has left that was killed
    scenarios: Vec<String>,
    /// All that come with it, one after the other
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// When it is over everything stays as it is, to be looked at, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Keeps the logs of all processes in a folder for each scenario here
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Lists, cleans, or plays; an error if what must hold does not.
pub async fn run(args: LabArgs) -> Result<()> {
    if args.scenarios.is_empty() && !args.all {
        list();
        return Ok(());
    }
    let removed = ready()?;
    if args.scenarios == [CLEAN] {
        say(format!("removed {removed} of labs that are dead"));
        return Ok(());
    }
    let named: Vec<String> = match args.all {
        true => shipped::SHIPPED.iter().map(|shipped| shipped.name.to_owned()).collect(),
        false => args.scenarios,
    };
    let scenarios = named.iter().map(|named| find(named)).collect::<Result<Vec<_>, Failure>>()?;
    let binaries = Binaries::beside_this_one()?;
    let shutdown = Shutdown::on_signals().context("signals cannot be listened for")?;
    let mut failed = Vec::new();
    for (name, scenario) in scenarios {
        let (binaries, shutdown, logs) = (binaries.clone(), shutdown.clone(), args.logs.clone());
        let one = One { name: name.clone(), scenario, binaries, keep: args.keep, logs };
        match one.on_a_thread(shutdown.clone()).await {
            Ok(played) if played.holds() => {}
            Ok(_) => failed.push(name),
            // The others are played all the same.
            Err(error) if shutdown.stage() == Stage::Running => {
                say(format!("{name}: {error:#}"));
                failed.push(name);
            }
            Err(error) => return Err(error),
        }
        if shutdown.stage() != Stage::Running {
            break; // What was kept, or had just ended.
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        names => bail!("what must hold does not: {}", names.join(", ")),
    }
}

/// Whether this machine can do that; what dead labs have left is removed. How much that was.
pub(crate) fn ready() -> Result<usize> {
    needs::check()?;
    clean_up()
}

/// Whether the lab can play a scenario of the simulation; why not, if it cannot.
pub(crate) fn can_play(simulation: &Simulation) -> Result<(), String> {
    same::of(simulation).map(|_| ())
}

/// Plays a scenario of the simulation for its times: until all had joined, until half of the changes were everywhere, until all
/// agreed after the last fault.
pub(crate) async fn measure(
    name: &str,
    simulation: &Simulation,
    binaries: &Binaries,
    logs: Option<PathBuf>,
    shutdown: &Shutdown,
) -> Result<[Result<Duration, String>; 3]> {
    let scenario = same::of(simulation).map_err(Failure::usage)?;
    let one = One { name: name.to_owned(), scenario, binaries: binaries.clone(), keep: false, logs };
    Ok(one.on_a_thread(shutdown.clone()).await?.times)
}

fn list() {
    for shipped in shipped::SHIPPED {
        let about = Scenario::parse(shipped.name, shipped.text).map(|scenario| scenario.about);
        say(format!("{:20} {}", shipped.name, about.unwrap_or_else(|failure| failure.to_string())));
    }
}

fn find(named: &str) -> Result<(String, Scenario), Failure> {
    if let Some(shipped) = shipped::named(named) {
        return Ok((named.to_owned(), Scenario::parse(&format!("{named}.toml"), shipped.text)?));
    }
    let path = Path::new(named);
    if !path.exists() && path.extension().is_none() {
        let names = shipped::SHIPPED.iter().map(|shipped| shipped.name);
        let nearest = hedgerow_process::config::nearest(named, names).unwrap_or("hedgerow-sim lab, which lists them");
        return Err(Failure::usage(format!("no scenario of the lab is called {named}")).advice(nearest));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, Scenario::load(path)?))
}

/// Removes what dead labs have left: namespaces, and directories. How much that was.
fn clean_up() -> Result<usize> {
    let mut removed = netns::remove_leftovers()?.len();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(netns::owner);
        if owner.is_some_and(|owner| !owner.is_alive()) {
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => removed += 1,
                // Another lab that starts may have removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot remove {}", entry.path().display()));
                }
            }
        }
    }
    Ok(removed)
}

/// What came of it.
struct Played {
    figures: Vec<Figure>,
    /// See [`measure`].
    times: [Result<Duration, String>; 3],
}

impl Played {
    /// Whether all holds that must, and there is something.
    fn holds(&self) -> bool {
        !self.figures.is_empty() && self.figures.iter().all(|figure| figure.holds)
    }
}

/// One scenario that is to be played.
struct One {
    name: String,
    scenario: Scenario,
    binaries: Binaries,
    keep: bool,
    logs: Option<PathBuf>,
}

impl One {
    /// Plays it on a thread of its own, which may enter namespaces; what came of it. The first Ctrl-C ends it, with everything
    /// that it has made.
    async fn on_a_thread(self, shutdown: Shutdown) -> Result<Played> {
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("lab".to_owned()).spawn(move || done.send(self.play(&shutdown)))?;
        result.await.map_err(|_| anyhow!("the thread of the lab panicked"))?
    }

    fn play(&self, shutdown: &Shutdown) -> Result<Played> {
        let style = Style::detect();
        say(format!("{}: {}", style.bold(&self.name), self.scenario.about));
        let began = Instant::now();
        let world = World::build(&self.scenario, SEED, shutdown).context("the lab cannot be built")?;
        let (namespaces, nodes) = (world.namespaces(), self.scenario.members().len());
        let (pairs, meet) = pairs(&self.scenario);
        say(style.dim(format!(
            "          {namespaces} namespaces after {}; of {pairs} pairs of nodes {meet} could have a direct path by their routers",
            human(began.elapsed())
        )));
        // Where clients are: what connects from here connects from there.
        let played = world.client().within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::select! {
                    biased; // What is kept ends well with the same signal.
                    played = self.play_in(&world, shutdown, style) => played,
                    () = shutdown.draining() => bail!("stopped"),
                }
            })
        })?;
        say(match played.figures.iter().filter(|figure| !figure.holds).count() {
            0 if played.figures.is_empty() => {
                style.red(format!("{} measures nothing: its [must] asks for nothing", self.name))
            }
            0 => style.green(format!("{} holds, with {nodes} nodes, after {}", self.name, human(began.elapsed()))),
            wrong => {
                let look = if self.logs.is_none() { "; --logs DIR keeps the logs" } else { "" };
                style.red(format!("{} does not hold: {wrong} of {} figures{look}", self.name, played.figures.len()))
            }
        });
        Ok(played)
    }

    async fn play_in(&self, world: &World, shutdown: &Shutdown, style: Style) -> Result<Played> {
        let people = People::start(world, &self.scenario, &self.binaries).await?;
        let played = self.course(world, &people, style).await;
        if let Some(logs) = &self.logs {
            keep_logs(people.workdir().path(), &logs.join(&self.name))?;
        }
        match &played {
            Ok(played) => played.figures.iter().for_each(|figure| figure.say(style)),
            Err(error) => {
                say(format!("{} {error:#}", style.red("FAIL")));
                say(people.workdir().log_tails(LOG_LINES).trim_end());
            }
        }
        if self.keep {
            self.tell_where(world, &people);
            shutdown.draining().await;
        }
        played
    }

    async fn course(&self, world: &World, people: &People, style: Style) -> Result<Played> {
        let joined = match self.scenario.must.join_within {
            Some(within) if people.coordinators().next().is_some() => doors::agree(people, within.0 * 4)
                .await
                .map(|_| people.started.elapsed())
                .map_err(|error| format!("{error:#}")),
            _ => Ok(people.joined),
        };
        let met = match self.scenario.must.paths_within {
            Some(within) => Some(paths::met(people, people.started, within.0 * 4).await),
            None => None,
        };
        let told = joined.as_ref().map_or_else(String::clone, |joined| human(*joined));
        say(style.dim(format!("          all have joined after {told}")));
        if self.scenario.load.is_some() {
            first_request(world)?;
        }
        let happened = course::play(&self.scenario, world, people, style).await?;
        let agreed = happened.agreed.clone().unwrap_or_else(|| Err("nobody looked whether all agreed".to_owned()));
        let times = [joined.clone(), verdict::known(&happened, 0.5), agreed];
        let figures = verdict::judge(&self.scenario, world, people, Began { joined, met }, &happened).await?;
        Ok(Played { figures, times })
    }

    fn tell_where(&self, world: &World, people: &People) {
        say(format!("kept until Ctrl-C; files in {}", people.workdir().path().display()));
        say(format!("    ip netns exec {} curl http://{}/mesh/registry", world.client().name(), People::door()));
        for node in &people.nodes {
            let namespace = world.host(&node.member.name).map(netns::Namespace::name).unwrap_or_default();
            say(format!("    ip netns exec {namespace} …    process {}", node.actor.process().pid()));
        }
    }
}

/// How many pairs of nodes there are, and how many of them can come to a direct path at all: by RFC 4787, whatever the nodes know of it.
fn pairs(scenario: &Scenario) -> (usize, usize) {
    let places: Vec<_> = scenario.members().iter().map(|member| member.router.place()).collect();
    let pairs =
        || places.iter().enumerate().flat_map(|(index, one)| places[index + 1..].iter().map(move |other| (one, other)));
    (pairs().count(), pairs().filter(|(one, other)| can_punch(**one, **other)).count())
}

/// By a program of others, as anybody would ask.
fn first_request(world: &World) -> Result<()> {
    let url = format!("http://{}/service/{}/hello", People::door(), people::SERVICE);
    let patience = ["--retry", "3", "--retry-all-errors", "--max-time", "5"];
    let arguments: Vec<&str> = ["--fail", "--silent", "--show-error", &url].into_iter().chain(patience).collect();
    world.client().run("curl", &arguments, "").context("a first request by curl")?;
    Ok(())
}

fn keep_logs(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(from)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).context("cannot keep the logs")?;
        }
    }
    Ok(())
}
