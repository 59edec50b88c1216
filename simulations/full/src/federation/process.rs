//! A process of the simulated federation: a set of tasks that can be stopped, killed, slowed and started again.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Sleep;
use tracing::Span;

use crate::{narrator, time};

/// How far behind a slow processor can be: what a machine has to do is bounded by what it can take in.
const BACKLOG_MAX: Duration = Duration::from_secs(5);

/// A process. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Process(Arc<Inner>);

struct Inner {
    /// In which all that it says is said.
    span: Span,
    tasks: Mutex<JoinSet<()>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    machine: time::ProcessView,
    /// Who stopped it: it runs when none of them does.
    stops: u32,
    /// Counts up when it runs again, so that a task waits once for each stop.
    epoch: u64,
    waiting: Vec<Waker>,
    /// How long its processor is busy each time that one of its tasks runs, and until when it is.
    slow_by: Duration,
    busy_until: Duration,
    killed: bool,
}

impl Process {
    /// One of this node, which has no tasks yet.
    pub fn of(node: u32) -> Self {
        Self(Arc::new(Inner { span: narrator::span(node), tasks: Mutex::default(), state: Mutex::default() }))
    }

    /// Runs a task of the process.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if self.state().killed {
            return;
        }
        let gated = Gated { process: self.clone(), task: Box::pin(task), waits: None, turn: None };
        let mut tasks = self.tasks();
        // Those that have ended are not kept.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(gated);
    }

    /// None of its tasks runs any more until [`Process::go_on`], as after SIGSTOP; the machine goes on taking in what arrives.
    pub fn stop(&self) {
        self.state().stops += 1;
    }

    /// They run again.
    pub fn go_on(&self) {
        let waiting = {
            let mut state = self.state();
            state.stops = state.stops.saturating_sub(1);
            if state.stops > 0 {
                return;
            }
            state.epoch += 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Its processor takes so long each time that one of its tasks has something to do.
    pub fn set_slow(&self, by: Duration) {
        self.state().slow_by = by;
    }

    /// When a task that has something to do now gets the processor.
    fn turn(&self) -> Option<Duration> {
        let mut state = self.state();
        if state.slow_by.is_zero() {
            return None;
        }
        let now = time::now().since_origin();
        let turn = state.busy_until.clamp(now, now + BACKLOG_MAX);
        state.busy_until = turn + state.slow_by;
        (turn > now).then_some(turn - now)
    }

    /// Ends it as SIGKILL does: at once, and nothing is put in order. The machine closes its connections.
    pub async fn kill(&self) {
        let waiting = {
            let mut state = self.state();
            state.killed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    /// How far its wall clock is off.
    pub fn set_wall_skew(&self, ahead: Duration) {
        self.state().machine.wall_skew = ahead;
    }

    /// In which all that it says is said.
    pub fn span(&self) -> Span {
        self.0.span.clone()
    }

    /// Does something as the process would: with its clock, and in its name.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let view = self.state().machine;
        let before = time::enter_process(view);
        let result = self.0.span.in_scope(work);
        time::enter_process(before);
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl libp2p::swarm::Executor for Process {
    fn exec(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.spawn(task);
    }
}

/// A task that runs while its process does.
struct Gated {
    process: Process,
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// It waits for the end of the stop of this epoch.
    waits: Option<u64>,
    /// It waits for the processor.
    turn: Option<Pin<Box<Sleep>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        {
            let mut state = this.process.state();
            if state.stops > 0 {
                if this.waits.replace(state.epoch) != Some(state.epoch) {
                    state.waiting.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
        }
        let Self { process, task, turn, .. } = this;
        if turn.is_none() {
            *turn = process.turn().map(|after| Box::pin(tokio::time::sleep(after)));
        }
        if let Some(waits) = turn {
            ready!(waits.as_mut().poll(cx));
            *turn = None;
        }
        process.within(|| task.as_mut().poll(cx))
    }
}
