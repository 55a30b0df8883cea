//! Gateways beside a relay that fails, with a paused clock.

use std::sync::atomic::AtomicU64;

use futures_util::future::{BoxFuture, join_all};
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::{
    error::ErrorCode,
    run::{
        Interest, Reader, elsewhere,
        shelf::tests::{beside, run},
    },
    store::{
        RunEnd, RunStatus, Store,
        memory::Memory,
        relay::{Heard, Place, START},
    },
};

/// A relay that fails as it is told.
#[derive(Default)]
struct Faulty {
    streams: Mutex<HashMap<RunId, Vec<(u64, Batch)>>>,
    entries: AtomicU64,
    /// Nothing works.
    down: AtomicBool,
    /// The next batches are taken, and the answer is lost.
    deaf: AtomicBool,
    /// It has lost what it had, and the next publication finds a broken connection. (Each gateway has a connection of its
    /// own, so that what others ask meanwhile does not use that up.)
    broken: AtomicBool,
    /// It answers, and takes nothing.
    full: AtomicBool,
    /// Which server it is: each has places of its own.
    epoch: AtomicU64,
    /// How often a page of a log was read.
    reads: AtomicUsize,
    /// Somebody reads elsewhere, and so many looks for them are answered late.
    hesitates: AtomicUsize,
}

impl Faulty {
    fn fail(&self) -> Result<(), Error> {
        match self.down.load(Ordering::SeqCst) || self.broken.swap(false, Ordering::SeqCst) {
            true => Err(elsewhere()),
            false => Ok(()),
        }
    }

    /// Another server takes its place, without anything, and its clock is behind.
    fn replace(&self) {
        held(&self.streams).clear();
        self.entries.store(0, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.broken.store(true, Ordering::SeqCst);
    }

    fn write(&self) -> Result<(), Error> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(elsewhere()),
            false => self.fail(),
        }
    }

    fn after(&self, run: RunId, place: &str) -> Vec<(Batch, Place)> {
        let place: u64 = place.split('-').next().unwrap().parse().unwrap();
        let streams = held(&self.streams);
        let all = streams.get(&run).into_iter().flatten();
        let new = all.filter(|(at, _)| *at > place);
        let epoch = self.epoch.load(Ordering::SeqCst);
        new.map(|(at, batch)| (batch.clone(), format!("{at}-{epoch}")))
            .collect()
    }
}

impl Relay for Faulty {
    fn publish<'a>(&'a self, batches: &'a [(Batch, Duration)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            sleep(Duration::from_millis(3)).await;
            self.write()?;
            for (batch, _) in batches {
                let at = self.entries.fetch_add(1, Ordering::SeqCst) + 1;
                let mut streams = held(&self.streams);
                let stream = streams.entry(batch.run).or_default();
                if batch.first == 0 {
                    stream.clear();
                }
                stream.push((at, batch.clone()));
            }
            match self.deaf.swap(false, Ordering::SeqCst) {
                true => Err(elsewhere()),
                false => Ok(()),
            }
        })
    }

    fn check<'a>(&'a self, runs: &'a [RunId], _keep: Duration) -> BoxFuture<'a, Result<Vec<RunId>, Error>> {
        Box::pin(async move {
            if self.full.load(Ordering::SeqCst) || self.down.load(Ordering::SeqCst) {
                return Err(elsewhere());
            }
            let streams = held(&self.streams);
            let lost = runs.iter().filter(|run| !streams.contains_key(run));
            Ok(lost.copied().collect())
        })
    }

    fn read<'a>(&'a self, run: RunId, behind: &'a Place) -> BoxFuture<'a, Result<Vec<(Batch, Place)>, Error>> {
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            if self.down.load(Ordering::SeqCst) {
                return Err(elsewhere());
            }
            self.reads.fetch_add(1, Ordering::SeqCst);
            let mut page = self.after(run, behind);
            page.truncate(2);
            Ok(page)
        })
    }

    fn hear<'a>(
        &'a self,
        runs: &'a [(RunId, Place)],
        _stops: &'a Place,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Heard, Error>> {
        Box::pin(async move {
            sleep(patience / 10).await;
            if self.down.load(Ordering::SeqCst) {
                return Err(elsewhere());
            }
            let epoch = format!("-{}", self.epoch.load(Ordering::SeqCst));
            if runs.iter().any(|(_, place)| place != START && !place.ends_with(&epoch)) {
                return Ok(Heard {
                    renewed: true,
                    ..Heard::default()
                });
            }
            let batches: Vec<_> = runs.iter().flat_map(|(run, place)| self.after(*run, place)).collect();
            Ok(Heard {
                batches,
                ..Heard::default()
            })
        })
    }

    fn now(&self) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(std::future::ready(Ok("0-0".to_owned())))
    }

    fn stop(&self, _run: RunId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn erase<'a>(&'a self, runs: &'a [RunId]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.fail()?;
            held(&self.streams).retain(|run, _| !runs.contains(run));
            Ok(())
        })
    }

    fn attend<'a>(&'a self, _runs: &'a [RunId], _keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn attended(&self, _run: RunId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move {
            let late = |left: usize| left.checked_sub(1);
            if self
                .hesitates
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, late)
                .is_ok()
            {
                sleep(Duration::from_secs(1)).await;
            }
            Ok(true)
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Say(u8),
    Wait(u16),
    Down,
    Up,
    Deaf,
    Lose,
    Replace,
    Follow,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u8).prop_map(Step::Say),
        4 => (1..400_u16).prop_map(Step::Wait),
        1 => Just(Step::Down),
        1 => Just(Step::Up),
        1 => Just(Step::Deaf),
        1 => Just(Step::Lose),
        1 => Just(Step::Replace),
        2 => Just(Step::Follow),
    ]
}

fn told(run: &Run) -> String {
    format!("{:?}", run.log.since(0, usize::MAX).0)
}

/// Whatever becomes of the relay: what another gateway shows of a run begins as the run does,
/// without a gap or a repetition, and once the relay is well, it is all there.
async fn simulate(steps: Vec<Step>) {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let relay = Arc::new(Faulty::default());
    let gateway = || beside(store.clone(), Some(relay.clone() as Arc<dyn Relay>));
    let (own, other, late) = (gateway(), gateway(), gateway());
    let limits = own.limits;
    let run = run(&own, Some("s")).await;
    let _ = own.registry.admit(&run, crate::run::OnBusy::Reject, &limits, 0);
    let record = store.run(&run.principal, run.id).await.unwrap().unwrap();
    let gateways = [own.clone(), other.clone(), late.clone()];
    let tasks = gateways.map(|runs| tokio::spawn(async move { runs.mirror().await }));
    own.say(&run, [Event::Started]);
    let (mut shadows, mut count) = (Vec::new(), 0);
    for step in steps {
        match step {
            Step::Say(many) => {
                let words = (0..many).map(|at| Event::Text(format!("{} ", count + u32::from(at))));
                own.say(&run, words);
                count += u32::from(many);
            }
            Step::Wait(millis) => sleep(Duration::from_millis(millis.into())).await,
            Step::Down => relay.down.store(true, Ordering::SeqCst),
            Step::Up => relay.down.store(false, Ordering::SeqCst),
            Step::Deaf => relay.deaf.store(true, Ordering::SeqCst),
            Step::Lose => {
                held(&relay.streams).clear();
                relay.broken.store(true, Ordering::SeqCst);
            }
            Step::Replace => relay.replace(),
            Step::Follow => {
                if let Ok(shadow) = other.fleet.as_ref().unwrap().shadow(&record).await {
                    shadows.push(Reader::new(shadow, 0, Interest::Every));
                }
            }
        }
        for reader in &shadows {
            let (ours, theirs) = (told(&run), told(reader.run()));
            assert!(
                ours.starts_with(theirs.trim_end_matches(']')),
                "{theirs} is not how {ours} begins"
            );
        }
    }
    relay.down.store(false, Ordering::SeqCst);
    own.say(&run, [Event::Failed(elsewhere())]);
    sleep(Duration::from_secs(30)).await;
    let fresh = late.fleet.as_ref().unwrap().shadow(&record).await.unwrap();
    assert_eq!(told(&fresh), told(&run));
    for reader in &shadows {
        assert_eq!(told(reader.run()), told(&run));
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A late answer is not a no, but for one of a relay that is away; and nobody waits for it for
/// long.
#[tokio::test(start_paused = true)]
async fn who_reads_elsewhere_is_asked_for_twice() {
    let relay = Arc::new(Faulty::default());
    let fleet = Fleet::new(relay.clone(), Arc::default());
    for (up, late, attended, took) in [
        (true, 0, true, 0),
        (true, 1, true, 100),
        (true, 2, false, 500),
        (false, 1, false, 100),
    ] {
        let failed = elsewhere();
        fleet.health.note(Direction::Read, Some(&failed).filter(|_| !up));
        relay.hesitates.store(late, Ordering::SeqCst);
        let began = Instant::now();
        assert_eq!(fleet.attended(RunId::new()).await, attended, "{up} {late}");
        assert_eq!(began.elapsed(), Duration::from_millis(took), "{up} {late}");
    }
}

/// A run of one gateway that has begun, and another gateway.
struct Two {
    own: Arc<Runs>,
    other: Arc<Runs>,
    relay: Arc<Faulty>,
    run: Arc<Run>,
    record: RunRecord,
    _tasks: JoinSet<()>,
}

impl Two {
    /// `many` batches are mirrored.
    async fn with(many: u32) -> Self {
        let two = Self::begin().await;
        two.own.say(&two.run, [Event::Started]);
        for at in 0..many {
            sleep(Duration::from_millis(100)).await;
            two.own.say(&two.run, [Event::Text(format!("{at} "))]);
        }
        sleep(Duration::from_millis(100)).await;
        two
    }

    /// Nothing is said yet.
    async fn begin() -> Self {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let relay = Arc::new(Faulty::default());
        let gateway = || beside(store.clone(), Some(relay.clone() as Arc<dyn Relay>));
        let (own, other) = (gateway(), gateway());
        let run = run(&own, Some("s")).await;
        let _ = own.registry.admit(&run, crate::run::OnBusy::Reject, &own.limits, 0);
        let record = store.run(&run.principal, run.id).await.unwrap().unwrap();
        let mut tasks = JoinSet::new();
        for runs in [own.clone(), other.clone()] {
            tasks.spawn(async move { runs.mirror().await });
        }
        sleep(Duration::from_secs(1)).await;
        Self {
            own,
            other,
            relay,
            run,
            record,
            _tasks: tasks,
        }
    }

    async fn shadow(&self) -> Result<Arc<Run>, Error> {
        self.other.fleet.as_ref().unwrap().shadow(&self.record).await
    }

    async fn row_ends(&self, status: RunStatus, error: Option<ErrorCode>) {
        let error = error.map(|code| Error::new(code, "It ended."));
        let end = RunEnd {
            ended_at: 1,
            last_seq: error.as_ref().map(|_| self.run.log.next_seq()),
            usage: None,
            error: error.map(|error| serde_json::to_value(error).unwrap()),
            done: None,
            result_bytes: None,
            calls: Vec::new(),
        };
        self.own.store.end(self.run.id, status, &end, None).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_is_read_once_for_all_that_come_at_the_same_time() {
    let two = Two::with(7).await;
    let shadows = join_all((0..300).map(|_| two.shadow())).await;
    let shadows: Vec<Arc<Run>> = shadows.into_iter().map(Result::unwrap).collect();
    assert!(shadows.iter().all(|shadow| Arc::ptr_eq(shadow, &shadows[0])));
    assert_eq!(told(&shadows[0]), told(&two.run));
    // Eight batches, two to a page, and one page that is empty.
    assert_eq!(two.relay.reads.load(Ordering::SeqCst), 5);
}

/// Readers elsewhere are told of a run's end by its row, also while the relay is away.
#[tokio::test(start_paused = true)]
async fn who_reads_elsewhere_is_told_by_the_row_while_the_relay_is_away() {
    for (status, error, code) in [
        (RunStatus::Interrupted, None, ErrorCode::Interrupted),
        (
            RunStatus::Interrupted,
            Some(ErrorCode::ShuttingDown),
            ErrorCode::ShuttingDown,
        ),
        (
            RunStatus::Failed,
            Some(ErrorCode::UpstreamTimeout),
            ErrorCode::UpstreamTimeout,
        ),
    ] {
        let two = Two::with(2).await;
        let mut reader = Reader::new(two.shadow().await.unwrap(), 0, Interest::Last);
        two.relay.down.store(true, Ordering::SeqCst);
        two.own.say(&two.run, [Event::Text("unheard".into())]);
        sleep(Duration::from_secs(20)).await;
        assert!(!reader.run().log.ended(), "it goes on");
        two.row_ends(status, error).await;
        let last = timeout(Duration::from_secs(5), reader.last()).await.unwrap();
        let Event::Failed(error) = last else { panic!("{last:?}") };
        assert_eq!(error.code, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_takes_nothing_is_known_and_no_empty_log_is_shown() {
    let two = Two::begin().await;
    let state = || two.other.relayed().unwrap();
    assert_eq!(state(), RelayState::Up);
    two.relay.full.store(true, Ordering::SeqCst);
    two.own.say(&two.run, [Event::Started, Event::Text("one".into())]);
    let began = Instant::now();
    assert_eq!(two.shadow().await.unwrap_err().code, ErrorCode::StoreUnavailable);
    assert!(began.elapsed() < Duration::from_secs(2));
    sleep(CHECK * 2).await;
    assert_eq!(state(), RelayState::NotWritable);
    assert_eq!(two.shadow().await.unwrap_err().code, ErrorCode::StoreUnavailable);
    two.relay.full.store(false, Ordering::SeqCst);
    sleep(BACK_OFF.1 * 2).await;
    assert_eq!(state(), RelayState::Up);
    assert_eq!(told(&two.shadow().await.unwrap()), told(&two.run));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_the_relay_lost_is_said_once_more_while_its_run_is_silent() {
    let two = Two::with(3).await;
    held(&two.relay.streams).clear();
    sleep(REFRESH + CHECK * 2).await;
    assert_eq!(told(&two.shadow().await.unwrap()), told(&two.run));
}

#[tokio::test(start_paused = true)]
async fn an_erased_run_is_not_mirrored_any_more_and_its_readers_elsewhere_get_an_end() {
    let two = Two::with(2).await;
    let mut reader = Reader::new(two.shadow().await.unwrap(), 0, Interest::Last);
    assert_eq!(two.own.registry.erase_runs(&[two.run.id]).len(), 1);
    let fleet = two.other.fleet.as_ref().unwrap();
    fleet.erase(&[two.run.id]).await;
    fleet.erase_relayed(&[two.run.id]).await.unwrap();
    let last = reader.last().await;
    assert!(matches!(last, Event::Failed(error) if error.code == ErrorCode::Cancelled));
    two.own.say(&two.run, [Event::Text("more".into())]);
    sleep(REFRESH * 2).await;
    assert!(held(&two.relay.streams).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_log_is_kept_for_the_replay_window_after_its_runs_end() {
    let two = Two::with(1).await;
    let window = two.own.limits.replay_window;
    assert_eq!(two.own.keep(&two.run, &[Event::Started]), window + SURVIVE);
    let ended = |at| crate::run::Ended {
        status: RunStatus::Failed,
        at,
        usage: None,
        partial: None,
    };
    let now = jiff::Timestamp::now().as_millisecond();
    two.run.end(ended(now - 500), Event::Failed(elsewhere()));
    let keep = two.own.keep(&two.run, &[Event::Failed(elsewhere())]);
    assert!(keep <= window && keep > Duration::ZERO, "{keep:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_run_is_the_same_at_every_gateway_whatever_becomes_of_the_relay(steps in prop::collection::vec(step(), 1..40)) {
        let clock = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        clock.block_on(simulate(steps));
    }
}
