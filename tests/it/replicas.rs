//! Several gateways on one PostgreSQL database: who holds a session, whose turn it is, who lives, and what a server that
//! is cut off or does not answer means. Each "gateway" here is a store of its own, which is all that they share.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sluicegate::chat::{Message, Principal, SessionId};
use sluicegate::error::ErrorCode;
use sluicegate::store::{self, Begun, Entry, KEY_LIFE, ReadFrom, RunRecord, RunStatus, SessionClaim, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::house::{Call, Gate, Process, Script, Upstream, get, openai, post};
use crate::stores::{ALL, Database, ada, code, commit, end, id, record as file, run, turn};

type Shared = Arc<dyn Store>;

/// A lease that a test can wait for, and that outlasts a moment in which the machine does something else.
const LEASE: &str = "lease=3s";

async fn open(database: &Database) -> Shared {
    store::open(&database.url(LEASE)).await.expect("a store")
}

fn keyed(principal: &Principal, session: &SessionId, created_at: i64, key: &str) -> RunRecord {
    RunRecord {
        idempotency: Some((key.into(), "print".into())),
        ..run(principal, session, created_at)
    }
}

async fn alone(store: &Shared, run: &RunRecord) -> Begun {
    store
        .begin(run, SessionClaim::new("user", Entry::Alone))
        .await
        .expect("an answer")
}

async fn in_line(store: &Shared, run: &RunRecord) -> Begun {
    store
        .begin(run, SessionClaim::new("user", Entry::Line))
        .await
        .expect("an answer")
}

async fn take(store: &Shared, run: &RunRecord) -> Option<i64> {
    let turn = store.take(&run.principal, &run.session_id, run.id);
    turn.await.expect("an answer")
}

async fn complete(
    store: &Shared,
    run: &RunRecord,
    version: i64,
    messages: &[Message],
) -> Result<(), sluicegate::error::Error> {
    let commit = commit(run, version, messages);
    store.end(run.id, RunStatus::Completed, &end(2_000), Some(commit)).await
}

async fn give_up(store: &Shared, run: &RunRecord) {
    store
        .end(run.id, RunStatus::Failed, &end(2_000), None)
        .await
        .expect("an end");
}

async fn status(store: &Shared, run: &RunRecord) -> RunStatus {
    store.run(&run.principal, run.id).await.unwrap().expect("a row").status
}

async fn said(store: &Shared, run: &RunRecord) -> Vec<String> {
    let page = store.messages(&run.principal, &run.session_id, ReadFrom::Number(0), ALL);
    let page = page.await.unwrap();
    page.into_iter()
        .flat_map(|page| page.messages)
        .map(|stored| stored.message.content.to_string())
        .collect()
}

/// Asks again until it is so.
async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_twenty_that_want_a_session_at_once_one_has_it() {
    let Some(database) = Database::make().await else { return };
    let stores = [open(&database).await, open(&database).await];
    for round in 0..5 {
        let s = id(&format!("s{round}"));
        let runs: Vec<_> = (0..20).map(|_| run(&ada(), &s, 1_000)).collect();
        let asked = runs.iter().zip(stores.iter().cycle());
        let answers = join_all(asked.map(|(run, store)| alone(store, run))).await;
        let holders: Vec<_> = (0..20).filter(|n| matches!(answers[*n], Begun::At(_))).collect();
        let [holder] = holders[..] else { panic!("{answers:?}") };
        for (run, answer) in runs.iter().zip(&answers) {
            if run.id != runs[holder].id {
                assert_eq!(*answer, Begun::Busy(runs[holder].id));
                assert_eq!(stores[0].run(&ada(), run.id).await.unwrap(), None, "nothing is written");
            }
        }
        give_up(&stores[holder % 2], &runs[holder]).await;
        assert!(matches!(
            alone(&stores[1 - holder % 2], &run(&ada(), &s, 1_000)).await,
            Begun::At(_)
        ));
    }
    join_all(stores.iter().map(|store| store.close())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_line_is_served_in_the_order_of_arrival() {
    let Some(database) = Database::make().await else { return };
    let (a, b) = (open(&database).await, open(&database).await);
    let s = id("s");
    let runs: Vec<_> = (0..7).map(|_| run(&ada(), &s, 1_000)).collect();
    let [holder, first, second, gone, fourth, fifth, late] = &runs[..] else {
        unreachable!()
    };
    let Begun::At(version) = in_line(&a, holder).await else {
        panic!("nobody was there")
    };
    // They come through either gateway, and the order of their ids is that of no clock.
    let ids: BTreeSet<_> = [first, second, gone, fourth, fifth].map(|run| run.id).into();
    let [first, second, gone, fourth, fifth] = [fourth, first, gone, fifth, second];
    assert!(ids.first() != Some(&first.id) && ids.last() != Some(&fifth.id));
    let waiting = [(&a, first), (&b, second), (&b, gone), (&b, fourth), (&a, fifth)];
    for (store, run) in waiting {
        assert_eq!(in_line(store, run).await, Begun::Waiting);
        assert_eq!(status(store, run).await, RunStatus::Running);
        assert_eq!(a.holder_before(run.id).await.unwrap(), Some(holder.id));
    }
    assert_eq!(b.holder_before(holder.id).await.unwrap(), None);
    let running: Vec<_> = [holder, first, second, gone, fourth, fifth].map(|run| run.id).into();
    assert_eq!(a.running(&ada(), &s).await.unwrap(), running);
    assert_eq!(alone(&b, late).await, Begun::Busy(holder.id));
    for (store, run) in waiting {
        assert_eq!(take(store, run).await, None);
    }
    complete(&a, holder, version, &turn(0)).await.unwrap();
    assert_eq!(
        alone(&b, late).await,
        Begun::Busy(first.id),
        "nobody overtakes those who wait"
    );
    assert_eq!(in_line(&b, late).await, Begun::Waiting);
    give_up(&b, gone).await; // it did not want to wait any longer
    let mut version = version;
    for (number, (store, run)) in [(&a, first), (&b, second), (&b, fourth), (&a, fifth), (&b, late)]
        .into_iter()
        .enumerate()
    {
        // All of them ask at once, again and again.
        let waiting = [first, second, fourth, fifth, late];
        let asked = waiting.iter().skip(number).flat_map(|run| [(&a, *run), (&b, *run)]);
        let turns = join_all(asked.map(|(store, run)| async move { (run.id, take(store, run).await) })).await;
        let taken: BTreeSet<_> = turns
            .iter()
            .filter_map(|(id, turn)| turn.map(|version| (*id, version)))
            .collect();
        let (taken_by, at) = taken.first().copied().expect("somebody's turn");
        assert_eq!((taken.len(), taken_by), (1, run.id), "{number}");
        assert!(at > version, "it is the version after the turn before");
        version = at;
        complete(store, run, version, &turn(number + 1)).await.unwrap();
    }
    assert_eq!(said(&a, holder).await.len(), 12);
    // A session that is erased has no line.
    let (holder, waits) = (run(&ada(), &s, 1_000), run(&ada(), &s, 1_000));
    assert!(matches!(alone(&a, &holder).await, Begun::At(_)));
    assert_eq!(in_line(&b, &waits).await, Begun::Waiting);
    a.delete(&ada(), &s).await.unwrap();
    assert_eq!(code(b.take(&ada(), &s, waits.id).await), ErrorCode::SessionBusy);
    assert_eq!(
        code(a.end(holder.id, RunStatus::Failed, &end(1), None).await),
        ErrorCode::SessionBusy
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_line_that_all_join_at_once_has_one_head() {
    let Some(database) = Database::make().await else { return };
    let stores = [open(&database).await, open(&database).await];
    let s = id("s");
    let runs: Vec<_> = (0..20).map(|_| run(&ada(), &s, 1_000)).collect();
    let asked = runs.iter().zip(stores.iter().cycle());
    let answers = join_all(asked.map(|(run, store)| in_line(store, run))).await;
    assert_eq!(
        answers.iter().filter(|answer| matches!(answer, Begun::At(_))).count(),
        1,
        "{answers:?}"
    );
    assert_eq!(
        answers.iter().filter(|answer| **answer == Begun::Waiting).count(),
        19,
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_session_that_two_users_name_at_once_belongs_to_one() {
    let Some(database) = Database::make().await else { return };
    let stores = [open(&database).await, open(&database).await];
    for (round, entry) in [Entry::Alone, Entry::Line, Entry::Front]
        .iter()
        .cycle()
        .take(30)
        .enumerate()
    {
        let s = id(&format!("s{round}"));
        let runs: Vec<_> = (0..6).map(|_| run(&ada(), &s, 1_000)).collect();
        let asked = runs.iter().enumerate().map(|(number, run)| {
            let claim = SessionClaim::new(["grace", "hopper"][number % 2], *entry);
            stores[number % 2].begin(run, claim)
        });
        // A session may also be created without a run.
        let created = store::Session {
            id: s.clone(),
            user_id: "lovelace".into(),
            agent: "assistant".into(),
            metadata: Default::default(),
            message_count: 0,
            version: 0,
            created_at: 1_000,
            updated_at: 1_000,
        };
        let ada = ada();
        let create = async {
            if round % 2 == 1 {
                stores[0].create(&ada, created).await.unwrap();
            }
        };
        let (answers, ()) = tokio::join!(join_all(asked), create);
        let owner = stores[0].session(&ada, &s).await.unwrap().expect("a session").user_id;
        for (number, answer) in answers.into_iter().enumerate() {
            let mine = owner == ["grace", "hopper"][number % 2];
            let answer = answer.expect("an answer");
            assert_eq!(
                mine,
                answer != Begun::NotFound,
                "{round}: {owner}, {number}: {answer:?}"
            );
            let row = stores[0].run(&ada, runs[number].id).await.unwrap();
            let entered = matches!(answer, Begun::At(_) | Begun::Waiting);
            assert_eq!(row.is_some(), entered, "{round}: {owner}, {number}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_that_comes_to_two_gateways_at_once_starts_one_run() {
    let Some(database) = Database::make().await else { return };
    let stores = [open(&database).await, open(&database).await];
    let mut db = database.look().await;
    for round in 0..5 {
        let key = format!("k{round}");
        let runs: Vec<_> = (0..10)
            .map(|number| keyed(&ada(), &id(&format!("s{round}-{number}")), 1_000, &key))
            .collect();
        let asked = runs.iter().zip(stores.iter().cycle()).enumerate();
        let answers = join_all(asked.map(|(number, (run, store))| async move {
            match number % 3 {
                0 => in_line(store, run).await,
                _ => alone(store, run).await,
            }
        }))
        .await;
        let began: Vec<_> = (0..10).filter(|n| matches!(answers[*n], Begun::At(_))).collect();
        let [one] = began[..] else { panic!("{answers:?}") };
        for (number, answer) in answers.iter().enumerate() {
            assert!(number == one || *answer == Begun::Known(runs[one].id), "{answers:?}");
        }
        let (kept, sessions): (i64, i64) =
            sqlx::query_as("SELECT (SELECT count(*) FROM runs WHERE binds), (SELECT count(*) FROM sessions)")
                .fetch_one(&mut db)
                .await
                .unwrap();
        assert_eq!((kept, sessions), (1, round + 1), "who is known made no session");
        // After a failure the key starts another run; completed, it means that one for a day.
        let (here, there) = (&stores[one % 2], &stores[1 - one % 2]);
        give_up(here, &runs[one]).await;
        let again = keyed(&ada(), &id(&format!("s{round}-{one}")), 1_000, &key);
        let Begun::At(version) = alone(there, &again).await else {
            panic!("the key is free")
        };
        complete(there, &again, version, &turn(1)).await.unwrap();
        let later = |after| keyed(&ada(), &again.session_id, 1_000 + after, &key);
        assert_eq!(alone(here, &later(KEY_LIFE)).await, Begun::Known(again.id));
        let fresh = later(KEY_LIFE + 1);
        assert!(matches!(alone(here, &fresh).await, Begun::At(_)));
        assert_eq!(
            alone(there, &keyed(&ada(), &id("other"), KEY_LIFE, &key)).await,
            Begun::Known(fresh.id)
        );
        let mine = keyed(&Principal::named("bob"), &id("s"), 1_000, &key);
        assert!(
            matches!(alone(there, &mine).await, Begun::At(_)),
            "somebody else's key is another one"
        );
        there.delete(&Principal::named("bob"), &id("s")).await.unwrap();
        here.end(fresh.id, RunStatus::Failed, &end(1), None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_runs_of_a_gateway_that_died_are_interrupted_within_its_lease() {
    let Some(database) = Database::make().await else { return };
    let survivor = open(&database).await;
    let (s, t) = (id("s"), id("t"));
    let alive = run(&ada(), &t, 1_000);
    assert!(matches!(alone(&survivor, &alive).await, Begun::At(_)));
    let held = keyed(&ada(), &s, 1_000, "k");
    let (waits, waits_too) = (run(&ada(), &s, 1_000), run(&ada(), &t, 1_000));
    // Its process ends without a word: its tasks are gone, its connections are not closed.
    let url = database.url(LEASE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let doomed = store::open(&url).await.unwrap();
                assert!(matches!(alone(&doomed, &held).await, Begun::At(_)));
                assert_eq!(in_line(&doomed, &waits).await, Begun::Waiting);
                assert_eq!(in_line(&doomed, &waits_too).await, Begun::Waiting);
                std::mem::forget(doomed);
            });
            runtime.shutdown_background();
        });
    });
    let mine = run(&ada(), &s, 1_000);
    assert_eq!(alone(&survivor, &mine).await, Begun::Busy(held.id), "nobody knows yet");
    assert_eq!(in_line(&survivor, &mine).await, Begun::Waiting);
    let took = eventually("its turn", async || take(&survivor, &mine).await.is_some()).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    for dead in [&held, &waits, &waits_too] {
        let row = survivor.run(&ada(), dead.id).await.unwrap().unwrap();
        let ended = row.end.expect("a moment");
        assert_eq!(
            (row.status, ended.last_seq, ended.usage),
            (RunStatus::Interrupted, None, None)
        );
        let age = jiff::Timestamp::now().as_millisecond() - ended.ended_at;
        assert!((0..10_000).contains(&age), "{age} ms ago");
    }
    assert_eq!(
        survivor.run_by_key(&ada(), "k", 0).await.unwrap(),
        None,
        "its key is free"
    );
    assert_eq!(status(&survivor, &alive).await, RunStatus::Running);
    give_up(&survivor, &alive).await;
    let mut db = database.look().await;
    eventually("the dead gateway's row goes", async || {
        let replicas: i64 = sqlx::query_scalar("SELECT count(*) FROM replicas")
            .fetch_one(&mut db)
            .await
            .unwrap();
        replicas == 1
    })
    .await;
    // Who says farewell leaves nothing to wait for.
    survivor.close().await;
    let (replicas, running): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM replicas), (SELECT count(*) FROM runs WHERE status = 'running')")
            .fetch_one(&mut db)
            .await
            .unwrap();
    assert_eq!((replicas, running), (0, 0));
    assert_eq!(code(survivor.ready().await), ErrorCode::StoreUnavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_gateway_that_was_believed_dead_writes_nothing_of_those_runs() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::before(&database).await;
    let slow = store::open(&proxy.url(&database)).await.unwrap();
    let quick = open(&database).await;
    let s = id("s");
    let lost = run(&ada(), &s, 1_000);
    let Begun::At(version) = alone(&slow, &lost).await else {
        panic!("nobody was there")
    };
    proxy.be(Mode::Stall);
    let mine = run(&ada(), &s, 1_000);
    assert_eq!(in_line(&quick, &mine).await, Begun::Waiting);
    eventually("the slow one's run is given up", async || {
        take(&quick, &mine).await.is_some()
    })
    .await;
    proxy.be(Mode::Pass);
    assert_eq!(
        code(complete(&slow, &lost, version, &turn(1)).await),
        ErrorCode::SessionBusy
    );
    assert_eq!(
        code(slow.end(lost.id, RunStatus::Failed, &end(1), None).await),
        ErrorCode::SessionBusy
    );
    assert_eq!(status(&slow, &lost).await, RunStatus::Interrupted);
    assert_eq!(said(&quick, &lost).await, [""; 0]);
    complete(&quick, &mine, version, &turn(2)).await.unwrap();
    // It lives after all, and its next runs are as good as anybody's.
    let next = run(&ada(), &s, 1_000);
    let Begun::At(version) = alone(&slow, &next).await else {
        panic!("nobody is there")
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    complete(&slow, &next, version, &turn(3)).await.unwrap();
    assert_eq!(
        said(&quick, &lost).await,
        ["question 2", "answer 2", "question 3", "answer 3"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_erased_here_is_not_half_made_there() {
    let Some(database) = Database::make().await else { return };
    let (here, there) = (open(&database).await, open(&database).await);
    let mut db = database.look().await;
    for round in 0..60 {
        let s = id(&format!("s{round}"));
        let record = run(&ada(), &s, 1_000);
        assert!(matches!(alone(&here, &record).await, Begun::At(_)));
        let (file, ada) = (file(&record), ada());
        let erase = async { there.delete(&ada, &s).await.unwrap() };
        let make = async { here.announce(&file, i64::MAX).await.unwrap() && here.keep(&file, None).await.unwrap() };
        let late = async |is_late| {
            if is_late {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_500))).await;
            }
        };
        // One after the other, either way; then together, either a little late.
        let made = match round {
            0 => {
                erase.await;
                let made = make.await;
                assert!(!made, "made for a session that is gone");
                made
            }
            1 => {
                let made = make.await;
                assert!(made);
                erase.await;
                made
            }
            _ => {
                let side = fastrand::bool();
                let made = async {
                    late(side).await;
                    make.await
                };
                let erased = async {
                    late(!side).await;
                    erase.await
                };
                tokio::join!(made, erased).0
            }
        };
        assert_eq!(here.artifact(&ada, file.artifact.id).await.unwrap(), None);
        let kept: i64 =
            sqlx::query_scalar("SELECT count(*) FROM artifacts WHERE erase_after IS NULL OR session_id IS NOT NULL")
                .fetch_one(&mut db)
                .await
                .unwrap();
        assert_eq!(kept, 0, "{made}: nobody would ever erase it");
    }
    // Nor does a session expire under a run that begins.
    for round in 0..60 {
        let s = id(&format!("e{round}"));
        let old = run(&ada(), &s, 1_000);
        assert!(matches!(alone(&here, &old).await, Begun::At(_)));
        give_up(&here, &old).await;
        let next = run(&ada(), &s, i64::MAX);
        let (begun, expired) = tokio::join!(alone(&here, &next), async {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_500))).await;
            there.expire(2_000).await.unwrap()
        });
        let Begun::At(version) = begun else { panic!("{begun:?}") };
        assert_eq!(status(&here, &next).await, RunStatus::Running, "{expired} expired");
        complete(&here, &next, version, &turn(round)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gateways_that_start_at_once_make_the_schema_once() {
    let Some(database) = Database::make().await else { return };
    let stores = join_all((0..6).map(|_| open(&database))).await;
    for (number, store) in stores.iter().enumerate() {
        let record = run(&ada(), &id(&format!("s{number}")), 1_000);
        assert!(matches!(alone(store, &record).await, Begun::At(_)));
    }
    assert_eq!(stores[0].list(&ada(), None, None, 10).await.unwrap().sessions.len(), 6);
    let mut db = database.look().await;
    // A schema of a later version is refused, and left alone.
    sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', true, '', 1)")
        .execute(&mut db)
        .await
        .unwrap();
    let refused = store::open(&database.url("")).await.err().expect("a refusal");
    assert!(refused.message.contains("another version"), "{refused}");
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_refused_without_its_password() {
    let Some(database) = Database::make().await else { return };
    let with = |change: &dyn Fn(&mut url::Url)| {
        let mut url: url::Url = database.url("").parse().unwrap();
        url.set_password(Some("canary-7f3a")).unwrap();
        change(&mut url);
        url.to_string()
    };
    for (url, told) in [
        (with(&|url| url.set_path("/nowhere")), "nowhere"),
        (with(&|url| url.set_port(Some(1)).unwrap()), "127.0.0.1:1"),
        (with(&|url| url.set_username("nobody").unwrap()), "nobody"),
        (with(&|url| url.set_query(Some("lease=soon"))), "lease"),
        (with(&|url| url.set_query(Some("sslmode=always"))), "store.url"),
        (
            with(&|url| url.set_query(Some("password=canary-7f3a&sslmode=require"))),
            "TLS",
        ),
        ("postgres://ada:canary-7f3a@127.0.0.1:port/db".into(), "store.url"),
        ("postgress://ada:canary-7f3a@127.0.0.1/db".into(), "postgress"),
    ] {
        let refused = store::open(&url).await.err().expect("a refusal");
        let (message, causes) = (refused.to_string(), refused.causes());
        assert!(message.contains(told), "{told}: {message}");
        assert!(
            !message.contains("canary") && !causes.contains("canary"),
            "{message} {causes}"
        );
    }
    // PostgreSQL 15 learnt to order by ICU, which knows no such encoding.
    let version: String = sqlx::query_scalar("SHOW server_version_num")
        .fetch_one(&mut database.look().await)
        .await
        .unwrap();
    let provider = if version.as_str() >= "150000" {
        "LOCALE_PROVIDER libc"
    } else {
        ""
    };
    let ascii = format!(
        "CREATE DATABASE {}_ascii ENCODING 'SQL_ASCII' {provider} LOCALE 'C' TEMPLATE template0",
        database.name()
    );
    database.command(ascii).await;
    let url = with(&|url| url.set_path(&format!("{}_ascii", database.name())));
    let refused = store::open(&url).await.err().expect("a refusal");
    database
        .command(format!("DROP DATABASE {}_ascii WITH (FORCE)", database.name()))
        .await;
    assert!(refused.message.contains("UTF8"), "{refused}");
}

#[tokio::test]
async fn a_turn_waits_for_the_disk_and_a_beginning_does_not() {
    let Some(database) = Database::make().await else { return };
    let mut db = database.look().await;
    // Whatever the database's owner prefers.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "ALTER DATABASE {0} SET synchronous_commit = off; ALTER DATABASE {0} SET default_transaction_isolation = serializable",
        database.name()
    )))
    .execute(&mut db)
    .await
    .unwrap();
    let store = open(&database).await;
    let spy = "CREATE TABLE seen (what text, how text, isolation text);
        CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen VALUES (TG_ARGV[0], current_setting('synchronous_commit'), current_setting('transaction_isolation'));
            RETURN NEW; END $$;
        CREATE TRIGGER spy BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION spy('begin');
        CREATE TRIGGER spy_on_ends BEFORE UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION spy('end');
        CREATE TRIGGER spy BEFORE INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION spy('turn')";
    sqlx::raw_sql(spy).execute(&mut db).await.unwrap();
    for number in 0..2 {
        let record = run(&ada(), &id("s"), 1_000);
        let Begun::At(version) = alone(&store, &record).await else {
            panic!("nobody was there")
        };
        complete(&store, &record, version, &turn(number)).await.unwrap();
    }
    let seen: Vec<(String, String, String)> = sqlx::query_as("SELECT * FROM seen").fetch_all(&mut db).await.unwrap();
    let expected = [("begin", "off"), ("turn", "on"), ("end", "on")]
        .map(|(what, how)| (what.to_owned(), how.to_owned(), "read committed".to_owned()));
    assert_eq!(seen, [expected.clone(), expected].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_turn_whose_acknowledgement_is_lost_is_written_once() {
    let Some(database) = Database::make().await else { return };
    let (proxy, meters) = (Proxy::before(&database).await, Arc::default());
    let store = store::open_counted(&proxy.url(&database), &meters).await.unwrap();
    for number in 0..3 {
        let record = run(&ada(), &id("s"), 1_000);
        let Begun::At(version) = alone(&store, &record).await else {
            panic!("nobody was there")
        };
        proxy.be(Mode::LoseTheAnswerToCommit);
        complete(&store, &record, version, &turn(number)).await.unwrap();
        assert_eq!(proxy.mode(), Mode::Pass, "an answer was lost");
        assert_eq!(status(&store, &record).await, RunStatus::Completed);
        assert_eq!(said(&store, &record).await.len(), 2 * (number + 1));
    }
    let counted = meters.text();
    assert!(counted.contains("sluicegate_store_reconnects_total 3\n"), "{counted}");
    assert!(
        counted.contains("sluicegate_commit_unknown_total 0\n"),
        "it was asked: {counted}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_restarts_is_waited_for() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::before(&database).await;
    let meters = Arc::default();
    let store = store::open_counted(&proxy.url(&database), &meters).await.unwrap();
    let (record, other) = (run(&ada(), &id("s"), 1_000), run(&ada(), &id("t"), 1_000));
    let Begun::At(version) = alone(&store, &record).await else {
        panic!("nobody was there")
    };
    proxy.be(Mode::Cut);
    let messages = turn(1);
    let (written, begun, ()) = tokio::join!(
        complete(&store, &record, version, &messages),
        alone(&store, &other),
        async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            proxy.be(Mode::Pass);
        }
    );
    written.unwrap();
    assert!(matches!(begun, Begun::At(_)));
    let counted = meters.text();
    assert!(!counted.contains("sluicegate_store_reconnects_total 0\n"), "{counted}");
    assert_eq!(said(&store, &record).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_is_gone_or_silent_is_said_so_in_time_and_is_found_again() {
    let Some(database) = Database::make().await else { return };
    for mode in [Mode::Cut, Mode::Stall] {
        let (proxy, meters) = (Proxy::before(&database).await, Arc::default());
        let store = store::open_counted(&proxy.url(&database), &meters).await.unwrap();
        let s = id(&format!("{mode:?}"));
        let before = run(&ada(), &s, 1_000);
        let Begun::At(version) = alone(&store, &before).await else {
            panic!("nobody was there")
        };
        proxy.be(mode);
        let began = Instant::now();
        // More than there are connections.
        let others: Vec<_> = (0..40)
            .map(|number| run(&ada(), &id(&format!("{s}-{number}")), 1_000))
            .collect();
        let begins = join_all(
            others
                .iter()
                .map(|run| store.begin(run, SessionClaim::new("user", Entry::Alone))),
        );
        let (messages, ada) = (turn(1), ada());
        let (begins, written, read, ready) = tokio::join!(
            begins,
            complete(&store, &before, version, &messages),
            store.messages(&ada, &s, ReadFrom::Newest, ALL),
            store.ready(),
        );
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{mode:?}: {:?}",
            began.elapsed()
        );
        assert!(
            begins
                .into_iter()
                .all(|begun| code(begun) == ErrorCode::StoreUnavailable)
        );
        let told = [code(written), code(read), code(ready)];
        assert_eq!(told, [ErrorCode::StoreUnavailable; 3], "{mode:?}");
        let counted = meters.text();
        assert!(!counted.contains("sluicegate_commit_unknown_total 0\n"), "{counted}");
        assert!(counted.contains("sluicegate_store_errors_total{"), "{counted}");
        proxy.be(Mode::Pass);
        let found = eventually("it is ready", async || store.ready().await.is_ok()).await;
        assert!(found < Duration::from_secs(6), "{mode:?}: {found:?}");
        // Nobody waits for what was given up, so nothing of it holds a session for long.
        let direct = open(&database).await;
        eventually("the sessions are free", async || {
            let mut free = 0;
            for other in others.iter().chain([&before]) {
                let next = run(&ada, &other.session_id, 1_000);
                if let Begun::At(_) = alone(&direct, &next).await {
                    give_up(&direct, &next).await;
                    free += 1;
                }
            }
            free == others.len() + 1
        })
        .await;
        assert_eq!(
            said(&store, &before).await,
            [""; 0],
            "a turn that was not acknowledged in time"
        );
        let next = run(&ada, &s, 1_000);
        let Begun::At(version) = alone(&store, &next).await else {
            panic!("nobody is there")
        };
        complete(&store, &next, version, &messages).await.unwrap();
        join_all([store.close(), direct.close()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_may_go_on_at_another_gateway() {
    let Some(database) = Database::make().await else { return };
    let gate = Gate::new("never");
    let upstream = Upstream::start([
        openai::answer(&["one"]),
        openai::answer(&["two"]),
        Script::sse().role().say("thr").wait(&gate),
        openai::answer(&["four"]),
    ])
    .await;
    let (url, base_url) = (database.url(LEASE), upstream.base_url());
    let env = [
        ("OPENAI_API_KEY", "test-key"),
        ("OPENAI_BASE_URL", &base_url),
        ("SLUICEGATE_MODEL", "openai/test-model"),
        ("SLUICEGATE__STORE__URL", &url),
    ];
    let (mut a, b) = (Process::start(&env, &[]).await, Process::start(&env, &[]).await);
    let ask = |path: &str, key: &str| {
        let call = Call::post(path).json(&json!({"message": "Hi", "session_id": "s"}));
        call.header("Idempotency-Key", key)
    };
    let first = ask("/chat", "k1").to(&a).await.expect(200).await.json().await;
    let second = ask("/chat", "k2").to(&b).await.expect(200).await.json().await;
    assert_eq!((&first["content"], &second["content"]), (&json!("one"), &json!("two")));
    let replayed = ask("/chat", "k1").to(&b).await.expect(200).await.json().await;
    assert_eq!(
        (&replayed["run_id"], &replayed["content"]),
        (&first["run_id"], &json!("one"))
    );
    // One run at a time, wherever.
    let mut stream = ask("/chat/sse", "k3").to(&a).await;
    stream.next_event_named("token").await;
    let run = stream.header("x-run-id").to_owned();
    let busy = post(&b, "/chat", json!({"message": "Hi", "session_id": "s"})).await;
    let busy = busy.expect(409).await.problem_object().await;
    assert_eq!((&busy["code"], &busy["run_id"]), (&json!("session_busy"), &json!(run)));
    let elsewhere = ask("/chat", "k3").to(&b).await;
    assert_eq!(elsewhere.header("retry-after"), "1");
    assert_eq!(elsewhere.expect(503).await.problem().await, "store_unavailable");
    let row = get(&b, &format!("/runs/{run}")).await.expect(200).await.json().await;
    assert_eq!((&row["status"], &row["ended_at"]), (&json!("running"), &json!(null)));
    let events = get(&b, &format!("/runs/{run}/events")).await.expect(503).await;
    assert_eq!(events.problem().await, "store_unavailable");
    assert_eq!(upstream.calls(), 3);
    // Its gateway dies, and somebody else says so.
    a.kill9().await;
    eventually("the run is interrupted", async || {
        let row = get(&b, &format!("/runs/{run}")).await.expect(200).await.json().await;
        row["status"] == "interrupted"
    })
    .await;
    let fourth = ask("/chat", "k3").to(&b).await.expect(200).await.json().await;
    assert_eq!(fourth["content"], "four");
    let messages = get(&b, "/sessions/s/messages").await.expect(200).await.json().await;
    assert_eq!(messages["messages"].as_array().unwrap().len(), 6);
}

/// A gateway that cannot reach its server says of its own accord that its runs are lost, before anybody else can.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_cut_off_knows_it_before_the_others_do() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::before(&database).await;
    let cut = store::open(&proxy.url(&database)).await.unwrap();
    let other = open(&database).await;
    for mode in [Mode::Stall, Mode::Cut] {
        let s = id(&format!("{mode:?}"));
        let (fence, lost) = (cut.fence().await.unwrap(), run(&ada(), &s, 1_000));
        assert!(matches!(alone(&cut, &lost).await, Begun::At(_)));
        proxy.be(mode);
        let known = async {
            fence.lost().await;
            // Nobody else has acted yet.
            assert_eq!(status(&other, &lost).await, RunStatus::Running, "{mode:?}");
        };
        tokio::time::timeout(Duration::from_secs(10), known)
            .await
            .expect("it is known");
        assert!(cut.fence().await.is_err(), "{mode:?}: no run can begin");
        eventually("the run is interrupted", async || {
            status(&other, &lost).await == RunStatus::Interrupted
        })
        .await;
        assert!(fence.is_expired());
        proxy.be(Mode::Pass);
        // It goes on, and its new runs are its own.
        let (fresh, next) = (cut.fence().await, run(&ada(), &s, 1_000));
        let fresh = fresh.expect("a lease again");
        assert!(matches!(alone(&cut, &next).await, Begun::At(_)), "{mode:?}");
        assert!(fence.is_lost() && !fresh.is_lost(), "{mode:?}: what is lost stays lost");
        give_up(&cut, &next).await;
    }
    join_all([cut.close(), other.close()]).await;
}

/// The same of one that is alone: its runs of before are interrupted as soon as it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_alone_and_was_cut_off_frees_its_sessions_when_it_is_back() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::before(&database).await;
    let store = store::open(&proxy.url(&database)).await.unwrap();
    let (fence, lost) = (store.fence().await.unwrap(), run(&ada(), &id("s"), 1_000));
    assert!(matches!(alone(&store, &lost).await, Begun::At(_)));
    proxy.be(Mode::Cut);
    fence.lost().await;
    proxy.be(Mode::Pass);
    let took = eventually("the run is interrupted", async || {
        let row = store.run(&ada(), lost.id).await;
        row.is_ok_and(|row| row.is_some_and(|row| row.status == RunStatus::Interrupted))
    })
    .await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(matches!(
        alone(&store, &run(&ada(), &id("s"), 1_000)).await,
        Begun::At(_)
    ));
    store.close().await;
}

/// What a proxy does with the bytes between a store and its server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Pass,
    /// Keeps them.
    Stall,
    /// Closes the connections, and every new one.
    Cut,
    /// Closes the next connection that commits after the server has done so and before that is told; then passes.
    LoseTheAnswerToCommit,
}

struct Proxy {
    at: SocketAddr,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    async fn before(database: &Database) -> Self {
        let server: url::Url = database.url("").parse().unwrap();
        let server = format!("{}:{}", server.host_str().unwrap(), server.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            at: listener.local_addr().unwrap(),
            mode: watch::channel(Mode::Pass).0,
        };
        let mode = proxy.mode.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, mode) = (server.clone(), mode.clone());
                tokio::spawn(async move {
                    if *mode.borrow() != Mode::Cut {
                        relay(client, TcpStream::connect(server).await.unwrap(), &mode).await;
                    }
                });
            }
        });
        proxy
    }

    fn url(&self, database: &Database) -> String {
        let mut url: url::Url = database.url(LEASE).parse().unwrap();
        url.set_ip_host(self.at.ip()).unwrap();
        url.set_port(Some(self.at.port())).unwrap();
        url.into()
    }

    fn be(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    fn mode(&self) -> Mode {
        *self.mode.borrow()
    }
}

/// Passes bytes until one side closes, or it is to be cut.
async fn relay(mut client: TcpStream, mut server: TcpStream, mode: &watch::Sender<Mode>) {
    let mut changes = mode.subscribe();
    let (mut asked, mut told) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let now = *changes.borrow_and_update();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            read = client.read(&mut asked), if now != Mode::Stall => {
                let Ok(count @ 1..) = read else { return };
                let bytes = &asked[..count];
                if server.write_all(bytes).await.is_err() {
                    return;
                }
                if now == Mode::LoseTheAnswerToCommit && bytes.windows(6).any(|word| word == b"COMMIT") {
                    let _answer = server.read(&mut told).await;
                    mode.send_replace(Mode::Pass);
                    return;
                }
            }
            read = server.read(&mut told), if now != Mode::Stall => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&told[..count]).await.is_err() {
                    return;
                }
            }
        }
        if *mode.borrow() == Mode::Cut {
            return;
        }
    }
}
