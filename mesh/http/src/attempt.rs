//! One attempt at one node: from the stream that is taken or opened to an answer that can be passed on, or to the reason why
//! there is none.

use std::collections::VecDeque;

use bytes::Bytes;
use hedgerow_proto::attempts::{Ring, Upload, Waiting};
use hedgerow_proto::frame::{Preface, Refusal, StreamKind};
use hedgerow_proto::retry::{Failure, Repeat};
use hedgerow_tunnel::{Breakage, Exchange, Verdict};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use crate::balance::{Busy, Candidate, Directory, Offer};
use crate::body::ResponseBody;
use crate::clock::now;
use crate::connection::{Active, Connection, Reuse};
use crate::forward::{Inner, Job, client_fault};
use crate::headers;
use crate::problem::ForwardError;
use crate::stats::{Gauge, Gauged, bump};
use crate::upgrade;

/// Why an attempt gave no answer.
pub(crate) enum Miss {
    /// The node's fault: another may do.
    Node(Failure),
    /// The client's.
    Client(ForwardError),
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

impl<D: Directory> Inner<D> {
    /// One attempt at one node, until its answer can be passed on.
    pub(crate) async fn attempt(
        &self,
        job: &mut Job<'_>,
        offer: &Offer,
        candidate: &Candidate,
    ) -> Result<Response<ResponseBody>, Miss> {
        let kind = if job.upgrade.is_some() { StreamKind::Upgrade } else { StreamKind::Http };
        let preface = Preface {
            kind,
            node: None,
            service: Some(offer.service.clone()),
            request: job.request_id,
            hops: 0,
            connection: job.course.connection(),
            when_full: job.course.when_full(),
        };
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
                job.request(candidate, &self.config).map_err(Miss::Client)?,
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
            let at = now();
            let latency = at.saturating_sub(started);
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
        let patience = self.config.attempts.accept_patience + candidate.tunnel.rtt();
        match tokio::time::timeout(patience, candidate.tunnel.open()).await {
            Ok(Ok(stream)) => Connection::new(stream, kind).await.map_err(|_| Miss::Node(Failure::NotSent)),
            Ok(Err(_)) => Err(Miss::Node(Failure::NotSent)),
            // A stream is had at once, unless the node allows no more at a time than there are.
            Err(_) => Err(Miss::Node(Failure::Refused(Refusal::Full))),
        }
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
        let (mut waiting, rings_after) = Waiting::begin(&job.course, candidate.tunnel.rtt());
        let suspected = candidate.tunnel.suspected();
        let timer = sleep(rings_after);
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
                () = &mut suspected, if waiting.is_watching() => {
                    if let Some(failure) = waiting.suspected(self.elsewhere(job, offer, candidate)) {
                        return Err(Miss::Node(failure));
                    }
                }
                () = &mut timer => {
                    let accepted = exchange.verdict_now() == Some(Verdict::Accepted);
                    let upload = Upload { is_sent: job.upload.is_sent(), waits_behind: job.upload.waits_behind() };
                    let after = match waiting.rings(accepted, upload) {
                        Ring::Again(after) => after,
                        Ring::Silent => {
                            candidate.tunnel.suspect();
                            waiting.unaccepted(self.elsewhere(job, offer, candidate)).map_err(Miss::Node)?
                        }
                        Ring::Failed(failure) => return Err(Miss::Node(failure)),
                        Ring::Stalled => {
                            let waited = self.config.attempts.body_idle_timeout;
                            return Err(Miss::Client(ForwardError::BodyStalled { waited }));
                        }
                    };
                    timer.as_mut().reset(Instant::now() + after);
                }
            }
        }
    }

    /// Why there was no answer.
    fn classify(&self, job: &Job<'_>, exchange: &Exchange, error: &hyper::Error) -> Miss {
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
        // Mostly it is one chunk, for which nothing is allocated.
        let (mut first, mut more): (Option<Bytes>, VecDeque<Bytes>) = (None, VecDeque::new());
        let mut watching = job.course.attempts().repeat() == Repeat::Idempotent;
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
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) if first.is_none() => first = Some(chunk),
                    other => more.extend(other),
                },
                None => break,
                Some(Err(_)) => {
                    active.give_up();
                    return Err(Miss::Node(Failure::Broken));
                }
            }
        }
        active.finish();
        Ok(ResponseBody::held(first, more))
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
