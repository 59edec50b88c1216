//! Tells what one node says, for people: the events that the code that ships logs, with the virtual time.
//!
//! Whose words they are says the span in which they are said: all that a node does is done in its own ([`span`]), also what runs in
//! tasks of the product. Libraries are told of when they warn, and the code that ships from `debug` on.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_sim_model::narration::Narration;
use hedgerow_sim_model::plan::Effect;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Span, Subscriber, info_span};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::time;

/// How the names of all crates of ours begin.
const OURS: &str = "hedgerow";
/// What the span of a node is called.
const SPAN: &str = "node";

/// In which all is said that a node says. It costs nothing while nobody listens.
pub(crate) fn span(node: u32) -> Span {
    info_span!(SPAN, node)
}

/// See the module. Cloning gives another handle to the same one.
#[derive(Debug, Clone)]
pub struct Narrator {
    of: u32,
    narration: Arc<Mutex<Narration>>,
}

impl Narrator {
    /// One that tells of this node, and has heard nothing yet.
    pub fn new(of: u32) -> Self {
        Self { of, narration: Arc::default() }
    }

    /// Hears what is said.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
        let told = Targets::new().with_default(LevelFilter::WARN).with_target(OURS, LevelFilter::DEBUG);
        Listens(self.clone()).with_filter(told)
    }

    /// A fault begins now, or is over.
    pub(crate) fn fault(&self, effect: &Effect, begins: bool) {
        self.narration().fault(time::now().since_origin(), effect, begins);
    }

    /// All that was told until now.
    pub fn finish(&self) -> Vec<String> {
        std::mem::take(&mut *self.narration()).finish()
    }

    fn narration(&self) -> MutexGuard<'_, Narration> {
        self.narration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listens(Narrator);

/// Marks the spans of the node that is told of.
struct Told;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listens {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut of = Node(None);
        if attributes.metadata().name() == SPAN {
            attributes.record(&mut of);
        }
        if let Some(span) = context.span(id).filter(|_| of.0 == Some(self.0.of.into())) {
            span.extensions_mut().insert(Told);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let is_told = |span: tracing_subscriber::registry::SpanRef<'_, S>| span.extensions().get::<Told>().is_some();
        if context.event_scope(event).is_some_and(|mut spans| spans.any(is_told)) {
            let mut words = Words::default();
            event.record(&mut words);
            let (level, target) = (event.metadata().level(), event.metadata().target());
            let text = format!("{level:>5} {target}: {}{}", words.message, words.fields);
            self.0.narration().line(time::now().since_origin(), &text);
        }
    }
}

/// The number of a span's node.
struct Node(Option<u64>);

impl Visit for Node {
    fn record_u64(&mut self, _: &Field, value: u64) {
        self.0 = Some(value);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// An event as a person reads it.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // A string takes whatever is written to it.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
