//! One request's way: pick a node, send, wait for the verdict and the answer, and either pass it on or try again as the
//! retry rule says.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use hedgerow_proto::frame::{Preface, Refusal, ServiceConnection, StreamKind};
use hedgerow_proto::id::RequestId;
use hedgerow_proto::retry::{self, Attempts, Decision, Failure, Outcome, Repeat, RetryBudget};
use hedgerow_proto::route::{self, BalancingPolicy, Pick, PowerOfTwoChoices, Standing, Target};
use hedgerow_tunnel::{Breakage, Verdict};
use http::header::{CONNECTION, HOST, ORIGIN, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::sleep;
use tracing::debug;

use crate::balance::{Busy, Candidate, Directory, Offer, Running};
use crate::body::{AttemptBody, BodyError, RequestBody, ResponseBody, Upload, UploadLimits};
use crate::clock::now;
use crate::config::{ForwardConfig, Peer};
use crate::connection::{Active, Connection, Reuse};
use crate::headers::{self, Brings, X_ATTEMPTS, X_REQUEST_ID, X_SERVED_BY};
use crate::pool::Pool;
use crate::problem::ForwardError;
use crate::stats::{Gauge, Gauged, Stats, bump};
use crate::target;
use crate::upgrade;

/// How often what has grown old in the pool is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Forwards requests on one thread. Clones are the same forwarder. It lives inside a `tokio::task::LocalSet`.
pub struct Forwarder<D>(Rc<Inner<D>>);

impl<D> Clone for Forwarder<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<D> {
    config: Arc<ForwardConfig>,
    directory: D,
    policy: Box<dyn BalancingPolicy>,
    stats: Arc<Stats>,
    pool: Rc<Pool>,
    random: RefCell<fastrand::Rng>,
    budget: RefCell<RetryBudget>,
    swept: Cell<Duration>,
}

/// A request on its way.
struct Job<'a> {
    target: Target<'a>,
    head: Parts,
    upload: Upload,
    upgrade: Option<upgrade::Asked>,
    request_id: RequestId,
    attempts: Attempts,
    since: Duration,
}

/// A service's answer, with all that the service had a say in.
struct Answer {
    response: Response<ResponseBody>,
    served_by: HeaderValue,
}

/// Why an attempt gave no answer.
enum Miss {
    /// The node's fault: another may do.
    Node(Failure),
    /// The client's.
    Client(ForwardError),
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
        let (id_text, request_id) = headers::request_id(request.headers(), &mut inner.random.borrow_mut());
        let form = target::check_form(request.method(), request.version(), request.uri());
        let extended_connect = request.extensions().get::<hyper::ext::Protocol>().is_some();
        let (parts, body) = request.into_parts();
        let path = parts.uri.clone();
        let result = match form {
            Err(ForwardError::Connect) if extended_connect => Err(ForwardError::ExtendedConnect),
            Err(error) => Err(error),
            Ok(()) => match inner.job(parts, path.path(), body.into(), peer, request_id) {
                Ok(mut job) => {
                    let result = inner.run(&mut job).await;
                    result.map(|answer| (answer, job.attempts.count() + 1))
                }
                Err(error) => Err(error),
            },
        };
        let mut response = match result {
            Ok((Answer { mut response, served_by }, attempts)) => {
                bump(&inner.stats.answered);
                response.headers_mut().insert(X_SERVED_BY, served_by);
                response.headers_mut().insert(X_ATTEMPTS, HeaderValue::from(attempts));
                response
            }
            Err(error) => {
                inner.count(&error);
                debug!(request = %request_id, %error, "not answered");
                error.problem().request_id(String::from_utf8_lossy(id_text.as_bytes())).into_response()
            }
        };
        inner.config.cors.apply(origin.as_ref(), response.headers_mut());
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
        &self,
        mut head: Parts,
        path: &'a str,
        body: RequestBody,
        peer: &Peer,
        request_id: RequestId,
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
        let uri = target::for_service(route.rest, head.uri.query())?;
        headers::to_service(&mut head, uri, route.prefix, peer, brings);
        if let Some(asked) = &upgrade {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, asked.protocol.clone());
        }
        let now = now();
        self.budget.borrow_mut().deposit(now);
        let attempts = Attempts::new(repeat, self.config.retry);
        Ok(Job { target: route.target, head, upload, upgrade, request_id, attempts, since: now })
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
            | ForwardError::Connect
            | ForwardError::Trace
            | ForwardError::ExtendedConnect
            | ForwardError::BodyTooLarge { .. }
            | ForwardError::BodyBroke(_) => &stats.bad_requests,
        });
    }

    /// Attempt after attempt, until there is an answer or the rule says that it is over.
    async fn run(&self, job: &mut Job<'_>) -> Result<Answer, ForwardError> {
        let mut backoff = Duration::from_millis(4);
        loop {
            let Some(offer) = self.directory.find(&job.target) else {
                return Err(self.nobody(job));
            };
            let running = Running { candidates: &offer.candidates, attempts: &job.attempts, now: now() };
            let picked = self.policy.pick(&running, &mut self.random.borrow_mut());
            let index = match picked {
                Pick::Take(index) => index,
                // A full node is excluded for one round: it may have room by now.
                Pick::Nobody if !job.attempts.met_full() || job.attempts.outcome() == Outcome::Unknown => {
                    return Err(self.nobody(job));
                }
                Pick::Nobody | Pick::AllFull => {
                    self.wait_for_room(job, &mut backoff).await?;
                    continue;
                }
            };
            let mut connection = match job.attempts.repeat() {
                Repeat::Idempotent => ServiceConnection::MayReuse,
                Repeat::Once => ServiceConnection::Fresh,
            };
            loop {
                let failure = match self.attempt(job, &offer, &offer.candidates[index], connection).await {
                    Ok(response) => {
                        let served_by = offer.candidates[index].served_by.clone();
                        return Ok(Answer { response, served_by });
                    }
                    Err(Miss::Client(error)) => return Err(error),
                    Err(Miss::Node(failure)) => failure,
                };
                match self.failed(job, &offer.candidates[index], failure) {
                    Decision::Elsewhere => break,
                    Decision::SameNodeFresh => connection = ServiceConnection::Fresh,
                    Decision::Fail(_) => return Err(self.give_up(job, failure)),
                }
            }
        }
    }

    /// Takes a failure down, and asks the rule.
    fn failed(&self, job: &mut Job<'_>, candidate: &Candidate, failure: Failure) -> Decision {
        let now = now();
        match failure {
            Failure::Refused(refusal) => {
                self.stats.refused(refusal);
                if refusal == Refusal::ServiceDown {
                    candidate.load.update(|cost| cost.failed(now, Duration::ZERO));
                }
            }
            Failure::StaleConnection => bump(&self.stats.stale_resends),
            Failure::Unaccepted | Failure::Suspected => bump(&self.stats.hedges),
            Failure::NotSent | Failure::Broken | Failure::TimedOut => {}
        }
        if !matches!(failure, Failure::Refused(_) | Failure::StaleConnection) {
            candidate.load.update(|cost| cost.failed(now, Duration::ZERO));
        }
        let body = if job.upload.is_whole() { retry::Body::Replayable } else { retry::Body::Gone };
        let budget = &mut self.budget.borrow_mut();
        let decision = job.attempts.failed(now, candidate.node, failure, body, retry::Answer::Nothing, budget);
        debug!(request = %job.request_id, node = %candidate.node.short(), reason = failure.as_str(), ?decision, "attempt failed");
        if !matches!(decision, Decision::Fail(_)) {
            bump(&self.stats.retries);
        }
        decision
    }

    /// Nobody is left to be asked.
    fn nobody(&self, job: &Job<'_>) -> ForwardError {
        let gone = |failure| matches!(failure, Failure::Refused(Refusal::Draining | Refusal::UnknownService));
        if job.attempts.failures().iter().all(|attempt| gone(attempt.failure)) {
            let (service, known) = (job.target.service().to_owned(), self.directory.known(&job.target));
            return ForwardError::Nobody { service, known };
        }
        ForwardError::Failed {
            service: job.target.service().to_owned(),
            attempts: job.attempts.failures().to_vec(),
            outcome: job.attempts.outcome(),
        }
    }

    fn give_up(&self, job: &Job<'_>, last: Failure) -> ForwardError {
        let (service, attempts) = (job.target.service().to_owned(), job.attempts.failures().to_vec());
        match (last, job.attempts.outcome()) {
            (Failure::Refused(Refusal::Full), Outcome::NotRun) => {
                ForwardError::AllFull { service, attempts, waited: now().saturating_sub(job.since) }
            }
            (Failure::TimedOut, _) => ForwardError::TimedOut { service, attempts, waited: self.config.answer_timeout },
            (_, outcome) => ForwardError::Failed { service, attempts, outcome },
        }
    }

    /// All are full: waits until an exchange of this thread ends, or for a moment.
    async fn wait_for_room(&self, job: &mut Job<'_>, backoff: &mut Duration) -> Result<(), ForwardError> {
        let waited = now().saturating_sub(job.since);
        if waited >= self.config.queue_timeout || self.stats.queued.load(Relaxed) >= self.config.queued_max as u64 {
            let (service, attempts) = (job.target.service().to_owned(), job.attempts.failures().to_vec());
            return Err(ForwardError::AllFull { service, attempts, waited });
        }
        let _gauge = Gauge::up(&self.stats, Gauged::Queued);
        // Full jitter: those that wait for the same node must not come back together.
        let share = self.random.borrow_mut().f64();
        let pause = Duration::from_millis(1) + backoff.mul_f64(share);
        tokio::select! {
            () = self.pool.room.notified() => {}
            () = sleep(pause) => {}
        }
        *backoff = (*backoff * 2).min(self.config.queue_backoff_max);
        job.attempts.forget_full();
        Ok(())
    }

    /// Whether somebody else would take the request at once, so that leaving this node is no loss.
    fn elsewhere(&self, job: &Job<'_>, offer: &Offer, here: &Candidate) -> bool {
        if job.attempts.repeat() == Repeat::Once || job.attempts.is_last_send() || !job.upload.is_whole() {
            return false;
        }
        let now = now();
        let free = |other: &Candidate| {
            let contender = other.contender(now);
            contender.standing == Standing::Live && contender.in_flight < contender.capacity
        };
        offer
            .candidates
            .iter()
            .any(|other| other.node != here.node && !job.attempts.excludes(&other.node) && free(other))
            && self.budget.borrow_mut().has(now)
    }

    /// One attempt at one node, until its answer can be passed on.
    async fn attempt(
        &self,
        job: &mut Job<'_>,
        offer: &Offer,
        candidate: &Candidate,
        connection: ServiceConnection,
    ) -> Result<Response<ResponseBody>, Miss> {
        let kind = if job.upgrade.is_some() { StreamKind::Upgrade } else { StreamKind::Http };
        let preface =
            Preface { kind, service: Some(offer.service.clone()), request: job.request_id, hops: 0, connection };
        let started = now();
        let mut pooled = kind == StreamKind::Http;
        loop {
            let kept = if pooled { self.pool.take(candidate.tunnel.id()) } else { None };
            pooled = kept.is_some();
            let client = match kept {
                Some(client) => client,
                None => self.open(candidate, kind).await?,
            };
            let (mut active, answer) = Active::begin(
                client,
                &preface,
                job.request(candidate.host.as_ref().unwrap_or(&self.config.service_host)),
                &self.pool,
                candidate.tunnel.id(),
                Busy::with(&candidate.load),
                candidate.tunnel.in_flight(),
                Gauge::up(&self.stats, Gauged::InFlight),
                &self.stats,
            );
            let answer = match self.wait(job, offer, candidate, &active, answer).await {
                Ok(answer) => answer,
                // An idle stream that died in the pool says nothing about the node: on to the next.
                Err(Miss::Node(Failure::NotSent)) if pooled => {
                    active.give_up();
                    continue;
                }
                Err(miss) => {
                    active.give_up();
                    return Err(miss);
                }
            };
            let (latency, at) = (now().saturating_sub(started), now());
            self.stats.latency(latency);
            candidate.load.update(|cost| match answer.status() {
                status if status.is_server_error() => cost.answered_with_error(at, latency),
                _ => cost.answered(at, latency),
            });
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                return self.switch(job, answer, active);
            }
            let (parts, body) = answer.into_parts();
            if !headers::keeps_connection(parts.version, &parts.headers) {
                active.set_reuse(Reuse::Never);
            }
            let body = self.receive(job, offer, candidate, &parts.headers, body, active).await?;
            let mut response = Response::from_parts(parts, body);
            *response.version_mut() = Version::HTTP_11;
            headers::from_service(response.headers_mut());
            return Ok(response);
        }
    }

    async fn open(&self, candidate: &Candidate, kind: StreamKind) -> Result<Connection, Miss> {
        bump(&self.stats.streams_opened);
        let opened = tokio::time::timeout(self.config.accept_timeout, candidate.tunnel.open()).await;
        let Ok(Ok(stream)) = opened else { return Err(Miss::Node(Failure::NotSent)) };
        Connection::new(stream, kind).await.map_err(|_| Miss::Node(Failure::NotSent))
    }

    /// Waits for the head of the answer, and watches the node meanwhile.
    async fn wait(
        &self,
        job: &Job<'_>,
        offer: &Offer,
        candidate: &Candidate,
        active: &Active,
        answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    ) -> Result<Response<Incoming>, Miss> {
        let Some(exchange) = active.exchange() else { return Err(Miss::Node(Failure::NotSent)) };
        // Only the body's further reading hangs on the verdict; for all else it is looked at when there is a reason.
        let mut verdict_wanted = !job.upload.is_empty();
        let mut watching = job.attempts.repeat() == Repeat::Idempotent;
        let mut phase = Phase::Patience;
        let suspected = candidate.tunnel.suspected();
        let timer = sleep(self.config.accept_patience + candidate.tunnel.rtt());
        tokio::pin!(answer, suspected, timer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return match answer {
                        Ok(answer) => {
                            job.upload.accepted();
                            Ok(answer)
                        }
                        Err(error) => Err(self.classify(job, exchange, &error)),
                    };
                }
                verdict = exchange.verdict(), if verdict_wanted => {
                    verdict_wanted = false;
                    if verdict == Verdict::Accepted {
                        job.upload.accepted();
                    }
                }
                () = &mut suspected, if watching => {
                    if self.elsewhere(job, offer, candidate) {
                        return Err(Miss::Node(Failure::Suspected));
                    }
                    // Nowhere to go: the node may come back, and answer.
                    watching = false;
                }
                () = &mut timer => {
                    let accepted = exchange.verdict_now() == Some(Verdict::Accepted);
                    let next = match phase {
                        _ if accepted && phase != Phase::Answer => {
                            phase = Phase::Answer;
                            self.config.answer_timeout
                        }
                        Phase::Patience => {
                            candidate.tunnel.suspect();
                            if self.elsewhere(job, offer, candidate) {
                                return Err(Miss::Node(Failure::Unaccepted));
                            }
                            phase = Phase::Accept;
                            self.config.accept_timeout
                        }
                        Phase::Accept => return Err(Miss::Node(Failure::Unaccepted)),
                        // As long as the client sends, the service need not answer.
                        Phase::Answer if !job.upload.is_sent() => self.config.answer_timeout,
                        Phase::Answer => return Err(Miss::Node(Failure::TimedOut)),
                    };
                    timer.as_mut().reset(tokio::time::Instant::now() + next);
                }
            }
        }
    }

    /// Why there was no answer.
    fn classify(&self, job: &Job<'_>, exchange: &hedgerow_tunnel::Exchange, error: &hyper::Error) -> Miss {
        if let Some(failure) = job.upload.failure() {
            return Miss::Client(client_fault(failure));
        }
        if error.is_canceled() {
            // Said only of a request that was never taken up.
            return Miss::Node(Failure::NotSent);
        }
        Miss::Node(match exchange.verdict_now() {
            Some(Verdict::Refused(refusal)) => Failure::Refused(refusal),
            _ if exchange.breakage() == Some(Breakage::StaleConnection) => Failure::StaleConnection,
            _ => Failure::Broken,
        })
    }

    /// The answer's body: whole if it is small and says so, as a stream otherwise.
    async fn receive(
        &self,
        job: &Job<'_>,
        offer: &Offer,
        candidate: &Candidate,
        headers: &HeaderMap,
        mut body: Incoming,
        active: Active,
    ) -> Result<ResponseBody, Miss> {
        if body.is_end_stream() {
            active.finish();
            return Ok(ResponseBody::empty());
        }
        let small = body.size_hint().exact().is_some_and(|bytes| bytes <= self.config.held_answer_bytes_max);
        if !small || is_event_stream(headers) {
            return Ok(ResponseBody::stream(body, active));
        }
        let mut chunks: VecDeque<Bytes> = VecDeque::new();
        let mut watching = job.attempts.repeat() == Repeat::Idempotent;
        let suspected = candidate.tunnel.suspected();
        tokio::pin!(suspected);
        while !body.is_end_stream() {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut suspected, if watching => {
                    if self.elsewhere(job, offer, candidate) {
                        active.give_up();
                        return Err(Miss::Node(Failure::Suspected));
                    }
                    watching = false;
                    continue;
                }
            };
            match frame {
                // An answer with a length has no trailers.
                Some(Ok(frame)) => chunks.extend(frame.into_data()),
                None => break,
                Some(Err(_)) => {
                    active.give_up();
                    return Err(Miss::Node(Failure::Broken));
                }
            }
        }
        active.finish();
        Ok(ResponseBody::held(chunks))
    }

    /// 101: the rest is bytes.
    fn switch(
        &self,
        job: &mut Job<'_>,
        mut answer: Response<Incoming>,
        active: Active,
    ) -> Result<Response<ResponseBody>, Miss> {
        let Some(asked) = job.upgrade.take() else {
            active.give_up();
            return Err(Miss::Node(Failure::Broken));
        };
        bump(&self.stats.upgrades);
        let service = hyper::upgrade::on(&mut answer);
        tokio::task::spawn_local(upgrade::copy(asked.client, service, active, self.config.upgrade_linger));
        let (mut parts, _) = answer.into_parts();
        let protocol = parts.headers.get(UPGRADE).cloned().unwrap_or(asked.protocol);
        headers::from_service(&mut parts.headers);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        Ok(Response::from_parts(parts, ResponseBody::empty()))
    }
}

impl Job<'_> {
    /// The request once more, its body from the beginning.
    fn request(&self, host: &HeaderValue) -> Request<AttemptBody> {
        let mut request = Request::new(self.upload.attempt());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        request.headers_mut().insert(HOST, host.clone());
        request
    }
}

/// What the timer of an attempt is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until the node is suspected.
    Patience,
    /// Until it is given up.
    Accept,
    /// It has accepted: until the service is given up.
    Answer,
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

fn client_fault(error: BodyError) -> ForwardError {
    match error {
        BodyError::TooLarge { max_bytes } => ForwardError::BodyTooLarge { max_bytes },
        other => ForwardError::BodyBroke(other.to_string()),
    }
}
