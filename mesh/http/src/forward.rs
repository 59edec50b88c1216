//! One request's way: send it to the node that [`hedgerow_proto::attempts`] names, wait for the verdict and the answer, and
//! either pass it on or do what is said there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hedgerow_proto::attempts::{Course, End, Next, Then};
use hedgerow_proto::id::RequestId;
use hedgerow_proto::retry::{self, Failure, Outcome, Repeat, RetryBudget};
use hedgerow_proto::route::{self, BalancingPolicy, PowerOfTwoChoices, Target};
use http::header::{CONNECTION, HOST, ORIGIN, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use tokio::time::sleep;
use tracing::debug;

use crate::attempt::Miss;
use crate::balance::{Candidate, Directory, Offer, Standings};
use crate::body::{AttemptBody, BodyError, RequestBody, ResponseBody, Upload, UploadLimits};
use crate::clock::{now, time};
use crate::config::{ForwardConfig, Peer};
use crate::headers::{self, Brings, X_ATTEMPTS, X_REQUEST_ID, X_SERVED_BY};
use crate::pool::Pool;
use crate::problem::ForwardError;
use crate::stats::{Gauge, Gauged, Stats, bump};
use crate::target;
use crate::texts::Texts;
use crate::upgrade;

/// What the texts of a usual request take beside its path, in bytes: an id, a query, a host and an address.
const TEXTS_BYTES: usize = 224;
/// How often what has grown old in the pool is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Forwards requests on one thread. Clones are the same forwarder. It lives inside a `tokio::task::LocalSet`.
pub struct Forwarder<D>(Rc<Inner<D>>);

impl<D> Clone for Forwarder<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

pub(crate) struct Inner<D> {
    pub(crate) config: Arc<ForwardConfig>,
    pub(crate) directory: D,
    pub(crate) policy: Box<dyn BalancingPolicy>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) random: RefCell<fastrand::Rng>,
    pub(crate) budget: RefCell<RetryBudget>,
    pub(crate) swept: Cell<Duration>,
}

/// A request on its way.
pub(crate) struct Job<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) head: Parts,
    pub(crate) upload: Upload,
    pub(crate) upgrade: Option<upgrade::Asked>,
    pub(crate) request_id: RequestId,
    /// Where it has been, and where it goes next.
    pub(crate) course: Course<'a>,
}

/// A service's answer, with all that the service had a say in.
struct Answer {
    response: Response<ResponseBody>,
    served_by: HeaderValue,
}

impl<D: Directory> Forwarder<D> {
    /// A forwarder for this thread. `stats` is its own; `seed` is for the balancing and for request ids.
    pub fn new(config: Arc<ForwardConfig>, directory: D, stats: Arc<Stats>, seed: u64) -> Self {
        Self::with_policy(config, directory, stats, seed, Box::new(PowerOfTwoChoices))
    }

    /// A forwarder with another way of spreading requests.
    pub fn with_policy(
        config: Arc<ForwardConfig>,
        directory: D,
        stats: Arc<Stats>,
        seed: u64,
        policy: Box<dyn BalancingPolicy>,
    ) -> Self {
        let now = now();
        Self(Rc::new(Inner {
            pool: Rc::new(Pool::new(config.idle_streams_max, config.idle_stream_timeout)),
            config,
            directory,
            policy,
            stats,
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            budget: RefCell::new(RetryBudget::new(now)),
            swept: Cell::new(now),
        }))
    }

    /// The directory that it was made with.
    pub fn directory(&self) -> &D {
        &self.0.directory
    }

    /// Lets go of idle streams that have grown old or whose tunnel is gone. Requests do it in passing; a caller's timer
    /// does it when none come.
    pub fn sweep(&self) {
        let now = now();
        self.0.swept.set(now);
        self.0.pool.sweep(now);
    }

    /// Answers a request whose path [`is_routed`](crate::is_routed): from a service, or with a problem. Dropping the
    /// future, or the answer's body before its end, cancels the work at the service at once.
    pub async fn forward<B: Into<RequestBody>>(&self, request: Request<B>, peer: &Peer) -> Response<ResponseBody> {
        let inner = &*self.0;
        bump(&inner.stats.requests);
        if let Some(answer) = inner.config.cors.preflight(request.method(), request.headers()) {
            return answer;
        }
        let origin = request.headers().get(ORIGIN).cloned();
        // The id, the target, and the rest of the path and what else is said of the request's way.
        let mut texts = Texts::with_capacity(TEXTS_BYTES + 2 * request.uri().path().len());
        let (id_text, request_id) =
            headers::request_id_in(request.headers(), &mut inner.random.borrow_mut(), &mut texts);
        let form = target::check_form(request.method(), request.version(), request.uri());
        let extended_connect = request.extensions().get::<hyper::ext::Protocol>().is_some();
        let (parts, body) = request.into_parts();
        let path = parts.uri.clone();
        let mut attempts = 0;
        let result = match form {
            Err(ForwardError::Connect) if extended_connect => Err(ForwardError::ExtendedConnect),
            Err(error) => Err(error),
            Ok(()) => match inner.job(parts, path.path(), body.into(), peer, (&id_text, request_id), &mut texts) {
                Ok(mut job) => {
                    let result = inner.run(&mut job).await;
                    attempts = job.course.attempts().count() + usize::from(result.is_ok());
                    result
                }
                Err(error) => Err(error),
            },
        };
        let mut response = match result {
            Ok(Answer { mut response, served_by }) => {
                bump(&inner.stats.answered);
                response.headers_mut().insert(X_SERVED_BY, served_by);
                response
            }
            Err(error) => {
                inner.count(&error);
                debug!(request = %request_id, %error, "not answered");
                error.problem().request_id(String::from_utf8_lossy(id_text.as_bytes())).into_response()
            }
        };
        inner.config.cors.apply(origin.as_ref(), response.headers_mut());
        response.headers_mut().insert(X_ATTEMPTS, headers::count(attempts));
        response.headers_mut().insert(X_REQUEST_ID, id_text);
        if now().saturating_sub(inner.swept.get()) >= SWEEP_INTERVAL {
            self.sweep();
        }
        response
    }
}

impl<D: Directory> Inner<D> {
    /// Makes ready what is the same for each attempt.
    fn job<'a>(
        &'a self,
        mut head: Parts,
        path: &'a str,
        body: RequestBody,
        peer: &Peer,
        (id_text, request_id): (&HeaderValue, RequestId),
        texts: &mut Texts,
    ) -> Result<Job<'a>, ForwardError> {
        let route = route::parse(path).unwrap_or(Err(route::RouteError::Service))?;
        let repeat = Repeat::of_method(head.method.as_str());
        let limits = UploadLimits {
            replay_bytes_max: self.config.replay_bytes_max,
            bytes_max: self.config.body_bytes_max,
            keep_after_accept: repeat == Repeat::Idempotent,
        };
        let upload = Upload::new(body, limits).map_err(client_fault)?;
        let brings = if upload.is_empty() { Brings::Nothing } else { Brings::Body };
        let upgrade = if upload.is_empty() { upgrade::asked(&mut head) } else { None };
        let uri = target::for_service(route.rest, head.uri.query(), texts)?;
        headers::to_service(&mut head, uri, route.prefix, peer, brings, texts);
        head.headers.insert(X_REQUEST_ID, id_text.clone());
        if let Some(asked) = &upgrade {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, asked.protocol.clone());
        }
        let now = time();
        self.budget.borrow_mut().deposit(now.since_origin());
        let course = Course::new(now, repeat, &self.config.attempts);
        Ok(Job { target: route.target, head, upload, upgrade, request_id, course })
    }

    fn count(&self, error: &ForwardError) {
        let stats = &self.stats;
        bump(match error {
            ForwardError::Nobody { .. } => &stats.nobody,
            ForwardError::AllFull { .. } => &stats.all_full,
            ForwardError::Failed { outcome: Outcome::NotRun, .. } => &stats.failed_not_run,
            ForwardError::Failed { outcome: Outcome::Unknown, .. } | ForwardError::TimedOut { .. } => {
                &stats.failed_unknown
            }
            ForwardError::Route(_)
            | ForwardError::AbsoluteForm
            | ForwardError::NoPath
            | ForwardError::TargetTooLong
            | ForwardError::Connect
            | ForwardError::Trace
            | ForwardError::ExtendedConnect
            | ForwardError::BodyTooLarge { .. }
            | ForwardError::BodyBroke(_)
            | ForwardError::BodyStalled { .. } => &stats.bad_requests,
        });
    }

    /// Attempt after attempt, until there is an answer or the rule says that it is over.
    async fn run(&self, job: &mut Job<'_>) -> Result<Answer, ForwardError> {
        loop {
            let Some(offer) = self.directory.find(&job.target) else {
                return Err(self.ended(job, job.course.nobody()));
            };
            let index = match self.next(job, &offer) {
                Next::Ask(index) => index,
                Next::Wait(pause) => {
                    self.wait_for_room(&offer, pause).await;
                    job.course.waited(time());
                    continue;
                }
                Next::End(end) => return Err(self.ended(job, end)),
            };
            let candidate = &offer.candidates[index];
            loop {
                let failure = match self.attempt(job, &offer, candidate).await {
                    Ok(response) => return Ok(Answer { response, served_by: candidate.served_by.clone() }),
                    Err(Miss::Client(error)) => return Err(error),
                    Err(Miss::Node(failure)) => failure,
                };
                match self.failed(job, candidate, failure) {
                    Then::Elsewhere => break,
                    Then::SameNode => {}
                    Then::End(end) => return Err(self.ended(job, end)),
                }
            }
        }
    }

    fn next(&self, job: &mut Job<'_>, offer: &Offer) -> Next {
        let now = time();
        let standings = Standings { candidates: &offer.candidates, now: now.since_origin() };
        let queued = || usize::try_from(self.stats.queued.load(Relaxed)).unwrap_or(usize::MAX);
        job.course.next(now, &standings, &*self.policy, &mut self.random.borrow_mut(), queued)
    }

    /// Takes a failure down, and asks the rule.
    fn failed(&self, job: &mut Job<'_>, candidate: &Candidate, failure: Failure) -> Then {
        let now = time();
        match failure {
            Failure::Refused(refusal) => self.stats.refused(refusal),
            Failure::StaleConnection => bump(&self.stats.stale_resends),
            Failure::Unaccepted | Failure::Suspected => bump(&self.stats.hedges),
            Failure::NotSent | Failure::Broken | Failure::TimedOut => {}
        }
        if failure.is_penalised() {
            candidate.load.update(|cost| cost.failed(now.since_origin(), Duration::ZERO));
        }
        let budget = &mut self.budget.borrow_mut();
        let then = job.course.failed(now, candidate.node, failure, job.body(), retry::Answer::Nothing, budget);
        debug!(request = %job.request_id, node = %candidate.node.short(), reason = failure.as_str(), ?then, "attempt failed");
        if !matches!(then, Then::End(_)) {
            bump(&self.stats.retries);
        }
        then
    }

    /// What the client is told.
    fn ended(&self, job: &Job<'_>, end: End) -> ForwardError {
        let service = job.target.service().to_owned();
        let attempts = || job.course.attempts().failures().to_vec();
        match end {
            End::Nobody => ForwardError::Nobody { service, known: self.directory.known(&job.target) },
            End::AllFull { waited } => ForwardError::AllFull { service, attempts: attempts(), waited },
            End::TimedOut => {
                ForwardError::TimedOut { service, attempts: attempts(), waited: self.config.attempts.answer_timeout }
            }
            End::Failed(outcome) => ForwardError::Failed { service, attempts: attempts(), outcome },
        }
    }

    /// All are full: waits until an exchange with one of them ends, or for so long.
    async fn wait_for_room(&self, offer: &Offer, pause: Duration) {
        let _gauge = Gauge::up(&self.stats, Gauged::Queued);
        let room = async {
            match offer.candidates.first() {
                Some(candidate) => candidate.load.room().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = room => {}
            () = sleep(pause) => {}
        }
    }

    /// Whether somebody else would take the request at once, so that leaving this node is no loss.
    pub(crate) fn elsewhere(&self, job: &Job<'_>, offer: &Offer, here: &Candidate) -> bool {
        let now = time();
        let standings = Standings { candidates: &offer.candidates, now: now.since_origin() };
        job.course.may_leave(now, &here.node, &standings, job.body(), &mut self.budget.borrow_mut())
    }
}

impl Job<'_> {
    /// Whether it can be sent again.
    fn body(&self) -> retry::Body {
        if self.upload.is_whole() { retry::Body::Replayable } else { retry::Body::Gone }
    }

    /// The request once more, as this candidate has to be asked, its body from the beginning.
    pub(crate) fn request(
        &self,
        candidate: &Candidate,
        config: &ForwardConfig,
    ) -> Result<Request<AttemptBody>, ForwardError> {
        let uri = match &candidate.base {
            None => self.head.uri.clone(),
            Some(base) => target::under(base, &self.head.uri)?,
        };
        let mut request = Request::new(self.upload.attempt());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.head.headers.clone();
        request.headers_mut().insert(HOST, candidate.host.as_ref().unwrap_or(&config.service_host).clone());
        Ok(request)
    }
}

pub(crate) fn client_fault(error: BodyError) -> ForwardError {
    match error {
        BodyError::TooLarge { max_bytes } => ForwardError::BodyTooLarge { max_bytes },
        other => ForwardError::BodyBroke(other.to_string()),
    }
}
