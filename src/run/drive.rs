//! A run's task: the agent's loop until it is done or something ends it, then the turn, then the last event.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Ended, OnCancel, OnDisconnect, Run, Runs, follow, recall::Recalled, shutting_down};
use crate::{
    agent::{
        self, Agent, Kit, Listener, Turn,
        step::{Bounds, Candidate},
    },
    chat::{Answer, Artifact, Done, Event, JsonText, ModelCall},
    error::{Error, ErrorCode},
    limit::Reservation,
    meters::{Direction, Outcome},
    patience::Patience,
    store::{Commit, MessageStatus, RunEnd, RunStatus},
    telemetry::trace::{Kind, Span, TraceContext},
    tool::{Offer, ToolContext},
};

/// How long a turn may take to be written. Longer than the stores' own patience: they know whether a turn that is late can
/// still be taken back, and wait for its outcome if it cannot.
const COMMIT: Duration = Duration::from_secs(70);

/// How long it may take to write down that a turn could not be: its reader has waited already.
const REGRET: Duration = Duration::from_secs(1);

/// How often to ask whether a run that nobody reads here is still read at another gateway.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// What a run's task works with.
pub(super) struct Driven {
    pub(super) agent: Arc<Agent>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) turn: Turn,
    pub(super) tools: Vec<Offer>,
    /// The names of tools that this caller may not use.
    pub(super) denied: Vec<String>,
    /// The request's `context`.
    pub(super) facts: serde_json::Map<String, serde_json::Value>,
    pub(super) include_reasoning: bool,
    /// What the run is part of.
    pub(super) trace: Option<TraceContext>,
    pub(super) recalled: Recalled,
    /// The memory of the question, and of the history, held as long as they are.
    pub(super) memory: (Option<Arc<Reservation>>, Reservation),
}

impl Runs {
    /// Runs a run to its end. Whatever happens, exactly one last event is told.
    pub(super) async fn drive(self: Arc<Self>, run: Arc<Run>, mut driven: Driven) {
        let bounds = Bounds {
            max_output: self.limits.max_output,
            include_reasoning: driven.include_reasoning,
        };
        let Driven {
            agent,
            candidates,
            turn,
            tools,
            denied,
            facts,
            trace,
            recalled,
            memory: (_, memory),
            ..
        } = &mut driven;
        let shelf = self.shelf(&run);
        let mut span = self.begin_span(&run, *trace);
        let kit = Kit {
            tools,
            denied,
            context: ToolContext {
                run_id: run.id,
                facts: Arc::new(std::mem::take(facts)),
                trace: None, // each call has its own
            },
            shelf: &shelf,
            began: run.began,
            until: run.began + self.limits.deadline,
            meters: &self.meters,
            span: &span,
        };
        let mut ear = Ear { runs: &self, run: &run };
        let work = async {
            if let Recalled::Later(until) = recalled {
                let history = Box::pin(self.called(&run, until, memory)).await?;
                turn.follow_on(history.messages);
                *recalled = Recalled::Now {
                    version: history.session.version,
                    truncated: history.truncated,
                };
            }
            agent::answer(agent, candidates, bounds, &kit, turn, &mut ear).await
        };
        let work = AssertUnwindSafe(work).catch_unwind();
        let outcome = tokio::select! {
            // What ends the run from outside is asked first: work that is always ready leaves nothing of the task's budget, and
            // without any no clock is ever found to have run out.
            biased;
            stopped = self.stopped(&run) => Err(stopped),
            outcome = work => match outcome {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err((RunStatus::Failed, error)),
                // Where it was is in the log; what it says may quote a message.
                Err(_) => Err((RunStatus::Failed, Error::internal("a panic"))),
            },
        };
        let outcome = match run.fence.is_lost() {
            true => Err((RunStatus::Interrupted, follow::interrupted())),
            false => outcome,
        };
        // Boxed, because a run waits for its model most of its life, and need not hold room for its end meanwhile.
        let end = Box::pin(self.conclude(&run, driven, shelf.kept(), outcome, span.context()));
        if AssertUnwindSafe(end).catch_unwind().await.is_err() {
            self.broke(&run);
        }
        end_span(&mut span, &run);
        self.registry.finished(&run);
    }

    /// The run, as part of a trace.
    fn begin_span(&self, run: &Run, trace: Option<TraceContext>) -> Span {
        let mut span = self
            .tracer
            .span(trace, Kind::Internal, || format!("invoke_agent {}", run.agent));
        span.note("gen_ai.operation.name", || "invoke_agent");
        span.note("gen_ai.agent.name", || run.agent.as_str());
        if let Some(session) = &run.session_id {
            span.note("gen_ai.conversation.id", || session.as_str());
        }
        span.note("sluicegate.run.id", || run.id.to_string());
        span
    }

    /// Waits for whatever ends a run from outside.
    async fn stopped(&self, run: &Run) -> (RunStatus, Error) {
        let cancelled = |why: &str| (RunStatus::Cancelled, Error::new(ErrorCode::Cancelled, why));
        tokio::select! {
            biased;
            // Asked at every step of the run's task, so that nothing is said or done once the run may be another gateway's.
            () = run.fence.lost() => (RunStatus::Interrupted, follow::interrupted()),
            () = run.cancel.cancelled() => cancelled("The run was cancelled."),
            () = self.abandoned(run) => cancelled("The run was cancelled because nobody was reading it any more."),
            () = tokio::time::sleep_until(run.began + self.limits.deadline) => {
                (RunStatus::Failed, Error::new(ErrorCode::RunDeadline, "The run took longer than this gateway allows."))
            }
            () = self.interrupt.cancelled() => (RunStatus::Interrupted, shutting_down()),
        }
    }

    /// Waits until nobody has been reading for as long as the run's policy admits, here or at another gateway.
    async fn abandoned(&self, run: &Run) {
        // A grace begins with the run; only who has been there can leave.
        if run.on_disconnect == OnDisconnect::Cancel {
            run.log.vacated.notified().await;
        }
        let grace = match run.on_disconnect {
            OnDisconnect::Grace(grace) => grace,
            OnDisconnect::Cancel | OnDisconnect::Continue => Duration::ZERO,
        };
        let mut elsewhere: Option<Instant> = None;
        loop {
            vacated(run).await;
            match &self.fleet {
                Some(fleet) if fleet.attended(run.id).await => elsewhere = Some(Instant::now()),
                // Who left another gateway, or was there when that one stood still, has as long to come back.
                Some(_) if elsewhere.is_some_and(|last| last.elapsed() < grace) => {}
                _ => return,
            }
            tokio::time::sleep(ELSEWHERE).await;
        }
    }

    /// Writes the turn, lets go of the session, and says how it ended: in this order, so that `done` means committed,
    /// and whoever reads it can go on with the session at once.
    async fn conclude(
        &self,
        run: &Run,
        mut driven: Driven,
        files: Vec<Artifact>,
        outcome: Result<(), (RunStatus, Error)>,
        trace: Option<TraceContext>,
    ) {
        let turn = &mut driven.turn;
        turn.close(|bytes| run.log.tail(bytes));
        let (status, error) = match outcome {
            Ok(()) => (RunStatus::Completed, None),
            Err((status, error)) => (status, Some(error)),
        };
        let messages = match status {
            RunStatus::Completed => Some(MessageStatus::Complete),
            // A turn without an answer is no turn: two questions in a row are not well-formed everywhere.
            RunStatus::Cancelled if self.limits.on_cancel == OnCancel::Keep && turn.added().len() > 1 => {
                Some(MessageStatus::Cancelled)
            }
            _ => None,
        };
        let (version, truncated) = match driven.recalled {
            Recalled::Now { version, truncated } => (Some(version), truncated),
            Recalled::Nothing | Recalled::Later(_) | Recalled::Known(_) | Recalled::OtherAgent(_) => (None, false),
        };
        let commit = run
            .session_id
            .as_ref()
            .zip(version)
            .zip(messages)
            .map(|((session, version), status)| Commit {
                principal: &run.principal,
                session,
                after_version: version,
                messages: driven.turn.added(),
                status,
            });
        let has_turn = commit.is_some();
        let mut done = result(run, &driven.turn, truncated, status == RunStatus::Completed);
        done.answer.artifact_files = files;
        let end = RunEnd {
            ended_at: self.store.now(),
            last_seq: Some(run.log.next_seq()),
            usage: Some(driven.turn.usage.clone()),
            calls: driven.turn.calls.clone(),
            error: error.as_ref().and_then(|error| serde_json::to_value(error).ok()),
            // Only what is kept is written down; an answer is long.
            done: run.session_id.as_ref().map(|_| Box::new(done.clone())),
            result_bytes: None,
        };
        let lost = run.fence.is_lost() && run.session_id.is_some();
        let written = match run.session_id {
            Some(_) if lost => Ok(()), // it is another gateway's by now, and the store may be out of reach: readers first
            Some(_) => self.write(run, status, &end, commit).await,
            None => Ok(()),
        };
        let committed = has_turn && written.is_ok();
        // What was refused because the run was declared dead meanwhile is not the session's fault.
        let written = written.map_err(|refused| match run.fence.is_lost() {
            true => follow::interrupted(),
            false => refused,
        });
        let (status, error) = match (written, error) {
            (Err(unwritten), None) => {
                let failed = RunEnd {
                    error: serde_json::to_value(&unwritten).ok(),
                    ..end.clone()
                };
                let status = match unwritten.code {
                    ErrorCode::Interrupted => RunStatus::Interrupted,
                    _ => RunStatus::Failed,
                };
                self.regret(run, status, &failed).await;
                (status, Some(unwritten))
            }
            (Err(unwritten), Some(error)) => {
                tracing::warn!(run_id = %run.id, error = %unwritten, cause = unwritten.causes(), "how a run ended was not written down");
                if has_turn {
                    self.regret(run, status, &end).await;
                }
                (status, Some(error))
            }
            (Ok(()), error) => (status, error),
        };
        self.shorten_files(run, &done.answer.artifact_files, end.ended_at).await;
        done.duration_ms = millis(run.began.elapsed());
        tell(run, status, &done, error.as_ref(), committed, trace);
        self.count(run, status, &done, &end.calls);
        if error.as_ref().is_some_and(|error| error.code == ErrorCode::SessionBusy) {
            self.meters.session_conflict();
        }
        if let Some(common) = &self.common {
            common.leave(run.id).await;
        }
        self.registry.release(run, status == RunStatus::Completed);
        let mut ended = Ended {
            status,
            at: end.ended_at,
            usage: end.usage.clone(),
            partial: None,
        };
        match error {
            None => run.end(ended, Event::Done(Box::new(done))),
            Some(error) => {
                ended.partial = Some(Box::new(run.log.keep(done)));
                run.end(ended, Event::Failed(error));
            }
        }
        self.say(run, []);
        if lost {
            self.write_down_loss(run, status, &end).await;
        }
    }

    /// Writes down how far the readers of a lost run were told, so that nobody else means another event by those numbers.
    async fn write_down_loss(&self, run: &Run, status: RunStatus, end: &RunEnd) {
        let told = async {
            if self.store.end(run.id, status, end, None).await.is_err() {
                let _ = self.store.told(run.id, end.last_seq.unwrap_or(0)).await;
            }
        };
        let _ = tokio::time::timeout(REGRET, told).await; // without it, others go by what was mirrored
    }

    /// Counts a run that ended.
    fn count(&self, run: &Run, status: RunStatus, done: &Done, calls: &[ModelCall]) {
        let outcome = match status {
            RunStatus::Completed => Outcome::Completed,
            RunStatus::Cancelled => Outcome::Cancelled,
            RunStatus::Interrupted => Outcome::Interrupted,
            RunStatus::Failed | RunStatus::Running => Outcome::Failed,
        };
        let (provider, _) = done.answer.model.split_once('/').unwrap_or_default();
        self.meters
            .run_ended(outcome, &run.agent, provider, run.began.elapsed());
        for ModelCall { model, usage, .. } in calls {
            let (provider, model) = model.split_once('/').unwrap_or(("", model));
            for (direction, count) in [
                (Direction::Input, usage.input_tokens),
                (Direction::Output, usage.output_tokens),
                (Direction::Cached, usage.cached_input_tokens),
                (Direction::Reasoning, usage.reasoning_tokens),
            ] {
                self.meters.tokens(provider, model, direction, count);
            }
            if usage.estimated {
                let both = [usage.input_tokens, usage.output_tokens];
                self.meters
                    .tokens_estimated(provider, model, both.into_iter().flatten().sum());
            }
        }
    }

    /// Says that a run ended in a fault of ours, where not even its end could be said: whoever reads it must not wait for ever,
    /// nor its session. What the store knows of it is left to the store.
    fn broke(&self, run: &Run) {
        if run.over.is_cancelled() {
            return; // it was said
        }
        let took = run.began.elapsed();
        tracing::error!(
            name: "run.end",
            event = "run.end",
            request_id = run.request_id.as_deref(),
            run_id = %run.id,
            session_id = run.session_id.as_ref().map(tracing::field::display),
            principal = run.principal.as_str(),
            agent = run.agent,
            model = run.model,
            status = RunStatus::Failed.as_str(),
            code = ErrorCode::Internal.as_str(),
            duration_ms = millis(took),
            "a run ended"
        );
        let (provider, _) = run.model.split_once('/').unwrap_or_default();
        self.meters.run_ended(Outcome::Failed, &run.agent, provider, took);
        if let Some(common) = &self.common {
            common.drop_out(run.id);
        }
        self.registry.release(run, false);
        let ended = Ended {
            status: RunStatus::Failed,
            at: self.store.now(),
            usage: None,
            partial: None,
        };
        run.end(ended, Event::Failed(Error::internal("a panic")));
        self.say(run, []);
    }

    /// Writes how a run ended whose turn could not be written. If this cannot be either, the row says after a restart that the
    /// run was interrupted.
    async fn regret(&self, run: &Run, status: RunStatus, end: &RunEnd) {
        let _ = tokio::time::timeout(REGRET, self.store.end(run.id, status, end, None)).await;
    }

    async fn write(&self, run: &Run, status: RunStatus, end: &RunEnd, commit: Option<Commit<'_>>) -> Result<(), Error> {
        let late = || Error::new(ErrorCode::StoreUnavailable, "The turn could not be written in time.");
        match tokio::time::timeout(COMMIT, self.store.end(run.id, status, end, commit)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(late()),
        }
    }
}

/// Puts what happens into the run's log.
struct Ear<'a> {
    runs: &'a Runs,
    run: &'a Run,
}

impl Listener for Ear<'_> {
    fn hear(&mut self, events: &mut Vec<Event>) {
        let lost = self.run.fence.is_lost();
        let events = events.drain(..);
        if !lost {
            self.runs.say(self.run, events);
        }
    }

    fn may_go_on(&self) -> Result<(), Error> {
        match self.run.fence.is_lost() {
            true => Err(follow::interrupted()),
            false => Ok(()),
        }
    }

    fn heard(&self, bytes: usize) -> Arc<str> {
        self.run.log.tail(bytes)
    }
}

/// Waits until nobody has been reading here for as long as the run's policy admits.
async fn vacated(run: &Run) {
    let grace = match run.on_disconnect {
        OnDisconnect::Continue => return std::future::pending().await,
        OnDisconnect::Cancel => Duration::ZERO,
        OnDisconnect::Grace(grace) => grace,
    };
    loop {
        while let Some(since) = run.log.vacant_since() {
            let over = since + grace;
            if over <= Instant::now() {
                return;
            }
            Patience::until(over).over().await; // who came back while the process stood still is heard first
        }
        run.log.vacated.notified().await;
    }
}

/// What the run came to.
fn result(run: &Run, turn: &Turn, history_truncated: bool, complete: bool) -> Done {
    Done {
        answer: Answer {
            run_id: run.id,
            session_id: run.session_id.clone(),
            agent: run.agent.clone(),
            model: if turn.model.is_empty() {
                run.model.clone()
            } else {
                turn.model.clone()
            },
            content: turn.content(),
            reasoning: run.log.reasoning(),
            finish_reason: turn.finish.filter(|_| complete),
            usage: turn.usage.clone(),
            rounds: turn.rounds,
            tool_calls: turn.tools.clone(),
            structured_data: turn.structured.as_ref().filter(|_| complete).map(JsonText::of),
            artifact_files: Vec::new(),
            messages: turn.added().iter().map(crate::chat::Message::shown).collect(),
            metadata: run.metadata.clone(),
        },
        duration_ms: millis(run.began.elapsed()),
        first_token_ms: turn.first_content.map(|at| millis(at - run.began)),
        history_truncated,
        repaired: turn.repaired,
    }
}

/// What became of the run, for its trace.
fn end_span(span: &mut Span, run: &Run) {
    span.note("sluicegate.run.status", || run.status().as_str());
    if let Some(usage) = run.ended().and_then(|ended| ended.usage.as_ref()) {
        for (name, count) in [
            ("gen_ai.usage.input_tokens", usage.input_tokens),
            ("gen_ai.usage.output_tokens", usage.output_tokens),
        ] {
            if let Some(count) = count {
                span.note(name, || count);
            }
        }
    }
    let failed = run.log.last_event(|event| match event {
        Event::Failed(error) => Some(error.code),
        _ => None,
    });
    if let Some(Some(code)) = failed {
        span.fail(code.as_str());
    }
}

/// One line for every run.
fn tell(
    run: &Run,
    status: RunStatus,
    done: &Done,
    error: Option<&Error>,
    committed: bool,
    trace: Option<TraceContext>,
) {
    let usage = &done.answer.usage;
    let code = error.map(|error| error.code.as_str());
    let cause = error.map(Error::causes).filter(|cause| !cause.is_empty());
    tracing::info!(
        name: "run.end",
        event = "run.end",
        request_id = run.request_id.as_deref(),
        run_id = %run.id,
        session_id = run.session_id.as_ref().map(tracing::field::display),
        principal = run.principal.as_str(),
        agent = run.agent,
        model = done.answer.model,
        status = status.as_str(),
        code,
        cause,
        committed,
        rounds = done.answer.rounds,
        input_tokens = usage.input_tokens,
        output_tokens = usage.output_tokens,
        estimated = usage.estimated,
        first_token_ms = done.first_token_ms,
        duration_ms = done.duration_ms,
        trace_id = trace.map(|trace| trace.trace_id()),
        "a run ended"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
