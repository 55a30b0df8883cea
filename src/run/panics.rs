//! What a fault of ours costs, or a provider that never pauses: the run that it happened in, and nothing else.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_stream::stream;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Limits, OnBusy, OnDisconnect, Order, Run, Runs, shelf::tests::beside};
use crate::{
    agent::{Agent, Agents, ModelRef},
    chat::{
        ArtifactId, ChatRequest, Chunk, Done, Event, FinishKind, FinishReason, Principal, ResponseFormat, RunId,
        SessionId, Settings, ToolChoice, Usage,
    },
    error::{Error, ErrorCode},
    limit::Common,
    provider::{ChunkStream, Provider, ProviderError, Providers, Unsupported},
    store::{
        ArtifactRecord, ArtifactStore, Begun, Commit, MessagePage, NoticeStore, ReadFrom, ReadLimit, RunEnd, RunRecord,
        RunStatus, RunStore, Session, SessionClaim, SessionPage, SessionStore, Store, TicketRecord, TicketStore,
        TicketUse,
        artifact::Due,
        memory::Memory,
        tally::{Counted, Counting, Place, Tally},
    },
};

/// Panics where the last message says: `before`, `at once` or `amid` what it says; or goes on `for ever`, always ready and
/// never saying more; else it answers.
struct Nervous;

impl Provider for Nervous {
    fn name(&self) -> &str {
        "nervous"
    }

    fn check(&self, _: &ChatRequest) -> Result<(), Unsupported> {
        Ok(())
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChunkStream, ProviderError>> {
        let said = format!("{:?}", request.messages.last());
        let times = if said.contains("for ever") { usize::MAX } else { 0 };
        let when = move |place: &str| assert!(!said.contains(place), "a secret of the message's");
        when("before");
        Box::pin(async move {
            let answer = stream! {
                when("at once");
                yield Ok(vec![Chunk::Text("Hel".to_owned())]);
                when("amid");
                for _ in 0..times {
                    let nothing = Chunk::ToolCallDelta { index: 7, arguments: String::new() };
                    yield Ok(vec![nothing]);
                }
                yield Ok(vec![Chunk::Text("lo".to_owned())]);
                let (reason, usage) = (FinishReason { kind: FinishKind::Stop, raw: None }, Usage::default());
                yield Ok(vec![Chunk::Finish { reason, usage }]);
            };
            Ok(Box::pin(answer) as ChunkStream)
        })
    }
}

/// A store whose next end of a run panics, when it is told to.
#[derive(Default)]
struct Brittle {
    within: Memory,
    breaks: AtomicBool,
}

fn runs(store: Arc<dyn Store>) -> Arc<Runs> {
    let Ok(mut runs) = Arc::try_unwrap(beside(store, None)) else {
        panic!("it is new")
    };
    let agent = Agent {
        name: "a".into(),
        description: String::new(),
        model: ModelRef::parse("nervous/m").unwrap(),
        fallbacks: vec![],
        allowed_models: vec![],
        instructions: None,
        settings: Settings::default(),
        tools: vec![],
        max_tool_rounds: 5,
        tool_timeout: Duration::from_secs(1),
        response_format: ResponseFormat::Text,
    };
    runs.agents = Agents {
        all: [("a".to_owned(), Arc::new(agent))].into(),
        default: "a".to_owned(),
    };
    runs.providers = Providers::of([Arc::new(Nervous) as Arc<dyn Provider>]);
    runs.limits = Limits {
        max_runs: 2,
        max_output: 1 << 20,
        memory_limit: 1 << 20,
        max_history_tokens: 1_000,
        ..runs.limits
    };
    Arc::new(runs)
}

fn order(session: &str, message: &str) -> Order {
    Order {
        principal: Principal::named("ada"),
        permit: Arc::default(),
        message: message.to_owned(),
        attachments: vec![],
        session_id: Some(session.parse().unwrap()),
        user_id: None,
        agent: None,
        model: None,
        settings: Settings::default(),
        tool_choice: ToolChoice::Auto,
        context: None,
        response_format: None,
        metadata: BTreeMap::new(),
        on_disconnect: OnDisconnect::Continue,
        on_busy: OnBusy::Reject,
        include_reasoning: false,
        store: true,
        idempotency: None,
        may_name_sessions: true,
        trace: None,
        request_id: None,
        memory: None,
    }
}

/// Waits for a run's end; gives its status, the code of its error, and its events.
async fn ended(run: &Run) -> (RunStatus, Option<ErrorCode>, Vec<Event>) {
    let over = tokio::time::timeout(Duration::from_secs(5), run.over.cancelled());
    over.await.expect("a last event, whatever happens");
    let (events, _) = run.log.since(0, usize::MAX);
    let code = match events.last() {
        Some(Event::Failed(error)) => Some(error.code),
        _ => None,
    };
    (run.status(), code, events)
}

#[tokio::test]
async fn a_provider_that_panics_fails_its_run_and_no_other() {
    for (place, said) in [("before", 1), ("at once", 1), ("amid", 2)] {
        let runs = runs(Arc::new(Memory::default()));
        // As many as there is room for, so that a place that is not given back is missed.
        for turn in 0..3 {
            let bad = runs.start(order("bad", place)).await.unwrap();
            let good = runs.start(order("good", "Hi")).await.unwrap();
            let (status, code, events) = ended(&bad).await;
            assert_eq!(
                (status, code),
                (RunStatus::Failed, Some(ErrorCode::Internal)),
                "{place}"
            );
            assert_eq!(events.len(), said + 1, "{place}: {events:?}");
            let error = format!("{:?}", events.last());
            assert!(!error.contains("secret"), "{place}: {error}");
            assert_eq!(ended(&good).await.0, RunStatus::Completed, "{place}");
            let ada = Principal::named("ada");
            let session = runs
                .store
                .session(&ada, &"good".parse().unwrap())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(session.message_count, 2 * (turn + 1));
            let session = runs
                .store
                .session(&ada, &"bad".parse().unwrap())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(session.message_count, 0, "{place}: half a turn");
        }
        runs.finish(Duration::ZERO).await;
        runs.ended().await; // no task is left
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_never_pauses_is_stopped_by_a_cancel_and_by_the_deadline() {
    let mut runs = runs(Arc::new(Memory::default()));
    let run = runs.start(order("s", "for ever")).await.unwrap();
    while run.log.next_seq() < 2 {
        tokio::task::yield_now().await; // until it has begun to speak
    }
    let cancelled = Instant::now();
    run.cancel.cancel();
    assert_eq!(ended(&run).await.1, Some(ErrorCode::Cancelled));
    assert!(cancelled.elapsed() < Duration::from_secs(5), "{cancelled:?}");

    runs.finish(Duration::ZERO).await;
    runs.ended().await;
    runs = self::runs(Arc::new(Memory::default()));
    Arc::get_mut(&mut runs).expect("it is new").limits.deadline = Duration::from_millis(100);
    let run = runs.start(order("s", "for ever")).await.unwrap();
    assert_eq!(ended(&run).await.1, Some(ErrorCode::RunDeadline));
    assert!(run.began.elapsed() < Duration::from_secs(5), "{run:?}");
    runs.finish(Duration::ZERO).await;
    runs.ended().await;
}

#[tokio::test]
async fn a_store_that_panics_at_the_end_leaves_no_reader_waiting_and_no_session_held() {
    let store = Arc::new(Brittle::default());
    let runs = runs(store.clone());
    for _ in 0..3 {
        store.breaks.store(true, Relaxed);
        let bad = runs.start(order("s", "Hi")).await.unwrap();
        let (status, code, _) = ended(&bad).await;
        assert_eq!((status, code), (RunStatus::Failed, Some(ErrorCode::Internal)));
        let next = runs.start(order("s", "Hi")).await.unwrap();
        assert_eq!(ended(&next).await.0, RunStatus::Completed);
    }
    runs.finish(Duration::ZERO).await;
    runs.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_end_panics_gives_its_place_at_all_gateways_back() {
    let (store, tally) = (Arc::new(Brittle::default()), Arc::new(Seats::default()));
    let common = Arc::new(Common::new(tally.clone()));
    common.begin().await;
    let mut runs = runs(store.clone());
    Arc::get_mut(&mut runs).expect("it is new").common = Some(common.clone());
    let tended = tokio::spawn(async move { common.tend().await });
    let start = async || {
        let mut order = order("s", "Hi");
        let permit = Arc::make_mut(&mut order.permit);
        permit.concurrent_runs = 1;
        runs.start(order).await
    };
    for _ in 0..3 {
        store.breaks.store(true, Relaxed);
        let bad = start().await.unwrap();
        assert_eq!(ended(&bad).await.1, Some(ErrorCode::Internal));
        tokio::time::sleep(Duration::from_millis(1)).await; // nobody waits for it
        assert!(tally.0.lock().unwrap().is_empty(), "its place is held for ever");
        let next = start().await.unwrap();
        assert_eq!(ended(&next).await.0, RunStatus::Completed);
    }
    tended.abort();
    runs.finish(Duration::ZERO).await;
    runs.ended().await;
}

/// A tally that knows places only, for one caller.
#[derive(Default)]
struct Seats(Mutex<HashSet<RunId>>);

impl Tally for Seats {
    fn ready(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn count<'a>(&'a self, _: &'a Principal, _: u32, window: Duration) -> Later<'a, Counted> {
        Box::pin(std::future::ready(Ok(Counted::Out(window))))
    }
    fn enter<'a>(&'a self, place: &'a Place, limit: usize, _: Counting, _: Duration) -> Later<'a, bool> {
        let mut seats = self.0.lock().unwrap();
        let room = seats.len() < limit && seats.insert(place.run);
        Box::pin(std::future::ready(Ok(room)))
    }
    fn stay<'a>(&'a self, places: &'a [Place], _: Duration) -> Later<'a, ()> {
        self.0.lock().unwrap().extend(places.iter().map(|place| place.run));
        Box::pin(std::future::ready(Ok(())))
    }
    fn leave<'a>(&'a self, places: &'a [Place]) -> Later<'a, ()> {
        let mut seats = self.0.lock().unwrap();
        seats.retain(|run| places.iter().all(|place| place.run != *run));
        Box::pin(std::future::ready(Ok(())))
    }
}

type Later<'a, T> = BoxFuture<'a, Result<T, Error>>;

impl NoticeStore for Brittle {}

impl Store for Brittle {
    fn ready(&self) -> Later<'_, ()> {
        self.within.ready()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.within.close()
    }
}

impl SessionStore for Brittle {
    fn create<'a>(&'a self, principal: &'a Principal, session: Session) -> Later<'a, Session> {
        self.within.create(principal, session)
    }
    fn session<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> Later<'a, Option<Session>> {
        self.within.session(principal, id)
    }
    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: ReadFrom,
        limit: ReadLimit,
    ) -> Later<'a, Option<MessagePage>> {
        self.within.messages(principal, id, from, limit)
    }
    fn list<'a>(
        &'a self,
        principal: &'a Principal,
        user_id: Option<&'a str>,
        after: Option<(i64, SessionId)>,
        limit: u32,
    ) -> Later<'a, SessionPage> {
        self.within.list(principal, user_id, after, limit)
    }
    fn delete<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> Later<'a, ()> {
        self.within.delete(principal, id)
    }
    fn expire(&self, before: i64) -> Later<'_, u64> {
        self.within.expire(before)
    }
}

impl RunStore for Brittle {
    fn begin<'a>(&'a self, run: &'a RunRecord, claim: SessionClaim<'a>) -> Later<'a, Begun> {
        self.within.begin(run, claim)
    }
    fn take<'a>(&'a self, principal: &'a Principal, session: &'a SessionId, run: RunId) -> Later<'a, Option<i64>> {
        self.within.take(principal, session, run)
    }
    fn running<'a>(&'a self, principal: &'a Principal, session: &'a SessionId) -> Later<'a, Vec<RunId>> {
        self.within.running(principal, session)
    }
    fn end<'a>(&'a self, run: RunId, status: RunStatus, end: &'a RunEnd, commit: Option<Commit<'a>>) -> Later<'a, ()> {
        assert!(!self.breaks.swap(false, Relaxed), "a fault in the store");
        self.within.end(run, status, end, commit)
    }
    fn result<'a>(&'a self, principal: &'a Principal, id: RunId) -> Later<'a, Option<Box<Done>>> {
        self.within.result(principal, id)
    }
    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> Later<'a, Option<RunRecord>> {
        self.within.run(principal, id)
    }
    fn run_by_key<'a>(&'a self, principal: &'a Principal, key: &'a str, since: i64) -> Later<'a, Option<RunRecord>> {
        self.within.run_by_key(principal, key, since)
    }
    fn told<'a>(&'a self, run: RunId, last_seq: u64) -> Later<'a, ()> {
        self.within.told(run, last_seq)
    }
}

impl ArtifactStore for Brittle {
    fn announce<'a>(&'a self, record: &'a ArtifactRecord, erase_after: i64) -> Later<'a, bool> {
        self.within.announce(record, erase_after)
    }
    fn keep<'a>(&'a self, record: &'a ArtifactRecord, erase_after: Option<i64>) -> Later<'a, bool> {
        self.within.keep(record, erase_after)
    }
    fn shorten<'a>(&'a self, ids: &'a [ArtifactId], erase_after: i64) -> Later<'a, ()> {
        self.within.shorten(ids, erase_after)
    }
    fn artifact<'a>(&'a self, principal: &'a Principal, id: ArtifactId) -> Later<'a, Option<ArtifactRecord>> {
        self.within.artifact(principal, id)
    }
    fn due(&self, now: i64, after: Option<Due>, limit: u32) -> Later<'_, Vec<Due>> {
        self.within.due(now, after, limit)
    }
    fn forget<'a>(&'a self, gone: &'a [Due]) -> Later<'a, ()> {
        self.within.forget(gone)
    }
}

impl TicketStore for Brittle {
    fn issue<'a>(&'a self, ticket: &'a TicketRecord, most: u32) -> Later<'a, bool> {
        self.within.issue(ticket, most)
    }
    fn ticket<'a>(&'a self, id: &'a str) -> Later<'a, Option<TicketRecord>> {
        self.within.ticket(id)
    }
    fn claim<'a>(&'a self, id: &'a str, used: &'a TicketUse, erase_after: i64) -> Later<'a, bool> {
        self.within.claim(id, used, erase_after)
    }
    fn tie<'a>(&'a self, id: &'a str, run: RunId) -> Later<'a, ()> {
        self.within.tie(id, run)
    }
    fn give_back<'a>(&'a self, id: &'a str) -> Later<'a, ()> {
        self.within.give_back(id)
    }
    fn sweep_tickets(&self, now: i64) -> Later<'_, u64> {
        self.within.sweep_tickets(now)
    }
}
