//! What every store must do: one suite, run by each. A new store is one line in [`every_store!`].
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, json};
use sluicegate::chat::{
    Answer, Artifact, ArtifactId, Done, FinishKind, Image, JsonText, Message, Principal, RunId, SessionId, ToolCall,
    Usage,
};
use sluicegate::error::{Error, ErrorCode};
use sluicegate::store::{
    self, ArtifactRecord, Begun, Commit, Entry, KEY_LIFE, MessageStatus, ReadFrom, ReadLimit, RunEnd, RunRecord,
    RunStatus, Session, SessionClaim, Store, TicketBinding, TicketRecord, TicketUse,
};
use tempfile::TempDir;

/// A store, and the folder and the database that go with it.
pub(crate) struct Kept {
    pub(crate) store: Arc<dyn Store>,
    folder: TempDir,
    #[expect(dead_code, reason = "dropped with the store, and after it")]
    database: Option<Database>,
}

impl std::ops::Deref for Kept {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

/// Opens a fresh store; `FOLDER` in the URL is a folder of its own, `DATABASE` a database. `None`: there is no server.
pub(crate) async fn fresh(url: &str) -> Option<Kept> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = match url {
        "DATABASE" => Some(Database::make().await?),
        _ => None,
    };
    let url = match &database {
        Some(database) => database.url(""),
        None => url.replace("FOLDER", folder.path().to_str().expect("a plain path")),
    };
    let store = store::open(&url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    Some(Kept {
        store,
        folder,
        database,
    })
}

/// A database of a test's own, on the server that `scripts/with-postgres` started.
pub(crate) struct Database {
    server: url::Url,
    name: String,
}

impl Database {
    /// `None`, loudly, where there is no server; in CI that is an error.
    pub(crate) async fn make() -> Option<Self> {
        let Ok(server) = std::env::var("SLUICEGATE_TEST_POSTGRES") else {
            assert!(std::env::var_os("CI").is_none(), "SLUICEGATE_TEST_POSTGRES is not set");
            eprintln!("!!! SKIPPED: no SLUICEGATE_TEST_POSTGRES; scripts/with-postgres starts a server");
            return None;
        };
        let database = Self {
            server: server.parse().expect("the server's address"),
            name: format!("t{}", RunId::new().to_string().replace('-', "")),
        };
        database.command(format!("CREATE DATABASE {}", database.name)).await;
        Some(database)
    }

    /// Where it is.
    pub(crate) fn url(&self, query: &str) -> String {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        url.into()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection of somebody else's.
    pub(crate) async fn look(&self) -> sqlx::PgConnection {
        <sqlx::PgConnection as sqlx::Connection>::connect(&self.url(""))
            .await
            .expect("a database that can be looked at")
    }

    pub(crate) async fn command(&self, command: String) {
        let mut db = <sqlx::PgConnection as sqlx::Connection>::connect(self.server.as_str())
            .await
            .expect("a server");
        let command = sqlx::query(sqlx::AssertSqlSafe(command));
        command.execute(&mut db).await.expect("a database made or dropped");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(self.command(format!("DROP DATABASE {} WITH (FORCE)", self.name)));
            });
        });
    }
}

/// Which stores there are.
macro_rules! every_store {
    ($($store:ident $url:literal;)*) => { $( mod $store { suite!($url); } )* };
}

/// The suite.
macro_rules! suite {
    ($url:literal: $($story:ident)*) => {
        $(
            #[tokio::test]
            async fn $story() {
                if let Some(store) = super::fresh($url).await {
                    super::$story(&store).await;
                }
            }
        )*
    };
    ($url:literal) => {
        suite! { $url:
            a_first_run_makes_its_session
            a_made_session_is_made_once
            what_is_appended_is_loaded_in_its_order
            a_message_comes_back_as_it_was
            a_lost_race_is_a_conflict_and_writes_nothing_at_all
            a_run_that_ends_without_a_turn_leaves_the_session_alone
            a_run_comes_back_as_it_was
            erasing_takes_everything_of_the_session_and_nothing_else
            an_erased_session_does_not_come_back_under_an_old_version
            sessions_are_listed_newest_first_page_by_page
            messages_are_given_page_by_page
            messages_are_read_within_bytes
            a_key_finds_the_newest_run_that_goes_on_or_is_complete
            what_an_interrupted_run_was_told_is_kept
            idle_sessions_expire_and_busy_ones_do_not
            many_turns_at_once_are_all_there
            a_file_is_shown_once_its_bytes_are_there
            a_file_that_was_not_written_in_time_is_due_and_never_shown
            a_file_goes_with_its_session
            a_file_without_a_session_has_its_time
            a_file_of_an_erased_run_is_not_begun
            what_is_due_is_given_page_by_page
            a_ticket_is_used_once
            of_many_who_use_a_ticket_at_once_one_does
            a_caller_has_so_many_tickets_and_no_more
            tickets_are_swept_when_their_time_is_over
            a_run_ends_once
            a_run_begins_in_the_claimed_session_only
            a_run_that_begins_has_its_session_until_it_ends
            it_says_that_it_is_ready
        }
    };
}

every_store! {
    sqlite "sqlite://FOLDER/store.db";
    memory "memory:";
    postgres "DATABASE";
}

pub(crate) fn ada() -> Principal {
    Principal::named("ada")
}

pub(crate) fn id(text: &str) -> SessionId {
    text.parse().expect("a session's id")
}

pub(crate) fn run(principal: &Principal, session: &SessionId, created_at: i64) -> RunRecord {
    RunRecord {
        id: RunId::new(),
        principal: principal.clone(),
        session_id: session.clone(),
        agent: "assistant".into(),
        model: "openai/test-model".into(),
        metadata: BTreeMap::new(),
        created_at,
        idempotency: None,
        status: RunStatus::Running,
        end: None,
    }
}

pub(crate) fn end(ended_at: i64) -> RunEnd {
    RunEnd {
        calls: vec![],
        ended_at,
        last_seq: Some(2),
        usage: None,
        error: None,
        done: None,
        result_bytes: None,
    }
}

pub(crate) fn turn(number: usize) -> [Message; 2] {
    [
        Message::user(format!("question {number}"), vec![]),
        Message::assistant(format!("answer {number}"), vec![]),
    ]
}

pub(crate) fn commit<'a>(run: &'a RunRecord, after_version: i64, messages: &'a [Message]) -> Commit<'a> {
    Commit {
        principal: &run.principal,
        session: &run.session_id,
        after_version,
        messages,
        status: MessageStatus::Complete,
    }
}

/// A run gets its session at once, at the version that is returned.
pub(crate) async fn begin(store: &Kept, run: &RunRecord, user: &str) -> i64 {
    match store
        .begin(run, SessionClaim::new(user, Entry::Alone))
        .await
        .expect("a beginning")
    {
        Begun::At(version) => version,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn fail(store: &Kept, run: &RunRecord) {
    store
        .end(run.id, RunStatus::Failed, &end(2_000), None)
        .await
        .expect("an end");
}

/// A whole turn: a run that begins and completes.
pub(crate) async fn add(store: &Kept, principal: &Principal, session: &SessionId, messages: &[Message]) -> RunRecord {
    let run = run(principal, session, 1_000);
    let version = begin(store, &run, "user").await;
    let commit = commit(&run, version, messages);
    store
        .end(run.id, RunStatus::Completed, &end(2_000), Some(commit))
        .await
        .expect("an end");
    run
}

pub(crate) async fn session(store: &Kept, principal: &Principal, id: &SessionId) -> Option<Session> {
    store.session(principal, id).await.expect("a store that can be read")
}

/// No limit.
pub(crate) const ALL: ReadLimit = ReadLimit {
    rows: 1_000,
    bytes: u64::MAX,
};

/// A session and all its messages, oldest first.
pub(crate) async fn load(
    store: &Kept,
    principal: &Principal,
    id: &SessionId,
) -> Result<Option<(Session, Vec<Message>)>, Error> {
    let page = store.messages(principal, id, ReadFrom::Newest, ALL).await?;
    Ok(page.map(|page| {
        assert_eq!((page.first, page.next_bytes), (0, None));
        (
            page.session,
            page.messages.into_iter().map(|stored| stored.message).collect(),
        )
    }))
}

/// The session's messages as `(content, status)`.
pub(crate) async fn said(store: &Kept, principal: &Principal, id: &SessionId) -> Vec<(String, MessageStatus)> {
    let page = store
        .messages(principal, id, ReadFrom::Number(0), ALL)
        .await
        .expect("a store that can be read");
    page.into_iter()
        .flat_map(|page| page.messages)
        .map(|stored| (stored.message.content.to_string(), stored.status))
        .collect()
}

pub(crate) fn code<T: std::fmt::Debug>(outcome: Result<T, Error>) -> ErrorCode {
    outcome.expect_err("a refusal").code
}

async fn a_first_run_makes_its_session(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    assert_eq!(session(store, &ada, &s).await, None);
    assert_eq!(load(store, &ada, &s).await.unwrap(), None);
    let first = run(&ada, &s, 1_234);
    let version = begin(store, &first, "grace").await;
    let made = session(store, &ada, &s).await.expect("the session");
    assert_eq!(
        (
            made.id.as_str(),
            made.user_id.as_str(),
            made.agent.as_str(),
            made.message_count
        ),
        ("s", "grace", "assistant", 0)
    );
    assert_eq!(
        (made.created_at, made.updated_at, made.version),
        (1_234, 1_234, version)
    );
    let (loaded, messages) = load(store, &ada, &s).await.unwrap().expect("the session");
    assert_eq!((loaded, messages), (made.clone(), vec![]));
    assert_eq!(store.run(&ada, first.id).await.unwrap(), Some(first.clone()));
    fail(store, &first).await;
    // A second run takes it as it is.
    let again = RunRecord {
        agent: "other".into(),
        ..run(&ada, &s, 9_999)
    };
    assert_eq!(begin(store, &again, "grace").await, version);
    assert_eq!(session(store, &ada, &s).await, Some(made));
    assert_eq!(store.run(&ada, again.id).await.unwrap(), Some(again));
}

async fn a_made_session_is_made_once(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let wanted = Session {
        id: s.clone(),
        user_id: "grace".into(),
        agent: "assistant".into(),
        metadata: BTreeMap::from([("plan".into(), "gold".into())]),
        message_count: 0,
        version: 0,
        created_at: 1_000,
        updated_at: 1_000,
    };
    let made = store.create(&ada, wanted.clone()).await.unwrap();
    assert_eq!(
        Session {
            version: 0,
            ..made.clone()
        },
        wanted
    );
    let other = Session {
        user_id: "else".into(),
        created_at: 2_000,
        ..wanted
    };
    assert_eq!(store.create(&ada, other).await.unwrap(), made);
    assert_eq!(session(store, &ada, &s).await, Some(made.clone()));
    // And a run goes on with it.
    assert_eq!(begin(store, &run(&ada, &s, 3_000), "grace").await, made.version);
    assert_eq!(session(store, &ada, &s).await.unwrap().metadata["plan"], "gold");
}

async fn what_is_appended_is_loaded_in_its_order(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let (mut versions, mut expected, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..12 {
        let record = run(&ada, &s, 1_000);
        let version = begin(store, &record, "user").await;
        let messages = turn(number);
        let status = if number == 5 {
            MessageStatus::Cancelled
        } else {
            MessageStatus::Complete
        };
        let commit = Commit {
            status,
            ..commit(&record, version, &messages)
        };
        store
            .end(record.id, RunStatus::Completed, &end(2_000), Some(commit))
            .await
            .unwrap();
        versions.push(session(store, &ada, &s).await.unwrap().version);
        expected.extend(messages.map(|message| (message, status)));
        runs.extend([record.id; 2]);
    }
    let (loaded, messages) = load(store, &ada, &s).await.unwrap().expect("the session");
    assert_eq!(
        messages,
        expected.iter().map(|(message, _)| message.clone()).collect::<Vec<_>>()
    );
    assert_eq!((loaded.message_count, loaded.version), (24, versions[11]));
    assert!(loaded.updated_at >= loaded.created_at);
    let stored = store.messages(&ada, &s, ReadFrom::Number(0), ALL).await.unwrap();
    let stored = stored.expect("the session").messages;
    assert_eq!(stored.iter().map(|stored| stored.run_id).collect::<Vec<_>>(), runs);
    assert_eq!(
        stored
            .into_iter()
            .map(|stored| (stored.message, stored.status))
            .collect::<Vec<_>>(),
        expected
    );
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 12, "each turn has a version of its own");
}

async fn a_message_comes_back_as_it_was(store: &Kept) {
    let (ada, s) = (ada(), id("A-b_c.d:9"));
    // Not sorted: the order of keys is kept too.
    let arguments = json!({"n": 1.5, "a": [1, {"z": 1, "b": null}], "c": "“é” \u{1F469}\u{200D}\u{1F469}"})
        .as_object()
        .unwrap()
        .clone();
    let call = |id: &str, arguments: Map<String, serde_json::Value>| ToolCall {
        id: id.into(),
        name: "f".into(),
        arguments,
    };
    let image = Image {
        media_type: "image/png".into(),
        data: "iVBORw0KGgo=".into(),
    };
    let messages = [
        Message::user("'; DROP TABLE messages; --\r\n\u{2028}\t\\\"", vec![image]),
        Message::assistant("", vec![call("a", arguments), call("b", Map::new())]),
        Message::tool("a", "世界\n\0\u{1}\u{7f}\u{FFFF}"),
        Message::assistant("\0", vec![]),
        Message::tool("b", ""),
        Message::assistant("x".repeat(300_000), vec![]),
    ];
    add(store, &ada, &s, &messages).await;
    let loaded = load(store, &ada, &s).await.unwrap().expect("the session").1;
    assert_eq!(loaded, messages);
    let text = |messages: &[Message]| serde_json::to_string(messages).unwrap();
    assert_eq!(text(&loaded), text(&messages));
}

async fn a_lost_race_is_a_conflict_and_writes_nothing_at_all(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    // What both have read; one of them is quicker.
    let (slow, quick) = (run(&ada, &s, 1_000), run(&ada, &s, 1_000));
    let version = begin(store, &quick, "user").await;
    let (mine, theirs) = (turn(1), turn(2));
    store
        .end(
            quick.id,
            RunStatus::Completed,
            &end(2_000),
            Some(commit(&quick, version, &theirs)),
        )
        .await
        .unwrap();
    let after = session(store, &ada, &s).await;
    begin(store, &slow, "user").await;
    let lost = store
        .end(
            slow.id,
            RunStatus::Completed,
            &end(3_000),
            Some(commit(&slow, version, &mine)),
        )
        .await;
    assert_eq!(code(lost), ErrorCode::SessionBusy);
    assert_eq!(session(store, &ada, &s).await, after);
    assert_eq!(load(store, &ada, &s).await.unwrap().unwrap().1, theirs);
    let row = store.run(&ada, slow.id).await.unwrap().unwrap();
    assert_eq!(
        (row.status, row.end),
        (RunStatus::Running, None),
        "the run's end is part of the turn that was not written"
    );
    // It can still be said that it failed.
    store.end(slow.id, RunStatus::Failed, &end(4_000), None).await.unwrap();
    assert_eq!(
        store.run(&ada, slow.id).await.unwrap().unwrap().status,
        RunStatus::Failed
    );
    assert_eq!(session(store, &ada, &s).await, after);
    // A version of the future is none either, nor is a session that never was.
    let early = run(&ada, &s, 5_000);
    let version = begin(store, &early, "user").await;
    let future = store
        .end(
            early.id,
            RunStatus::Completed,
            &end(6_000),
            Some(commit(&early, version + 1, &mine)),
        )
        .await;
    assert_eq!(code(future), ErrorCode::SessionBusy);
    let nowhere = run(&ada, &id("nowhere"), 5_000);
    let lost = store
        .end(
            nowhere.id,
            RunStatus::Completed,
            &end(6_000),
            Some(commit(&nowhere, 0, &mine)),
        )
        .await;
    assert_eq!(code(lost), ErrorCode::SessionBusy);
    assert_eq!(session(store, &ada, &id("nowhere")).await, None);
}

async fn a_run_that_ends_without_a_turn_leaves_the_session_alone(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    add(store, &ada, &s, &turn(1)).await;
    let before = session(store, &ada, &s).await;
    for status in [RunStatus::Failed, RunStatus::Cancelled, RunStatus::Interrupted] {
        let record = run(&ada, &s, 1_000);
        begin(store, &record, "user").await;
        store.end(record.id, status, &end(2_000), None).await.unwrap();
        let row = store.run(&ada, record.id).await.unwrap().unwrap();
        assert_eq!((row.status, row.end), (status, Some(end(2_000))));
        assert_eq!(session(store, &ada, &s).await, before);
    }
    assert_eq!(said(store, &ada, &s).await.len(), 2);
}

async fn a_run_comes_back_as_it_was(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let mut record = RunRecord {
        metadata: BTreeMap::from([("k".into(), "“v”".into())]),
        idempotency: Some(("key".into(), "print".into())),
        ..run(&ada, &s, 1_000)
    };
    let version = begin(store, &record, "user").await;
    let usage = Usage {
        input_tokens: Some(0),
        output_tokens: Some(u64::from(u32::MAX) + 1),
        estimated: true,
        ..Usage::default()
    };
    let messages = turn(1);
    let answer = Answer {
        run_id: record.id,
        session_id: Some(s.clone()),
        agent: "assistant".into(),
        model: "openai/test-model".into(),
        content: "answer 1".into(),
        finish_reason: Some(FinishKind::Stop),
        usage: usage.clone(),
        rounds: 1,
        tool_calls: vec![],
        structured_data: Some(JsonText::of(&json!({"z": ["\u{2028}", 1.50], "a": null}))),
        reasoning: None,
        artifact_files: vec![],
        messages: messages.to_vec(),
        metadata: record.metadata.clone(),
    };
    let ending = RunEnd {
        calls: vec![],
        ended_at: 2_000,
        last_seq: Some(7),
        usage: Some(usage),
        error: Some(json!({"code": "internal", "message": "x"})),
        done: Some(Box::new(Done {
            answer,
            duration_ms: 12,
            first_token_ms: None,
            history_truncated: true,
            repaired: true,
        })),
        result_bytes: None,
    };
    store
        .end(
            record.id,
            RunStatus::Completed,
            &ending,
            Some(commit(&record, version, &messages)),
        )
        .await
        .unwrap();
    (record.status, record.end) = (RunStatus::Completed, Some(ending));
    // The row comes without its result, whose size it knows; the result comes when it is asked for.
    let result = record.end.as_mut().and_then(|end| end.done.take());
    for row in [
        store.run(&ada, record.id).await.unwrap(),
        store.run_by_key(&ada, "key", 0).await.unwrap(),
    ] {
        let mut row = row.expect("the run");
        assert!(row.end.as_mut().and_then(|end| end.result_bytes.take()).is_some());
        assert_eq!(row, record);
    }
    assert_eq!(store.result(&ada, record.id).await.unwrap(), result);
    assert_eq!(store.result(&Principal::anonymous(), record.id).await.unwrap(), None);
    assert_eq!(store.result(&ada, RunId::new()).await.unwrap(), None);
    // For nobody else, and under no other id.
    assert_eq!(store.run(&Principal::anonymous(), record.id).await.unwrap(), None);
    assert_eq!(store.run(&ada, RunId::new()).await.unwrap(), None);
}

async fn erasing_takes_everything_of_the_session_and_nothing_else(store: &Kept) {
    let (ada, other, s, t) = (ada(), Principal::named("bob"), id("s"), id("t"));
    let gone = add(store, &ada, &s, &turn(1)).await;
    let sibling = add(store, &ada, &t, &turn(2)).await;
    let namesake = add(store, &other, &s, &turn(3)).await;
    for _ in 0..2 {
        store.delete(&ada, &s).await.unwrap();
        assert_eq!(session(store, &ada, &s).await, None);
        assert_eq!(load(store, &ada, &s).await.unwrap(), None);
        assert_eq!(said(store, &ada, &s).await, []);
        assert_eq!(store.run(&ada, gone.id).await.unwrap(), None);
        assert_eq!(store.list(&ada, None, None, 10).await.unwrap().sessions.len(), 1);
    }
    for (principal, session, run, answer) in [(&ada, &t, &sibling, "answer 2"), (&other, &s, &namesake, "answer 3")] {
        assert_eq!(said(store, principal, session).await[1].0, answer);
        assert!(store.run(principal, run.id).await.unwrap().is_some());
    }
    store.delete(&ada, &id("never-there")).await.unwrap();
}

async fn an_erased_session_does_not_come_back_under_an_old_version(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let late = run(&ada, &s, 1_000);
    let version = begin(store, &late, "user").await;
    store.delete(&ada, &s).await.unwrap();
    let messages = turn(1);
    let lost = store
        .end(
            late.id,
            RunStatus::Completed,
            &end(2_000),
            Some(commit(&late, version, &messages)),
        )
        .await;
    assert_eq!(code(lost), ErrorCode::SessionBusy);
    assert_eq!(session(store, &ada, &s).await, None);
    // Nor into another that took its name since.
    let fresh = run(&ada, &s, 3_000);
    assert_ne!(begin(store, &fresh, "user").await, version);
    let lost = store
        .end(
            late.id,
            RunStatus::Completed,
            &end(4_000),
            Some(commit(&late, version, &messages)),
        )
        .await;
    assert_eq!(code(lost), ErrorCode::SessionBusy);
    assert_eq!(said(store, &ada, &s).await, []);
}

async fn sessions_are_listed_newest_first_page_by_page(store: &Kept) {
    let (ada, other) = (ada(), Principal::named("bob"));
    // Many of the same moment: then the id decides.
    let mut expected = Vec::new();
    for number in 0..23 {
        // And it decides by its bytes: no language puts "S" between "_" and "s".
        let letter = ["s", "S", "_", "-"][number as usize % 4];
        let (session, created_at) = (id(&format!("x{letter}{number:02}")), 1_000 + i64::from(number / 5));
        let user = if number % 3 == 0 { "grace" } else { "linus" };
        begin(store, &run(&ada, &session, created_at), user).await;
        expected.push((created_at, session, user));
    }
    begin(store, &run(&other, &id("not-hers"), 1_002), "grace").await;
    expected.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
    for user in [None, Some("grace"), Some("linus"), Some("nobody")] {
        let wanted: Vec<_> = expected
            .iter()
            .filter(|(_, _, of)| user.is_none_or(|user| user == *of))
            .map(|(_, id, _)| id.clone())
            .collect();
        for limit in [1, 2, 5, 22, 23, 24, 200] {
            let (mut listed, mut after) = (Vec::new(), None);
            for _ in 0..=wanted.len() {
                let page = store.list(&ada, user, after.clone(), limit).await.unwrap();
                assert!(page.sessions.len() <= limit as usize);
                listed.extend(page.sessions.into_iter().map(|session| session.id));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!((after, &listed), (None, &wanted), "{user:?}, {limit} a page");
        }
    }
    // A session that is erased between two pages takes none of the others with it.
    let first = store.list(&ada, None, None, 5).await.unwrap();
    store.delete(&ada, &first.sessions[4].id).await.unwrap();
    let second = store.list(&ada, None, first.next, 5).await.unwrap();
    assert_eq!(second.sessions[0].id, expected[5].1);
}

async fn messages_are_given_page_by_page(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    for number in 0..4 {
        add(store, &ada, &s, &turn(number)).await;
    }
    let read = async |from, rows, bytes| {
        let page = store.messages(&ada, &s, from, ReadLimit { rows, bytes }).await.unwrap();
        page.expect("the session")
    };
    let all = read(ReadFrom::Number(0), 100, u64::MAX).await;
    assert_eq!((all.messages.len(), all.first, all.next_bytes), (8, 0, None));
    let total = all.bytes;
    let all = all.messages;
    for rows in 1..=9 {
        let (mut forwards, mut backwards, mut bytes) = (Vec::new(), all.clone(), 0);
        loop {
            let page = read(ReadFrom::Number(forwards.len() as u64), rows, u64::MAX).await;
            assert_eq!(page.first, forwards.len() as u64);
            bytes += page.bytes;
            forwards.extend(page.messages);
            assert!(page.bytes == 0 || forwards.len() % rows as usize == 0 || forwards.len() == 8);
            if page.next_bytes.is_none() {
                break;
            }
        }
        assert_eq!((&forwards, bytes), (&all, total), "{rows} a page");
        let mut from = ReadFrom::Newest;
        loop {
            let page = read(from, rows, u64::MAX).await;
            assert_eq!(page.messages, backwards.split_off(page.first as usize), "{rows} a page");
            from = ReadFrom::Before(page.first);
            if page.next_bytes.is_none() {
                break;
            }
        }
        assert_eq!(backwards, []);
    }
    for from in [ReadFrom::Number(8), ReadFrom::Number(u64::MAX), ReadFrom::Before(0)] {
        let none = read(from, 10, u64::MAX).await;
        assert_eq!((none.messages, none.next_bytes), (vec![], None), "{from:?}");
    }
    assert_eq!(
        store.messages(&ada, &id("t"), ReadFrom::Newest, ALL).await.unwrap(),
        None
    );
    let other = Principal::anonymous();
    assert_eq!(
        store.messages(&other, &s, ReadFrom::Number(0), ALL).await.unwrap(),
        None
    );
}

/// Only what fits is read; of what does not, the size is told.
async fn messages_are_read_within_bytes(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let long = |letter: &str| Message::user(letter.repeat(100_000), vec![]);
    let short = Message::assistant("Yes", vec![]);
    add(store, &ada, &s, &[long("a"), short.clone()]).await;
    add(store, &ada, &s, &[long("b"), short]).await;
    let read = async |from, bytes| {
        let page = store
            .messages(&ada, &s, from, ReadLimit { rows: 10, bytes })
            .await
            .unwrap();
        page.expect("the session")
    };
    let newest = read(ReadFrom::Newest, 50_000).await;
    assert_eq!((newest.messages.len(), newest.first), (1, 3));
    let size = newest.next_bytes.expect("more");
    assert!((100_000..250_000).contains(&size), "{size}");
    let none = read(ReadFrom::Before(3), size - 1).await;
    assert_eq!((none.messages.len(), none.first, none.next_bytes), (0, 3, Some(size)));
    let one = read(ReadFrom::Before(3), size).await;
    assert_eq!((one.messages.len(), one.first, one.bytes), (1, 2, size));
    assert!(one.messages[0].message.content.starts_with('b'));
    // A small message behind a large one is not read in its place.
    let first = read(ReadFrom::Number(0), size - 1).await;
    assert_eq!(
        (first.messages.len(), first.first, first.next_bytes),
        (0, 0, Some(size))
    );
    let two = read(ReadFrom::Number(0), size + newest.bytes).await;
    assert_eq!((two.messages.len(), two.bytes), (2, size + newest.bytes));
    assert_eq!(two.next_bytes, Some(size));
    let all = read(ReadFrom::Newest, u64::MAX).await;
    assert_eq!((all.messages.len(), all.bytes), (4, 2 * (size + newest.bytes)));
}

async fn a_key_finds_the_newest_run_that_goes_on_or_is_complete(store: &Kept) {
    let ada = ada();
    let start = async |session: &str, created_at, key: &str| {
        let record = RunRecord {
            idempotency: Some((key.into(), "print".into())),
            ..run(&ada, &id(session), created_at)
        };
        begin(store, &record, "user").await;
        record.id
    };
    let found = async |principal: &Principal, key: &str, since| {
        store.run_by_key(principal, key, since).await.unwrap().map(|run| run.id)
    };
    assert_eq!(found(&ada, "k", 0).await, None);
    let first = start("a", 1_000, "k").await;
    assert_eq!(found(&ada, "k", 0).await, Some(first), "it goes on");
    let mut unfinished = first;
    for status in [RunStatus::Failed, RunStatus::Cancelled, RunStatus::Interrupted] {
        store.end(unfinished, status, &end(1_500), None).await.unwrap();
        assert_eq!(found(&ada, "k", 0).await, None, "{status:?}");
        unfinished = start("a", 1_500, "k").await;
    }
    store
        .end(unfinished, RunStatus::Failed, &end(1_600), None)
        .await
        .unwrap();
    let second = start("a", 2_000, "k").await;
    store
        .end(second, RunStatus::Completed, &end(2_500), None)
        .await
        .unwrap();
    assert_eq!(found(&ada, "k", 0).await, Some(second), "it is complete");
    assert_eq!(found(&ada, "k", 2_000).await, Some(second));
    assert_eq!(found(&ada, "k", 2_001).await, None, "it is too old");
    // A day later the key is free.
    let third = start("b", 2_001 + KEY_LIFE, "k").await;
    assert_eq!(found(&ada, "k", 0).await, Some(third));
    assert_eq!(found(&Principal::anonymous(), "k", 0).await, None);
    assert_eq!(found(&ada, "K", 0).await, None, "another key");
    store.delete(&ada, &id("b")).await.unwrap();
    assert_eq!(found(&ada, "k", 0).await, Some(second));
}

async fn what_an_interrupted_run_was_told_is_kept(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let record = run(&ada, &s, 1_000);
    begin(store, &record, "user").await;
    let seq = async || {
        store
            .run(&ada, record.id)
            .await
            .unwrap()
            .unwrap()
            .end
            .and_then(|end| end.last_seq)
    };
    store.told(record.id, 9).await.unwrap();
    assert_eq!(seq().await, None, "it goes on");
    let unknown = RunEnd {
        calls: vec![],
        last_seq: None,
        ..end(2_000)
    };
    store
        .end(record.id, RunStatus::Interrupted, &unknown, None)
        .await
        .unwrap();
    assert_eq!(seq().await, None);
    for (told, kept) in [(5, 5), (3, 5), (8, 8)] {
        store.told(record.id, told).await.unwrap();
        assert_eq!(seq().await, Some(kept), "told {told}");
    }
    let complete = add(store, &ada, &s, &turn(1)).await;
    store.told(complete.id, 100).await.unwrap();
    let stands = store.run(&ada, complete.id).await.unwrap().unwrap();
    assert_eq!(stands.end, Some(end(2_000)), "what a completed run ended with stands");
    store.told(RunId::new(), 1).await.unwrap();
}

async fn idle_sessions_expire_and_busy_ones_do_not(store: &Kept) {
    let (ada, other) = (ada(), Principal::named("bob"));
    let idle = async |principal: &Principal, session: &str, created_at| {
        let record = run(principal, &id(session), created_at);
        begin(store, &record, "user").await;
        store
            .end(record.id, RunStatus::Failed, &end(created_at), None)
            .await
            .unwrap();
        record.id
    };
    let old = idle(&ada, "old", 1_000).await;
    idle(&other, "old", 1_999).await;
    idle(&ada, "edge", 2_000).await;
    let busy = run(&ada, &id("busy"), 1_000);
    begin(store, &busy, "user").await;
    idle(&other, "busy", 1_000).await; // a namesake that is not busy
    assert_eq!(store.expire(2_000).await.unwrap(), 3);
    assert_eq!(store.run(&ada, old).await.unwrap(), None);
    let left = async |principal: &Principal| {
        let page = store.list(principal, None, None, 10).await.unwrap();
        page.sessions
            .iter()
            .map(|session| session.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (left(&ada).await, left(&other).await),
        (vec!["edge".to_owned(), "busy".to_owned()], vec![])
    );
    // A turn makes a session young.
    add(store, &ada, &id("edge"), &turn(1)).await;
    assert_eq!(store.expire(3_000).await.unwrap(), 0);
    store
        .end(busy.id, RunStatus::Cancelled, &end(2_000), None)
        .await
        .unwrap();
    assert_eq!(store.expire(3_000).await.unwrap(), 1);
}

async fn many_turns_at_once_are_all_there(store: &Kept) {
    let ada = ada();
    let turns = (0..300).map(|number| {
        let (ada, session) = (ada.clone(), id(&format!("s{}", number % 100)));
        async move {
            // Three want each session; one wins, and whoever lost is told so.
            let record = run(&ada, &session, 1_000);
            let Begun::At(version) = store
                .begin(&record, SessionClaim::new("user", Entry::Alone))
                .await
                .unwrap()
            else {
                return None;
            };
            tokio::task::yield_now().await;
            let messages = turn(number);
            let outcome = store
                .end(
                    record.id,
                    RunStatus::Completed,
                    &end(2_000),
                    Some(commit(&record, version, &messages)),
                )
                .await;
            match outcome {
                Ok(()) => Some((session, format!("answer {number}"))),
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::SessionBusy, "{error}");
                    None
                }
            }
        }
    });
    let won: Vec<_> = futures_util::future::join_all(turns)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert!(won.len() >= 100, "{} of 300", won.len());
    let mut kept = 0;
    for number in 0..100 {
        let session = id(&format!("s{number}"));
        let said: Vec<_> = said(store, &ada, &session)
            .await
            .into_iter()
            .map(|(content, _)| content)
            .collect();
        let answers = won.iter().filter(|(of, _)| *of == session);
        for (_, answer) in answers {
            assert_eq!(
                said.iter().filter(|content| *content == answer).count(),
                1,
                "{session}: {said:?}"
            );
        }
        kept += said.len();
    }
    assert_eq!(kept, 2 * won.len());
}

async fn a_run_ends_once(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let record = run(&ada, &s, 1_000);
    let version = begin(store, &record, "user").await;
    fail(store, &record).await;
    let (before, row) = (
        session(store, &ada, &s).await,
        store.run(&ada, record.id).await.unwrap(),
    );
    let messages = turn(1);
    for commit in [Some(commit(&record, version, &messages)), None] {
        let late = store.end(record.id, RunStatus::Completed, &end(3_000), commit).await;
        assert_eq!(code(late), ErrorCode::SessionBusy);
        assert_eq!(session(store, &ada, &s).await, before);
        assert_eq!(store.run(&ada, record.id).await.unwrap(), row);
        assert_eq!(said(store, &ada, &s).await, []);
    }
    // Nor does one that never was, or is erased.
    let erased = run(&ada, &s, 1_000);
    begin(store, &erased, "user").await;
    store.delete(&ada, &s).await.unwrap();
    for never in [erased, run(&ada, &s, 1_000)] {
        let late = store.end(never.id, RunStatus::Failed, &end(3_000), None).await;
        assert_eq!(code(late), ErrorCode::SessionBusy);
    }
}

/// A run's row is written only into the session that was claimed.
async fn a_run_begins_in_the_claimed_session_only(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    let claim = SessionClaim {
        user_id: None,
        agent: None,
        may_create: false,
        entry: Entry::Line,
    };
    let ask = async |claim| {
        let record = run(&ada, &s, 1_000);
        let begun = store.begin(&record, claim).await.expect("an answer");
        let written = store.run(&ada, record.id).await.unwrap();
        let entered = matches!(begun, Begun::At(_) | Begun::Waiting);
        assert_eq!(written.is_some(), entered, "{begun:?}");
        if entered {
            fail(store, &record).await;
        }
        begun
    };
    assert_eq!(ask(claim).await, Begun::NotFound, "there is none");
    assert_eq!(session(store, &ada, &s).await, None);
    let other_agent = Some("other");
    let first = SessionClaim {
        agent: other_agent,
        may_create: true,
        ..claim
    };
    assert!(
        matches!(ask(first).await, Begun::At(_)),
        "a new session has the run's agent"
    );
    let made = session(store, &ada, &s).await.expect("the session");
    assert_eq!((&*made.user_id, &*made.agent), ("anonymous", "assistant"));
    let user = |user_id| SessionClaim {
        user_id: Some(user_id),
        ..claim
    };
    let agent = |agent| SessionClaim {
        agent: Some(agent),
        ..claim
    };
    for (claim, refused) in [
        (user("grace"), Some(Begun::NotFound)),
        (user("anonymous"), None),
        (agent("other"), Some(Begun::OtherAgent("assistant".to_owned()))),
        (agent("assistant"), None),
        (claim, None),
    ] {
        let begun = ask(claim).await;
        match refused {
            Some(refused) => assert_eq!(begun, refused),
            None => assert_eq!(begun, Begun::At(made.version), "{claim:?}"),
        }
    }
    // The same while the session is held.
    let holder = run(&ada, &s, 1_000);
    begin(store, &holder, "anonymous").await;
    for entry in [Entry::Alone, Entry::Line, Entry::Front] {
        let claim = SessionClaim { entry, ..user("grace") };
        assert_eq!(ask(claim).await, Begun::NotFound, "{entry:?}");
    }
    assert_eq!(session(store, &ada, &s).await, Some(made));
}

/// Who holds a session elsewhere is a matter of stores that several gateways share: `replicas` has the rest of it.
async fn a_run_that_begins_has_its_session_until_it_ends(store: &Kept) {
    let (ada, s) = (ada(), id("s"));
    for (number, entry) in [Entry::Alone, Entry::Line, Entry::Line].into_iter().enumerate() {
        let record = run(&ada, &s, 1_000);
        let Begun::At(version) = store.begin(&record, SessionClaim::new("user", entry)).await.unwrap() else {
            panic!("nobody else is there");
        };
        // Whose turn it is may ask again.
        assert_eq!(store.take(&ada, &s, record.id).await.unwrap(), Some(version));
        let messages = turn(number);
        let turn = commit(&record, version, &messages);
        store
            .end(record.id, RunStatus::Completed, &end(2_000), Some(turn))
            .await
            .unwrap();
        assert_eq!(
            code(store.take(&ada, &s, record.id).await),
            ErrorCode::SessionBusy,
            "it is over"
        );
    }
    assert_eq!(said(store, &ada, &s).await.len(), 6);
    assert_eq!(code(store.take(&ada, &s, RunId::new()).await), ErrorCode::SessionBusy);
    // Of somebody else's session nobody has the turn.
    let record = run(&ada, &s, 1_000);
    begin(store, &record, "user").await;
    let bob = Principal::named("bob");
    begin(store, &run(&bob, &s, 1_000), "user").await;
    assert_eq!(code(store.take(&bob, &s, record.id).await), ErrorCode::SessionBusy);
    assert_eq!(
        code(store.take(&ada, &id("t"), record.id).await),
        ErrorCode::SessionBusy
    );
}

async fn it_says_that_it_is_ready(store: &Kept) {
    store.ready().await.unwrap();
    assert!(store.folder.path().exists());
    store.close().await;
}

/// What only SQLite has to show: its file.
mod the_file {
    use futures_util::future::join_all;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
    use sqlx::{ConnectOptions, Connection};

    use super::*;

    const URL: &str = "sqlite://FOLDER/store.db";

    /// A connection of somebody else's.
    async fn look(store: &Kept) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(store.folder.path().join("store.db"));
        options.connect().await.expect("a file that can be opened")
    }

    async fn reopened(store: Kept) -> Kept {
        store.close().await;
        let Kept { store, folder, .. } = store;
        drop(store);
        let url = URL.replace("FOLDER", folder.path().to_str().unwrap());
        Kept {
            store: store::open(&url).await.unwrap(),
            folder,
            database: None,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whatever_is_acknowledged_is_in_the_file() {
        let store = fresh(URL).await.unwrap();
        let ada = ada();
        let mut file = look(&store).await;
        let turns = |round: usize| {
            let (store, ada) = (&store, &ada);
            join_all((0..100).map(move |number| async move {
                let messages = turn(number + 1_000 * round);
                add(store, ada, &id(&format!("s{number}")), &messages).await;
            }))
        };
        for round in 1..=3 {
            turns(round).await;
            let (messages, completed): (i64, i64) = sqlx::query_as(
                "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM runs WHERE status = 'completed')",
            )
            .fetch_one(&mut file)
            .await
            .unwrap();
            assert_eq!((messages, completed), (200 * round as i64, 100 * round as i64));
        }
        file.close().await.unwrap();
        let store = reopened(store).await;
        for number in 0..100 {
            let said = said(&store, &ada, &id(&format!("s{number}"))).await;
            assert_eq!((said.len(), &said[5].0), (6, &format!("answer {}", number + 3_000)));
        }
    }

    #[tokio::test]
    async fn one_that_fails_takes_no_other_along() {
        let store = fresh(URL).await.unwrap();
        let ada = ada();
        let mut file = look(&store).await;
        let poison = "CREATE TRIGGER poison BEFORE INSERT ON messages WHEN NEW.body LIKE '%poison%' BEGIN SELECT RAISE(FAIL, 'poison'); END";
        sqlx::query(poison).execute(&mut file).await.unwrap();
        let mut runs = Vec::new();
        for number in 0..60 {
            let record = run(&ada, &id(&format!("s{number}")), 1_000);
            let version = begin(&store, &record, "user").await;
            runs.push((record, version));
        }
        // All at once, so that they are written together; every twentieth cannot be.
        let ends = runs.iter().enumerate().map(|(number, (record, version))| {
            let store = &store;
            async move {
                let messages = match number % 20 {
                    7 => [Message::user("fine", vec![]), Message::assistant("poison", vec![])],
                    _ => turn(number),
                };
                store
                    .end(
                        record.id,
                        RunStatus::Completed,
                        &end(2_000),
                        Some(commit(record, *version, &messages)),
                    )
                    .await
            }
        });
        for (number, outcome) in join_all(ends).await.into_iter().enumerate() {
            let (record, version) = &runs[number];
            let status = store.run(&ada, record.id).await.unwrap().unwrap().status;
            let session = session(&store, &ada, &record.session_id).await.unwrap();
            if number % 20 == 7 {
                assert_eq!(code(outcome), ErrorCode::StoreUnavailable);
                assert_eq!(
                    (status, session.version, session.message_count),
                    (RunStatus::Running, *version, 0),
                    "{number}"
                );
                assert_eq!(said(&store, &ada, &record.session_id).await, [], "half a turn");
            } else {
                outcome.unwrap();
                assert_eq!((status, session.message_count), (RunStatus::Completed, 2), "{number}");
            }
        }
        // The same of what is written without waiting for the disk: a run's id is there once.
        let begins = (0..60).map(|number| match number % 20 {
            7 => runs[number].0.clone(),
            _ => run(&ada, &id(&format!("t{number}")), 1_000),
        });
        let begins: Vec<_> = begins.collect();
        let outcomes = join_all(
            begins
                .iter()
                .map(|record| store.begin(record, SessionClaim::new("user", Entry::Alone))),
        )
        .await;
        for (number, (record, outcome)) in begins.iter().zip(outcomes).enumerate() {
            assert_eq!(outcome.is_ok(), number % 20 != 7, "{number}");
            assert!(store.run(&ada, record.id).await.unwrap().is_some());
        }
        // And it goes on writing.
        add(&store, &ada, &id("later"), &turn(1)).await;
        assert_eq!(said(&store, &ada, &id("later")).await.len(), 2);
    }

    #[tokio::test]
    async fn runs_that_a_process_left_running_are_interrupted_when_it_is_opened_again() {
        let store = fresh(URL).await.unwrap();
        let (ada, s) = (ada(), id("s"));
        let complete = add(&store, &ada, &s, &turn(1)).await;
        let left = RunRecord {
            idempotency: Some(("k".into(), "p".into())),
            ..run(&ada, &s, 1_000)
        };
        begin(&store, &left, "user").await;
        let store = reopened(store).await;
        let row = store.run(&ada, left.id).await.unwrap().unwrap();
        let ended = row.end.expect("a moment");
        assert_eq!(
            (row.status, ended.last_seq, ended.usage, ended.done),
            (RunStatus::Interrupted, None, None, None)
        );
        assert!(ended.ended_at > 1_000);
        assert_eq!(store.run_by_key(&ada, "k", 0).await.unwrap(), None, "its key is free");
        assert_eq!(
            store.run(&ada, complete.id).await.unwrap().unwrap().status,
            RunStatus::Completed
        );
        assert_eq!(said(&store, &ada, &s).await.len(), 2);
    }

    #[tokio::test]
    async fn two_gateways_do_not_share_a_file() {
        let store = fresh(URL).await.unwrap();
        let url = URL.replace("FOLDER", store.folder.path().to_str().unwrap());
        let refused = store::open(&url).await.err().expect("a refusal");
        assert!(refused.message.contains("in use"), "{refused}");
        add(&store, &ada(), &id("s"), &turn(1)).await;
        let store = reopened(store).await;
        assert_eq!(said(&store, &ada(), &id("s")).await.len(), 2);
    }

    #[tokio::test]
    async fn a_file_that_is_something_else_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let url = URL.replace("FOLDER", folder.path().to_str().unwrap());
        let path = folder.path().join("store.db");
        let text = "This is not a database. ".repeat(100);
        std::fs::write(&path, &text).unwrap();
        let refused = store::open(&url).await.err().expect("a refusal");
        assert!(refused.message.contains("store.db"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::remove_file(&path).unwrap();
        // A schema of a later version.
        let store = Kept {
            store: store::open(&url).await.unwrap(),
            folder,
            database: None,
        };
        add(&store, &ada(), &id("s"), &turn(1)).await;
        store.close().await;
        let mut file = look(&store).await;
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)";
        sqlx::query(later).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
        let Kept { store, folder, .. } = store;
        drop(store);
        let before = std::fs::read(&path).unwrap();
        let refused = store::open(&url).await.err().expect("a refusal");
        assert!(refused.message.contains("another version"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        drop(folder);
    }

    #[tokio::test]
    async fn a_closed_store_says_so() {
        let store = fresh(URL).await.unwrap();
        store.close().await;
        assert_eq!(
            code(
                store
                    .begin(&run(&ada(), &id("s"), 1), SessionClaim::new("user", Entry::Alone))
                    .await
            ),
            ErrorCode::StoreUnavailable
        );
        assert_eq!(code(store.ready().await), ErrorCode::StoreUnavailable);
    }
}

pub(crate) fn record(run: &RunRecord) -> ArtifactRecord {
    let (name, media_type) = ("Résumé \"1\".txt".to_owned(), "text/plain".to_owned());
    ArtifactRecord {
        artifact: Artifact::new(ArtifactId::generate(), name, media_type, 5, "ab".repeat(32)),
        principal: run.principal.clone(),
        session_id: Some(run.session_id.clone()),
        run_id: run.id,
        created_at: 7,
    }
}

fn soon() -> i64 {
    jiff::Timestamp::now().as_millisecond() + 600_000
}

/// The record as its owner sees it.
async fn shown(store: &Kept, record: &ArtifactRecord) -> Option<ArtifactRecord> {
    let stranger = Principal::named("bob");
    assert_eq!(store.artifact(&stranger, record.artifact.id).await.unwrap(), None);
    store.artifact(&record.principal, record.artifact.id).await.unwrap()
}

/// Which are due by then.
async fn due_by(store: &Kept, time: i64) -> Vec<ArtifactId> {
    let due = store.due(time, None, 100).await.unwrap();
    due.into_iter().map(|due| due.id).collect()
}

async fn a_file_is_shown_once_its_bytes_are_there(store: &Kept) {
    let run = run(&ada(), &id("s"), 1);
    begin(store, &run, "u").await;
    let file = record(&run);
    assert!(!store.keep(&file, None).await.unwrap(), "nobody has announced it");
    assert!(store.announce(&file, soon()).await.unwrap());
    assert_eq!(shown(store, &file).await, None);
    assert!(store.keep(&file, None).await.unwrap());
    assert_eq!(shown(store, &file).await, Some(file.clone()));
    assert!(!store.keep(&file, Some(0)).await.unwrap(), "it is kept already");
    assert_eq!(due_by(store, i64::MAX).await, [], "it is kept with its session");
}

async fn a_file_that_was_not_written_in_time_is_due_and_never_shown(store: &Kept) {
    let run = run(&ada(), &id("s"), 1);
    begin(store, &run, "u").await;
    let file = record(&run);
    assert!(store.announce(&file, 1000).await.unwrap());
    assert!(!store.keep(&file, None).await.unwrap(), "its time is over");
    assert_eq!(shown(store, &file).await, None);
    assert_eq!(due_by(store, 999).await, []);
    assert_eq!(due_by(store, 1000).await, [file.artifact.id]);
}

async fn a_file_goes_with_its_session(store: &Kept) {
    let (this, other) = (run(&ada(), &id("s"), 1), run(&ada(), &id("t"), 1));
    let foreign = run(&Principal::named("bob"), &id("s"), 1);
    let mut files = Vec::new();
    for run in [&this, &other, &foreign] {
        begin(store, run, "u").await;
        files.push(record(run));
        store.announce(files.last().unwrap(), soon()).await.unwrap();
        assert!(store.keep(files.last().unwrap(), None).await.unwrap());
    }
    let pending = record(&this);
    assert!(store.announce(&pending, soon()).await.unwrap());

    store.delete(&ada(), &id("s")).await.unwrap();
    assert_eq!(shown(store, &files[0]).await, None);
    assert_eq!(shown(store, &files[1]).await, Some(files[1].clone()));
    assert!(
        store
            .artifact(&foreign.principal, files[2].artifact.id)
            .await
            .unwrap()
            .is_some()
    );
    let now = jiff::Timestamp::now().as_millisecond();
    assert_eq!(due_by(store, now).await, [files[0].artifact.id]);

    // One that is being written may still get its bytes: it is due later, and never shown.
    assert!(!store.keep(&pending, None).await.unwrap());
    assert_eq!(due_by(store, soon()).await, [files[0].artifact.id, pending.artifact.id]);
    let due = store.due(soon(), None, 100).await.unwrap();
    store.forget(&due).await.unwrap();
    assert_eq!(due_by(store, i64::MAX).await, []);

    // Sessions that expire take theirs along too. A run that never ended keeps its session.
    store.end(other.id, RunStatus::Completed, &end(2), None).await.unwrap();
    assert_eq!(store.expire(i64::MAX).await.unwrap(), 1);
    assert_eq!(due_by(store, now).await, [files[1].artifact.id]);
}

async fn a_file_without_a_session_has_its_time(store: &Kept) {
    let unstored = run(&ada(), &id("s"), 1);
    let (file, over) = (
        ArtifactRecord {
            session_id: None,
            ..record(&unstored)
        },
        ArtifactRecord {
            session_id: None,
            ..record(&unstored)
        },
    );
    for (file, until) in [(&file, soon()), (&over, 1000)] {
        assert!(store.announce(file, soon()).await.unwrap());
        assert!(store.keep(file, Some(until)).await.unwrap());
    }
    assert_eq!(shown(store, &file).await, Some(file.clone()));
    assert_eq!(shown(store, &over).await, None);
    assert_eq!(due_by(store, 1000).await, [over.artifact.id]);
    assert_eq!(due_by(store, soon()).await, [over.artifact.id, file.artifact.id]);
    // Its time may be made shorter, and not longer; that of a file with a session is the session's.
    let stored = run(&ada(), &id("s"), 2);
    begin(store, &stored, "u").await;
    let lasting = record(&stored);
    assert!(store.announce(&lasting, soon()).await.unwrap());
    assert!(store.keep(&lasting, None).await.unwrap());
    let all = [file.artifact.id, over.artifact.id, lasting.artifact.id];
    store.shorten(&all, 2000).await.unwrap();
    assert_eq!(shown(store, &file).await, None);
    assert_eq!(shown(store, &lasting).await, Some(lasting.clone()));
    assert_eq!(due_by(store, 1000).await, [over.artifact.id]);
    assert_eq!(due_by(store, 2000).await, [over.artifact.id, file.artifact.id]);
}

async fn a_file_of_an_erased_run_is_not_begun(store: &Kept) {
    let erased = run(&ada(), &id("s"), 1);
    begin(store, &erased, "u").await;
    store.delete(&ada(), &id("s")).await.unwrap();
    begin(store, &run(&ada(), &id("s"), 2), "u").await; // another session of the same id
    assert!(!store.announce(&record(&erased), soon()).await.unwrap());
    assert_eq!(due_by(store, i64::MAX).await, []);
}

async fn what_is_due_is_given_page_by_page(store: &Kept) {
    let unstored = run(&ada(), &id("s"), 1);
    for number in 0..5 {
        let file = ArtifactRecord {
            session_id: None,
            ..record(&unstored)
        };
        assert!(store.announce(&file, 1000 + number / 2).await.unwrap());
    }
    let all = store.due(2000, None, 100).await.unwrap();
    assert_eq!(all.len(), 5);
    assert!(all.is_sorted());
    let first = store.due(2000, None, 2).await.unwrap();
    let rest = store.due(2000, first.last().copied(), 100).await.unwrap();
    assert_eq!([first.clone(), rest].concat(), all);
    let mut changed = first[0];
    changed.erase_after += 1;
    store.forget(&[changed, first[1]]).await.unwrap();
    let left = store.due(2000, None, 100).await.unwrap();
    assert_eq!(left.len(), 4, "what changed since it was seen is left alone");
    assert!(left.contains(&first[0]));
}

fn ticket(name: &str, owner: &Principal, expires_at: i64) -> TicketRecord {
    TicketRecord {
        id: format!("{name:0>64}"),
        principal: owner.clone(),
        credential: "key 00".to_owned(),
        binding: TicketBinding::default(),
        expires_at,
        used: None,
    }
}

fn used(at: i64, request: &str) -> TicketUse {
    TicketUse {
        at,
        request: request.to_owned(),
        run: None,
    }
}

async fn a_ticket_is_used_once(store: &Kept) {
    let now = jiff::Timestamp::now().as_millisecond();
    let mine = TicketRecord {
        binding: TicketBinding {
            session_id: Some(SessionId::generate()),
            user_id: Some("Ada \"the first\"".to_owned()),
            agent: Some("tutor".to_owned()),
            run_id: Some(RunId::new()),
            artifact_id: Some(ArtifactId::generate()),
        },
        ..ticket("a", &ada(), now + 60_000)
    };
    assert!(store.issue(&mine, 10).await.unwrap());
    assert_eq!(store.ticket(&mine.id).await.unwrap(), Some(mine.clone()));
    assert_eq!(store.ticket("b").await.unwrap(), None);
    assert!(!store.claim("b", &used(now, "x"), now).await.unwrap(), "there is none");
    assert!(
        !store.claim(&mine.id, &used(now + 60_000, "x"), now).await.unwrap(),
        "its end is not part of its time"
    );
    assert_eq!(store.ticket(&mine.id).await.unwrap(), Some(mine.clone()));

    let first = used(now + 59_999, "x");
    assert!(store.claim(&mine.id, &first, now + 900_000).await.unwrap());
    assert!(!store.claim(&mine.id, &first, now + 900_000).await.unwrap());
    let claimed = TicketRecord {
        used: Some(first.clone()),
        ..mine.clone()
    };
    assert_eq!(store.ticket(&mine.id).await.unwrap(), Some(claimed));
    // What came to nothing was no use,
    store.give_back(&mine.id).await.unwrap();
    assert_eq!(store.ticket(&mine.id).await.unwrap(), Some(mine.clone()));
    assert!(store.claim(&mine.id, &used(now, "y"), now + 900_000).await.unwrap());
    // and what came to something was one for ever.
    let (run, other) = (RunId::new(), RunId::new());
    store.tie(&mine.id, run).await.unwrap();
    store.tie(&mine.id, other).await.unwrap();
    store.give_back(&mine.id).await.unwrap();
    let tied = store.ticket(&mine.id).await.unwrap().unwrap().used.unwrap();
    assert_eq!((tied.run, tied.request.as_str()), (Some(run), "y"));
    assert!(!store.claim(&mine.id, &used(now, "y"), now).await.unwrap());
    // Nothing can be tied to what was not used, or is not there.
    let fresh = ticket("c", &ada(), now + 60_000);
    store.issue(&fresh, 10).await.unwrap();
    store.tie(&fresh.id, run).await.unwrap();
    store.give_back(&fresh.id).await.unwrap();
    store.tie("b", run).await.unwrap();
    assert_eq!(store.ticket(&fresh.id).await.unwrap(), Some(fresh));
}

async fn of_many_who_use_a_ticket_at_once_one_does(store: &Kept) {
    let now = jiff::Timestamp::now().as_millisecond();
    let mine = ticket("a", &ada(), now + 60_000);
    store.issue(&mine, 10).await.unwrap();
    let uses: Vec<TicketUse> = (0..32).map(|n| used(now, &format!("request {n}"))).collect();
    let claims = uses.iter().map(|used| store.claim(&mine.id, used, now + 90_000));
    let claims = futures_util::future::join_all(claims).await;
    let first: Vec<usize> = (0..32).filter(|n| *claims[*n].as_ref().unwrap()).collect();
    assert_eq!(first.len(), 1, "{first:?}");
    let kept = store.ticket(&mine.id).await.unwrap().unwrap().used;
    assert_eq!(kept.as_ref(), Some(&uses[first[0]]));
}

async fn a_caller_has_so_many_tickets_and_no_more(store: &Kept) {
    let now = jiff::Timestamp::now().as_millisecond();
    let issue =
        async |name: &str, owner: &Principal, end: i64| store.issue(&ticket(name, owner, end), 2).await.unwrap();
    let bob = Principal::named("bob");
    assert!(
        issue("old", &ada(), now - 1).await,
        "one that has expired takes no room"
    );
    assert!(issue("a", &ada(), now + 60_000).await);
    assert!(issue("b", &ada(), now + 60_000).await);
    assert!(!issue("c", &ada(), now + 60_000).await);
    assert_eq!(store.ticket(&ticket("c", &bob, 0).id).await.unwrap(), None);
    assert!(issue("d", &bob, now + 60_000).await, "another's take none either");
    let a = ticket("a", &ada(), 0).id;
    store.claim(&a, &used(now, "x"), now + 60_000).await.unwrap();
    assert!(issue("e", &ada(), now + 60_000).await, "nor do those that are used");
    assert!(!issue("f", &ada(), now + 60_000).await);
}

async fn tickets_are_swept_when_their_time_is_over(store: &Kept) {
    let now = jiff::Timestamp::now().as_millisecond();
    let [unused, claimed, given_back] = ["a", "b", "c"].map(|name| ticket(name, &ada(), now + 100));
    for ticket in [&unused, &claimed, &given_back] {
        store.issue(ticket, 10).await.unwrap();
    }
    for ticket in [&claimed, &given_back] {
        assert!(store.claim(&ticket.id, &used(now, "x"), now + 1000).await.unwrap());
    }
    store.give_back(&given_back.id).await.unwrap();
    let left = async || {
        let mut left = 0;
        for ticket in [&unused, &claimed, &given_back] {
            left += usize::from(store.ticket(&ticket.id).await.unwrap().is_some());
        }
        left
    };
    for (time, swept, still) in [
        (now, 0, 3),
        (now + 99, 0, 3),
        (now + 100, 2, 1),
        (now + 999, 0, 1),
        (now + 1000, 1, 0),
    ] {
        assert_eq!(store.sweep_tickets(time).await.unwrap(), swept, "{}", time - now);
        assert_eq!(left().await, still, "{}", time - now);
    }
}
